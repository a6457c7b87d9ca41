"""Tools in chat, by the official OpenAI client: experts whose weights make them call, in the form of their template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import jsonschema
import openai
import pytest
from tests.model.test_tool_templates import FUNCTIONS, HERMES, LLAMA, MISTRAL, TOOLS
from tests.system.scripted import FIRST_ID, write_scripted
from tests.system.test_server import served
from tests.system.tiny import write_expert

from coterie.api import Coterie, Message, Query
from coterie.api.texts import Text
from coterie.checkpoint.calls import Call, Calling, CallText, More
from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.errors import RequestError
from coterie.server.tools import Spoken
from coterie.server.tools import calling as calling_of

ADD = '{"a": 2, "b": "é"}'
SAID = {
    "hermes": ["Let me", " see.\n", "<tool", "_call>\n", '{"name": "add", ', '"arguments": ', ADD, "}\n</tool_call>"],
    "llama": ['{"name": "add"', ', "parameters": ', ADD, "}; ", '{"name": "now", ', '"parameters": {}}'],
    "mistral": ["[TOOL_CALLS]", ' [{"name": "add", ', '"arguments": ', ADD, '}, {"name": "now", ', '"arguments": {}}]'],
    "functions": [
        "<tool_call>\n<function=add>\n",
        "<parameter=a>",
        "\n2\n</parameter>\n<parameter=b>\né",
        "\n</parameter>",
        "\n</function>\n</tool_call>",
        "\n<tool_call>\n<function=now>\n</function>",
        "\n</tool_call> ",
    ],
    "unmarked": ["```json\n", '{"name": "add", ', '"arguments": ', ADD, "}\n```"],
    "wrong": ["So:\n", "<tool_call>\n", '{"name": "rm", "arguments": {}}', "\n</tool_call>", "\nthat is all"],
}
TEMPLATES = {"hermes": HERMES, "functions": FUNCTIONS, "llama": LLAMA, "mistral": MISTRAL}
TEMPLATES |= {"unmarked": HERMES, "wrong": HERMES}
CONTENT = dict.fromkeys(SAID) | {"hermes": "Let me see.", "wrong": "".join(SAID["wrong"])}
CALLS = {
    "hermes": ["add"],
    "functions": ["add", "now"],
    "llama": ["add", "now"],
    "mistral": ["add", "now"],
    "unmarked": ["add"],
    "wrong": [],
}
ARGUMENTS = {"add": json.loads(ADD), "now": {}}
QUESTION = {"role": "user", "content": "What is 2 + 3?"}


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("callers")
    for name, pieces in SAID.items():
        write_scripted(root / name, pieces, TEMPLATES[name], special=("[TOOL_CALLS]",))
    write_scripted(root / "other", ["hello"], HERMES.replace("tool_call>", "call>"))
    write_expert(root / "plain", 1)
    return root


@pytest.fixture(scope="module")
def url(callers: Path) -> Iterator[str]:
    with served(Coterie.open(callers)) as found:
        yield found


def ask(client: openai.OpenAI, model: str, **options):
    return client.chat.completions.create(**{"model": model, "messages": [QUESTION], "tools": TOOLS, **options})


def assembled(events, count: int = 1) -> list[dict]:
    """What a client makes of a stream: each choice's content, calls and reason."""
    found = [{"content": "", "calls": {}, "reason": None} for _ in range(count)]
    for event in events:
        for choice in event.choices:
            said = found[choice.index]
            assert said["reason"] is None
            said["content"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                if call.id is None:  # more arguments of the last one
                    assert (call.index, call.type, call.function.name) == (len(said["calls"]) - 1, None, None)
                    said["calls"][call.index].function.arguments += call.function.arguments
                    continue
                assert call.index == len(said["calls"])
                said["calls"][call.index] = call
            said["reason"] = choice.finish_reason
    return found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", SAID)
def test_calls_are_calls_and_all_else_is_text(client: openai.OpenAI, name: str, stream: bool) -> None:
    got = ask(client, name, n=2, stream=stream)
    if stream:
        rows = [(said["content"] or None, list(said["calls"].values()), said["reason"]) for said in assembled(got, 2)]
    else:
        rows = [(c.message.content, c.message.tool_calls or [], c.finish_reason) for c in got.choices]
    for content, calls, reason in rows:
        assert content == CONTENT[name]
        assert [call.function.name for call in calls] == CALLS[name]
        assert [json.loads(call.function.arguments) for call in calls] == [ARGUMENTS[n] for n in CALLS[name]]
        assert reason == ("tool_calls" if calls else "stop")
        assert all(len(call.id) == 9 and call.id.isalnum() and call.type == "function" for call in calls)
    ids = [call.id for _, calls, _ in rows for call in calls]
    assert len(set(ids)) == len(ids)


def test_text_before_a_call_is_streamed_as_it_comes(client: openai.OpenAI) -> None:
    texts = [e.choices[0].delta.content for e in ask(client, "hermes", stream=True) if e.choices[0].delta.content]
    assert texts == ["Let me", " see."]


@pytest.mark.parametrize("name", ["hermes", "functions", "mistral"])
def test_what_came_of_a_call_goes_back_by_the_template(client: openai.OpenAI, callers: Path, name: str) -> None:
    """Messages as the client has them, with arguments in a string, which templates want as an object."""
    message = ask(client, name).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "5"} for call in message.tool_calls]
    got = ask(client, name, messages=[QUESTION, message.model_dump(exclude_unset=True), *results])
    theirs = [
        {"id": c.id, "type": "function", "function": {"name": c.function.name, "arguments": ARGUMENTS[c.function.name]}}
        for c in message.tool_calls
    ]
    said = [QUESTION, {"role": "assistant", "content": message.content or "", "tool_calls": theirs}, *results]
    text = ChatTemplate.from_folder(callers / name).render(said, tools=TOOLS)
    assert "5" in text
    assert got.usage.prompt_tokens == len(Tokenizer.from_folder(callers / name).encode(text))


def test_tool_choice_none_offers_nothing(client: openai.OpenAI) -> None:
    got = ask(client, "hermes", tool_choice="none")
    assert got.choices[0].message.content == "".join(SAID["hermes"])
    assert got.choices[0].message.tool_calls is None
    assert got.choices[0].finish_reason == "stop"
    assert got.usage.prompt_tokens < ask(client, "hermes", tool_choice="auto").usage.prompt_tokens


def test_without_tools_a_special_token_is_no_text(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(model="mistral", messages=[QUESTION])
    assert got.choices[0].message.content == "".join(SAID["mistral"][1:])


def test_a_call_that_is_cut_off_is_text(client: openai.OpenAI) -> None:
    got = ask(client, "llama", max_tokens=2).choices[0]
    assert (got.message.content, got.finish_reason) == ("".join(SAID["llama"][:2]), "length")


SET = {
    "type": "object",
    "properties": {"a": {"enum": [3, 44]}, "b": {"enum": ["é", "x"]}},
    "additionalProperties": False,
}
SET |= {"required": ["a", "b"]}
HELD = [{"type": "function", "function": {"name": "add", "parameters": SET}}, TOOLS[1]]
HELD += [{"type": "function", "function": {"name": "other", "parameters": {"maxProperties": 0}}}]
ONE = {"type": "function", "function": {"name": "add"}}
SOME = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [ONE]}}
FORCED = {
    "one": {"tool_choice": ONE},
    "required": {"tool_choice": "required", "parallel_tool_calls": False},
    "allowed": {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [ONE]}}},
}
NO_BLANKS = {str(blank): -100 for blank in b" \t\r\n"}  # which a model that has nothing to say would write


def rows_of(got, stream: bool, count: int) -> list[tuple]:
    """Content, calls as names and arguments, and why it ended, for each choice."""
    if stream:
        rows = [(said["content"], list(said["calls"].values()), said["reason"]) for said in assembled(got, count)]
    else:
        rows = [(c.message.content or "", c.message.tool_calls or [], c.finish_reason) for c in got.choices]
    return [(said, [(c.function.name, c.function.arguments) for c in calls], why) for said, calls, why in rows]


@pytest.mark.parametrize(
    ("name", "choice"),
    [("hermes", "one"), ("llama", "one"), ("mistral", "one"), ("hermes", "required"), ("llama", "allowed")],
)
def test_a_forced_call_is_one_of_its_form_with_arguments_by_the_schema(
    client: openai.OpenAI, name: str, choice: str
) -> None:
    for stream in (False, True):
        options = {"tools": HELD, "n": 2, "temperature": 1.5, "seed": 3, "logit_bias": NO_BLANKS, "max_tokens": 50}
        for content, calls, reason in rows_of(ask(client, name, stream=stream, **options, **FORCED[choice]), stream, 2):
            if reason == "length" and choice == "allowed":
                continue  # which lets a model call again and again
            assert (content, reason) == ("", "tool_calls")
            assert len(calls) == 1 or choice == "allowed"
            for called, arguments in calls:
                assert called == "add" or choice == "required"
                jsonschema.validate(json.loads(arguments), SET if called == "add" else {"type": "object"})


def test_arguments_of_a_held_call_are_streamed_in_pieces(client: openai.OpenAI) -> None:
    events = list(ask(client, "hermes", tools=HELD, tool_choice=ONE, logit_bias=NO_BLANKS, stream=True))
    parts = [part for event in events for part in event.choices[0].delta.tool_calls or ()]
    assert (parts[0].type, parts[0].function.name, parts[0].function.arguments) == ("function", "add", "")
    assert all((part.index, part.id, part.function.name) == (0, None, None) for part in parts[1:])
    assert len(parts) > 3
    whole = ask(client, "hermes", tools=HELD, tool_choice=ONE, logit_bias=NO_BLANKS).choices[0].message.tool_calls[0]
    assert "".join(part.function.arguments for part in parts) == whole.function.arguments


def test_a_strict_tool_is_held_where_the_model_calls_it(client: openai.OpenAI) -> None:
    """It says what it would, but for arguments that the schema has not."""
    strict = {**HELD[0], "function": {**HELD[0]["function"], "strict": True}}
    for stream in (False, True):
        got = ask(client, "hermes", tools=[strict], logit_bias=NO_BLANKS, stream=stream)
        ((content, calls, reason),) = rows_of(got, stream, 1)
        assert (content, reason) == ("Let me see.", "tool_calls")
        ((called, arguments),) = calls
        assert called == "add"
        jsonschema.validate(json.loads(arguments), SET)


@pytest.mark.parametrize("name", ["hermes", "mistral"])
def test_beside_tools_an_answer_is_calls_or_has_its_form(client: openai.OpenAI, name: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": {"enum": ["x", "yy"]}}}
    kinds = set()
    for seed in range(2):
        options = {"tools": HELD, "response_format": form, "temperature": 2, "seed": seed, "logit_bias": NO_BLANKS}
        whole = rows_of(ask(client, name, **options, max_tokens=99), False, 1)
        events = ask(client, name, **options, max_tokens=99, stream=True)
        assert rows_of(events, True, 1) == whole
        ((content, calls, reason),) = whole
        kinds.add(reason)
        assert reason in ("length", "tool_calls") if calls else json.loads(content) in ("x", "yy")
    assert "tool_calls" in kinds
    no_mark = {**NO_BLANKS, str(ord("<")): -100, **{str(FIRST_ID + n): -100 for n in range(len(SAID[name]))}}
    ((content, calls, reason),) = rows_of(ask(client, name, **{**options, "logit_bias": no_mark}), False, 1)
    assert (json.loads(content) in ("x", "yy"), calls, reason) == (True, [], "stop")
    for forced in (name, "llama"):
        ((content, calls, _),) = rows_of(ask(client, forced, **options, tool_choice=ONE, max_tokens=99), False, 1)
        assert (content, [called for called, _ in calls]) == ("", ["add"])


def test_beside_tools_an_answer_with_a_form_may_spell_a_call(callers: Path) -> None:
    said = json.dumps({"a": "<tool_call>", "b": {"name": "add", "arguments": {}}})
    text = Text("hermes", 300, None, ChatTemplate.from_folder(callers / "hermes"))
    for calling, found in ((Calling(), [said]), (Calling(True), ['{"a": "', Call("add", ""), More("{}")])):
        reader = text.calls(Query((), tools=tuple(HELD), form="{}", calling=calling))
        assert reader is not None
        assert [*reader.push(said), *reader.flush()] == found


def test_without_parallel_calls_there_is_one(client: openai.OpenAI) -> None:
    ((content, calls, reason),) = rows_of(ask(client, "mistral", parallel_tool_calls=False), False, 1)
    assert (content, [name for name, _ in calls], reason) == ("", ["add"], "tool_calls")


def test_a_forced_call_that_is_cut_off_ends_where_the_answer_does(client: openai.OpenAI) -> None:
    whole = rows_of(ask(client, "llama", tools=HELD, tool_choice=ONE, logit_bias=NO_BLANKS), False, 1)[0][1][0][1]
    for stream in (False, True):
        options = {"tools": HELD, "tool_choice": ONE, "logit_bias": NO_BLANKS, "max_tokens": 4}
        ((content, calls, reason),) = rows_of(ask(client, "llama", stream=stream, **options), stream, 1)
        assert (content, reason) == ("", "length")
        ((called, arguments),) = calls
        assert called == "add"
        assert whole.startswith(arguments)
        assert arguments != whole


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_that_is_cut_off_before_its_name_is_no_text(client: openai.OpenAI, stream: bool) -> None:
    got = ask(client, "hermes", tools=HELD, tool_choice="required", logit_bias=NO_BLANKS, max_tokens=4, stream=stream)
    assert rows_of(got, stream, 1) == [("", [], "length")]


@pytest.mark.parametrize("options", [{"parallel_tool_calls": False}, {"tool_choice": SOME}])
def test_calls_without_marks_are_read_also_where_calls_are_held(client: openai.OpenAI, options: dict) -> None:
    ((content, calls, reason),) = rows_of(ask(client, "unmarked", **options), False, 1)
    assert (content, [name for name, _ in calls], reason) == ("", ["add"], "tool_calls")


RM = {"type": "function", "function": {"name": "rm"}}
MUST = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [ONE]}}


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, Calling()),
        ("auto", Calling()),
        ("required", Calling(True)),
        (ONE, Calling(True, False, ("add",))),
        (SOME, Calling(False, True, ("add",))),
        (MUST, Calling(True, True, ("add",))),
    ],
)
def test_what_a_choice_asks_of_calls(choice: object, wanted: Calling) -> None:
    for several in (None, True):
        assert calling_of({"tool_choice": choice, "parallel_tool_calls": several}, HELD) == wanted
    assert calling_of({"tool_choice": choice, "parallel_tool_calls": False}, HELD) == replace(wanted, several=False)


def test_an_answer_that_begins_with_a_call_says_first_who_speaks() -> None:
    spoken = Spoken(CallText(FORMS["mistral"], ["add"]))
    first, then = spoken.deltas('[TOOL_CALLS] {"name": "add", "arguments": {}}', last=True)
    assert first == {"role": "assistant", "content": ""}
    assert then["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}


def test_a_forced_call_that_a_stop_string_ends_is_no_whole_one(client: openai.OpenAI) -> None:
    options = {"tools": HELD, "tool_choice": ONE, "logit_bias": NO_BLANKS, "stop": ['"b"']}
    for stream in (False, True):
        ((content, calls, reason),) = rows_of(ask(client, "hermes", stream=stream, **options), stream, 1)
        assert (content, reason) == ("", "stop")
        assert calls[0][1] in ('{"a":3,', '{"a":44,')


FUNCTION = TOOLS[0]["function"]
CALL = {"id": "x", "type": "function", "function": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "plain"}, "plain has no chat template that takes tools"),
        ({"model": "other"}, "other writes calls in a form that is not read here"),
        ({"tool_choice": "always"}, "[tool_choice] is 'always'"),
        ({"tool_choice": {"type": "function", "function": {"name": "rm"}}}, "names 'rm', which is not offered"),
        ({"tool_choice": {"type": "function", "name": "add"}}, "[tool_choice] names no function"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}}, "without mode and tools"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [RM]}}},
            "[tool_choice] names 'rm', which is not offered",
        ),
        ({"tool_choice": "required", "tools": []}, "no tools are offered"),
        ({"tool_choice": "required", "model": "plain"}, "plain has no chat template that takes tools"),
        ({"response_format": {"type": "json_object"}, "model": "llama"}, "[response_format] is given beside tools"),
        ({"parallel_tool_calls": "no"}, "[parallel_tool_calls] is 'no'"),
        ({"tools": "add"}, "give a list of functions"),
        ({"tools": [{"type": "custom"}]}, "[tools[0]]"),
        ({"tools": [TOOLS[0], {"type": "function", "function": {}}]}, "[tools[1]]"),
        ({"tools": [{"type": "function", "function": {**FUNCTION, "strict": 3}}]}, "[tools[0].function.strict] is 3"),
        (
            {"tools": [{"type": "function", "function": {**FUNCTION, "strict": True, "parameters": {"not": {}}}}]},
            "[tools[0].function.parameters] has a schema that cannot be enforced",
        ),
        (
            {"tools": [{"type": "function", "function": {**FUNCTION, "parameters": 3}}]},
            "[tools[0].function.parameters] is 3",
        ),
        ({"tools": [{"type": "function", "function": {**FUNCTION, "description": "\ud800"}}]}, "Unicode"),
        ({"messages": [QUESTION, {"role": "tool", "content": "5"}]}, "tool_call_id"),
        ({"messages": [QUESTION, {"role": "assistant", "content": 3}]}, "not text"),
        ({"messages": [QUESTION, {"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[1].tool_calls[0]"),
        (
            {
                "messages": [
                    QUESTION,
                    {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "add", "arguments": "{"}}]},
                ]
            },
            "[messages[1].tool_calls[0].arguments] is not JSON",
        ),
    ],
)
def test_what_is_refused_is_named(url: str, http: httpx.Client, change: dict, words: str) -> None:
    body = {"model": "hermes", "messages": [QUESTION], "tools": TOOLS, **change}
    got = http.post(f"{url}/v1/chat/completions", content=json.dumps(body))
    assert got.status_code == 400, got.text
    assert words in got.json()["error"]["message"]


@pytest.mark.parametrize("name", ["hermes", "mistral"])
def test_each_tokens_logprob_is_streamed_once_though_calls_come_together(client: openai.OpenAI, name: str) -> None:
    whole = ask(client, name, logprobs=True).choices[0].logprobs.content
    assert [one.token for one in whole] == SAID[name]
    chunks = [event.choices[0] for event in ask(client, name, logprobs=True, stream=True)]
    assert [one for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content] == whole


def test_an_answer_that_is_cut_short_behind_a_call_says_so(client: openai.OpenAI) -> None:
    choice = ask(client, "hermes", max_tokens=len(SAID["hermes"])).choices[0]
    assert (len(choice.message.tool_calls), choice.finish_reason) == (1, "length")


def test_a_router_sends_tools_to_an_expert_that_takes_them(callers: Path, tmp_path: Path) -> None:
    write_expert(tmp_path / "base", 2)
    (tmp_path / "base" / "tokenizer_config.json").write_text("{}")
    file = tmp_path / "composition.toml"
    places = {"base": tmp_path / "base", "plain": callers / "plain", "hermes": callers / "hermes"}
    experts = "".join(f'[[expert]]\nname = "{name}"\ncheckpoint = "{folder}"\n' for name, folder in places.items())
    rule = '[[router.rule]]\nexpert = "base"\nkeywords = ["go on"]\n'
    file.write_text(f'name = "some"\n[router]\nkind = "rules"\nfallback = "plain"\n{rule}{experts}')
    once, again = (tuple([Message("user", "go on")] * count) for count in (1, 2))
    with Coterie.open(str(file)) as coterie:
        assert coterie.route(Query(once)).expert == "base"
        several = coterie.route(Query(again))
        assert several.expert == "plain"
        assert several.reason.startswith("base has no chat template for several messages; ")
        routed = coterie.ask(Query(once, tools=tuple(TOOLS)))
        assert (routed.expert, routed.text) == ("hermes", "".join(SAID["hermes"]))
        with pytest.raises(RequestError, match="plain has no chat template that takes tools"):
            coterie.ask(Query(once, model="plain", tools=tuple(TOOLS)))

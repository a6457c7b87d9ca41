"""Tools in chat, by the official OpenAI client: experts whose weights make them call, in the form of their template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.model.test_tool_templates import TOOLS
from tests.system.callers import ADD, HELD, ONE, QUESTION, SAID, SOME, ask, assembled, write_callers
from tests.system.serving import served
from tests.system.tiny import write_expert

from coterie.api import Coterie, Message, Query
from coterie.checkpoint.calls import Call, Calling, CallReader, CallText
from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.checkpoint.unmarked import UnmarkedText
from coterie.core.errors import RequestError
from coterie.server.tools import MessageWriter
from coterie.server.tools import calling as calling_of

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


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_callers(tmp_path_factory.mktemp("callers"))


@pytest.fixture(scope="module")
def url(callers: Path) -> Iterator[str]:
    with served(Coterie.open(callers)) as found:
        yield found


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


def test_who_may_leave_the_marks_of_a_call_out(callers: Path) -> None:
    """An expert of a form whose models do, where nothing holds its calls to that form."""
    call = '{"name": "add", "arguments": {}}'
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    with Coterie.open(callers) as coterie:

        def reader(name: str = "unmarked", **asked: Any) -> CallReader:
            query = Query((Message("user", "2 + 3?"),), name, **{"tools": TOOLS, **asked})
            found = coterie.texts[name].calls(query)
            assert found is not None
            return found

        def found(**asked: Any) -> list[Any]:
            reads = reader(**asked)
            return [*reads.push(call + "\n" + call), *reads.flush()]

        assert [type(one) for one in found()] == [Call, Call]
        assert [type(one) for one in found(calling=Calling(several=False))] == [Call, str]
        assert [type(one) for one in found(calling=Calling(only=("now",)))] == [str]
        held = {"tools": strict}, {"form": '{"type": "object"}'}, {"calling": Calling(required=True)}
        for asked in (*held, {"name": "functions"}):
            assert not isinstance(reader(**asked), UnmarkedText)


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
    spoken = MessageWriter(CallText(FORMS["mistral"], ["add"]))
    first, then = spoken.deltas('[TOOL_CALLS] {"name": "add", "arguments": {}}', last=True)
    assert first == {"role": "assistant", "content": ""}
    assert then["tool_calls"][0]["function"] == {"name": "add", "arguments": "{}"}


FUNCTION = TOOLS[0]["function"]
CALL = {"id": "x", "type": "function", "function": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "plain"}, "plain has no chat template that takes tools"),
        ({"model": "other"}, "other writes calls in an unsupported format"),
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
        ({"response_format": {"type": "json_object"}, "model": "llama"}, "[response_format] is given with tools"),
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

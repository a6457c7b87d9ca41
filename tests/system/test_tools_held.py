"""Calls that are held to a form: forced ones, those of strict tools, and answers with a form beside tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import openai
import pytest
from tests.system.callers import HELD, ONE, SAID, SET, SOME, ask, assembled, write_callers
from tests.system.scripted import FIRST_ID
from tests.system.serving import served

from coterie.api import Coterie, Query
from coterie.api.texts import Text
from coterie.checkpoint.calls import Call, Calling, More
from coterie.checkpoint.chat import ChatTemplate

FORCED = {
    "one": {"tool_choice": ONE},
    "required": {"tool_choice": "required", "parallel_tool_calls": False},
    "allowed": {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [ONE]}}},
}
NO_BLANKS = {str(blank): -100 for blank in b" \t\r\n"}  # which a model that has nothing to say would write


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_callers(tmp_path_factory.mktemp("callers"))


@pytest.fixture(scope="module")
def url(callers: Path) -> Iterator[str]:
    with served(Coterie.open(callers)) as found:
        yield found


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


def test_a_forced_call_that_a_stop_string_ends_is_no_whole_one(client: openai.OpenAI) -> None:
    options = {"tools": HELD, "tool_choice": ONE, "logit_bias": NO_BLANKS, "stop": ['"b"']}
    for stream in (False, True):
        ((content, calls, reason),) = rows_of(ask(client, "hermes", stream=stream, **options), stream, 1)
        assert (content, reason) == ("", "stop")
        assert calls[0][1] in ('{"a":3,', '{"a":44,')

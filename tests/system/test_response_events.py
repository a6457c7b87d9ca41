"""The events of a response, one by one, as OpenAI's client has their types; answers are made up."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from coterie.api import Answer, Chunk, Message
from coterie.api.types import ToolCall
from coterie.checkpoint.calls import CallText
from coterie.checkpoint.constrained import ConstrainedCallText
from coterie.checkpoint.forms import FORMS
from coterie.composition.router import Route
from coterie.core.errors import CoterieError, CrowdedError, DeviceError, RequestError, UnsupportedError
from coterie.server.inputs import parse_response
from coterie.server.responses import ResponseAnswers

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOLS = [{"type": "function", "name": "add", "parameters": {"type": "object"}}, {"type": "function", "name": "now"}]


class Reads:
    """A text of an expert that reads an answer by `reader`."""

    def __init__(self, reader: CallText | None) -> None:
        self._reader = reader

    def calls(self, _: object) -> CallText | None:
        return self._reader


def answered(reader: CallText | None = None, **options: Any) -> ResponseAnswers:
    body = parse_response({"model": "all", "input": "hi", **options})
    return ResponseAnswers(body, 1700000000, {"ada": Reads(reader)})  # type: ignore[dict-item]


def an_answer(reason: str = "stop") -> Answer:
    route = Route("ada", 1.0, (), "named")
    return Answer("7", "", (1, 2, 3), "ada", route, reason, 5, 40, True, 0, 0, 0, 0, False, cached_tokens=32)


def written(asked: ResponseAnswers, pieces: list[str], reason: str = "stop") -> list[dict[str, Any]]:
    """What a stream says of an answer in pieces, as OpenAI's client takes it, without its own fields."""
    chunks = [Chunk("7", "ada", piece) for piece in pieces]
    events = [event for chunk in chunks for event in asked.events(0, chunk)]
    events += asked.ending([an_answer(reason)])
    drawn = re.fullmatch("resp_7(_[0-9a-f]{24})", events[0]["response"]["id"])
    assert drawn
    events = json.loads(json.dumps(events).replace(f"7{drawn[1]}", "7"))  # in ids of the response and its items
    for number, event in enumerate(events):
        EVENT.validate_python(event)
        assert event.pop("sequence_number") == number
        for part in (event, event.get("part", {})):
            assert part.pop("logprobs", []) == []
    for event in (*events[:2], events[-1]):
        assert event["response"]["id"] == "resp_7"
        assert (event["response"]["model"], event["response"]["created_at"]) == ("ada", 1700000000)
    return events


def test_events_of_text_are_those_of_the_reference() -> None:
    created, under_way, *events, last = written(answered(), ["Hel", "", "lo"])
    assert (created["type"], under_way["type"]) == ("response.created", "response.in_progress")
    for event in (created, under_way):
        assert (event["response"]["status"], event["response"]["output"]) == ("in_progress", [])
        assert event["response"]["usage"] is None
    here = {"item_id": "msg_7_0", "output_index": 0, "content_index": 0}
    whole = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    item = {"type": "message", "id": "msg_7_0", "role": "assistant", "status": "completed", "content": [whole]}
    begun = {**item, "status": "in_progress", "content": []}
    part = {"type": "output_text", "annotations": []}
    assert events == [
        {"type": "response.output_item.added", "output_index": 0, "item": begun},
        {"type": "response.content_part.added", **here, "part": {**part, "text": ""}},
        {"type": "response.output_text.delta", **here, "delta": "Hel"},
        {"type": "response.output_text.delta", **here, "delta": "lo"},
        {"type": "response.output_text.done", **here, "text": "Hello"},
        {"type": "response.content_part.done", **here, "part": {**part, "text": "Hello"}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
    ]
    made = last["response"]
    assert (last["type"], made["status"], made["output"]) == ("response.completed", "completed", [item])
    assert made["usage"] == {
        "input_tokens": 40,
        "input_tokens_details": {"cached_tokens": 32, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 43,
    }


def test_events_of_calls_are_those_of_the_reference() -> None:
    said = [
        'Let me.\n<tool_call>\n{"name": "add", "arguments": {"a"',
        ': 2}}\n</tool_call><tool_call>\n{"name": "now", ',
    ]
    said += ['"arguments": {}}\n</tool_call> done <tool']
    events = written(answered(ConstrainedCallText(FORMS["hermes"], ["add", "now"]), tools=TOOLS), said)[2:]
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["id"] for item in items] == ["msg_7_0", "fc_7_1", "fc_7_2", "msg_7_3"]
    assert [(item["name"], item["arguments"]) for item in items[1:3]] == [("add", '{"a": 2}'), ("now", "{}")]
    assert [items[place]["content"][0]["text"] for place in (0, 3)] == ["Let me.", " done <tool"]
    assert {item["status"] for item in items} == {"completed"}
    assert items == events[-1]["response"]["output"]
    here = {"item_id": "fc_7_1", "output_index": 1}
    named = {"type": "response.function_call_arguments.done", **here, "name": "add", "arguments": '{"a": 2}'}
    begun = {**items[1], "status": "in_progress", "arguments": ""}
    assert [event for event in events if event.get("output_index") == 1] == [
        {"type": "response.output_item.added", "output_index": 1, "item": begun},
        {"type": "response.function_call_arguments.delta", **here, "delta": '{"a"'},
        {"type": "response.function_call_arguments.delta", **here, "delta": ": 2}"},
        named,
        {"type": "response.output_item.done", "output_index": 1, "item": items[1]},
    ]
    places = [event.get("output_index", 4) for event in events]
    assert places == sorted(places)  # each item ends before the next one begins


@pytest.mark.parametrize(
    ("reader", "said", "status"),
    [
        (None, "so", "incomplete"),
        (ConstrainedCallText(FORMS["llama"], ["add"]), '{"name": "add", "parameters": {"a": ', "incomplete"),
        (ConstrainedCallText(FORMS["llama"], ["add"]), '{"name": "add", "parameters": {"a": 2}', "completed"),
        (CallText(FORMS["mistral"], ["add"]), '[TOOL_CALLS] {"name": "add", "arguments": {}}', "completed"),
        (CallText(FORMS["mistral"], ["add"]), '[TOOL_CALLS] {"name": "ad', "incomplete"),
    ],
)
def test_of_an_answer_that_is_cut_short_the_last_item_says_whether_it_is_whole(
    reader: CallText | None, said: str, status: str
) -> None:
    last = written(answered(reader), [said], "length")[-1]
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in last["response"]["output"]] == [status]


def test_an_answer_without_a_word_is_an_empty_message() -> None:
    (item,) = written(answered(), [""])[-1]["response"]["output"]
    assert item["content"][0]["text"] == ""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CrowdedError("engine", 3, 2), "rate_limit_exceeded", "3 requests wait"),
        (DeviceError("cpu", "failed"), "server_error", "[cpu] failed"),
        (
            RequestError("max_tokens", "max_tokens is 0", "give more"),
            "invalid_prompt",
            "[max_output_tokens] is 0; give more",
        ),
        (UnsupportedError("response_format", "has no tokenizer"), "invalid_prompt", "[text.format] has no tokenizer"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_stream_that_fails_says_so_in_its_last_event(error: CoterieError, code: str, words: str, late: bool) -> None:
    asked = answered()
    before = list(asked.events(0, Chunk("7", "ada", "Hel"))) if late else []
    events = [*before, *asked.failure(error, "7")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    made = EVENT.validate_python(events[-1]).response
    assert (events[-1]["type"], made.status, made.error.code) == ("response.failed", "failed", code)
    (response_id,) = {event["response"]["id"] for event in (*events[:2], events[-1])}
    assert re.fullmatch("resp_7_[0-9a-f]{24}", response_id)
    assert words in made.error.message
    assert len(made.output) == late
    head, data, *rest = asked.encode(events[-1]).decode().split("\n")
    assert (head, json.loads(data.removeprefix("data: ")), rest) == ("event: response.failed", events[-1], ["", ""])


def test_a_stream_that_is_refused_late_has_an_id_of_its_own() -> None:
    """It never became a request, whose id it would have."""
    ids = set()
    for _ in range(2):
        events = list(answered().failure(CrowdedError("engine", 3, 2), ""))
        (response_id,) = {event["response"]["id"] for event in events}
        ids.add(response_id)
    assert len(ids) == 2


def test_items_are_messages_in_their_order() -> None:
    """Calls are of the assistant's message before them, whatever it is; what came of a call has its function's name."""
    said = [{"type": kind, "text": text} for kind, text in (("input_text", "2 +"), ("text", " 3?"))]
    calls = [
        {"type": "function_call", "call_id": f"c{n}", "name": f"f{n}", "arguments": f'{{"n": {n}}}'} for n in range(4)
    ]
    came = [{"type": "function_call_output", "call_id": f"c{n}", "output": f"{n}"} for n in range(4)]
    spoken = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "So."}]}
    items = [
        {"type": None, "role": "user", "content": said},
        spoken,
        *calls[:2],
        *came[:2],
        calls[2],
        {**came[2], "output": said},
    ]
    items += [{"role": "developer", "content": "Go on."}, calls[3], came[3]]
    query = parse_response({"model": "all", "input": items, "instructions": "Be brief."}).query
    made = [ToolCall(f"c{n}", f"f{n}", {"n": n}) for n in range(4)]
    assert query.messages == (
        Message("system", "Be brief."),
        Message("user", "2 + 3?"),
        Message("assistant", "So.", (made[0], made[1])),
        Message("tool", "0", call_id="c0", name="f0"),
        Message("tool", "1", call_id="c1", name="f1"),
        Message("assistant", "", (made[2],)),
        Message("tool", "2 + 3?", call_id="c2", name="f2"),
        Message("system", "Go on."),
        Message("assistant", "", (made[3],)),
        Message("tool", "3", call_id="c3", name="f3"),
    )


def test_a_response_repeats_what_was_asked() -> None:
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]}
    form = {"type": "json_schema", "name": "it", "schema": {"type": "object"}}
    asked = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False, "text": {"format": form}}
    asked |= {"max_output_tokens": 9, "metadata": {"a": "b"}, "temperature": 0.5, "top_p": 0.25, "instructions": "Be."}
    made = answered(**asked, seed=3).whole([an_answer()])
    named = [{"strict": False, "parameters": None, **tool} for tool in TOOLS]
    assert {name: made[name] for name in asked} == {**asked, "tools": named}
    query = parse_response({"model": "all", "input": "hi", "seed": 3, **asked}).query
    assert (query.model, query.max_tokens, query.form) == ("all", 9, '{"type": "object"}')
    assert (query.sampling.temperature, query.sampling.top_p, query.sampling.seed) == (0.5, 0.25, 3)
    assert (query.calling.required, query.calling.several, query.calling.only) == (False, False, ("now",))
    for choice in ("required", {"type": "function", "name": "now"}):
        made = answered(tools=TOOLS, tool_choice=choice).whole([an_answer()])
        assert (made["tool_choice"], made["parallel_tool_calls"]) == (choice, True)

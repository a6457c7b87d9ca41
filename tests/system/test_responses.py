"""The Responses API by the official OpenAI client, whose stream checks the order of events and who they are about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from tests.system.callers import SAID, SET, TEMPLATES
from tests.system.scripted import write_scripted
from tests.system.serving import served
from tests.system.tiny import write_expert

from coterie.api import Coterie

ADD = {"type": "function", "name": "add", "parameters": SET}
NOW = {"type": "function", "name": "now", "description": "the time"}
CALLED = {"type": "function_call", "call_id": "abcdefgh1", "name": "add", "arguments": '{"a": 2}'}
CAME = {"type": "function_call_output", "call_id": "abcdefgh1", "output": "5"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("responders")
    for name in ("hermes", "mistral"):
        write_scripted(root / name, SAID[name], TEMPLATES[name], special=("[TOOL_CALLS]",))
    write_expert(root / "plain", 1, max_position_embeddings=512)
    return root


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(Coterie.open(folder)) as found:
        yield found


def ask(client: openai.OpenAI, stream: bool = False, **options: Any) -> Any:
    """The response, whole or at the end of a stream."""
    options = {"model": "hermes", "input": "What is 2 + 3?", **options}
    if not stream:
        return client.responses.create(**options)
    with client.responses.stream(**options) as events:
        seen = list(events)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert [event.type for event in seen[:2]] == ["response.created", "response.in_progress"]
    assert len({event.response.id for event in seen if hasattr(event, "response")}) == 1
    return seen[-1].response


@pytest.mark.parametrize("stream", [False, True])
def test_text_is_that_of_a_chat(client: openai.OpenAI, stream: bool) -> None:
    limits = {"model": "plain", "max_output_tokens": 20, "instructions": "Be brief.", "input": "hello"}
    got = ask(client, stream, **limits, temperature=0.8, extra_body={"seed": 4})
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(model="plain", messages=said, max_tokens=20, temperature=0.8, seed=4)
    assert got.output_text == chat.choices[0].message.content
    (item,) = got.output
    cut = chat.choices[0].finish_reason == "length"
    assert got.status == item.status == ("incomplete" if cut else "completed")
    assert (got.incomplete_details and got.incomplete_details.reason) == ("max_output_tokens" if cut else None)
    assert (got.usage.input_tokens, got.usage.output_tokens) == (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    assert (got.object, got.id[:5], got.model, got.temperature) == ("response", "resp_", "plain", 0.8)
    assert (got.instructions, got.max_output_tokens, got.store) == ("Be brief.", 20, True)


@pytest.mark.parametrize("stream", [False, True])
def test_text_and_calls_are_items_in_their_order(client: openai.OpenAI, stream: bool) -> None:
    text, call = ask(client, stream, tools=[ADD, NOW]).output
    assert (text.type, text.content[0].text, text.status) == ("message", "Let me see.", "completed")
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "add", {"a": 2, "b": "é"})
    assert len(call.call_id) == 9
    first, second = ask(client, stream, model="mistral", tools=[ADD, NOW]).output
    assert [first.name, second.name, second.arguments] == ["add", "now", "{}"]
    assert len({first.id, second.id, first.call_id, second.call_id}) == 4


@pytest.mark.parametrize(
    ("choice", "stream"),
    [
        ({"type": "function", "name": "add"}, True),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}, False),
    ],
    ids=["named", "allowed"],
)
def test_calls_are_held_as_in_a_chat(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    got = ask(client, stream, tools=[ADD, NOW], tool_choice=choice, parallel_tool_calls=False)
    (call,) = got.output
    assert call.name == "add"
    jsonschema.validate(json.loads(call.arguments), SET)
    assert (got.tools[0].name, got.parallel_tool_calls) == ("add", False)


def test_arguments_come_in_pieces(client: openai.OpenAI) -> None:
    options = {"model": "hermes", "input": "2 + 3?", "tools": [{**ADD, "strict": True}], "stream": True}
    events = list(client.responses.create(**options))
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert len(pieces) > 1
    assert "".join(pieces) == done.arguments
    jsonschema.validate(json.loads(done.arguments), SET)
    assert (events[-1].type, events[-1].response.status) == ("response.completed", "completed")


def test_items_are_the_messages_of_a_chat(client: openai.OpenAI) -> None:
    """What was answered goes back as it came, and what came of calls behind it."""
    said = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "2 + 3?"}]}]
    first = client.responses.create(model="hermes", input=said, tools=[ADD])
    items = [*said, *(item.model_dump(exclude_none=True) for item in first.output)]
    items.append({**CAME, "call_id": first.output[-1].call_id})
    got = client.responses.create(model="hermes", input=items, tools=[ADD])
    call = {
        "id": items[-1]["call_id"],
        "type": "function",
        "function": {"name": "add", "arguments": items[-2]["arguments"]},
    }
    messages = [
        {"role": "user", "content": "2 + 3?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": call["id"]},
    ]
    tool = {"type": "function", "function": {"name": "add", "parameters": SET}}
    chat = client.chat.completions.create(model="hermes", messages=messages, tools=[tool])
    assert got.usage.input_tokens == chat.usage.prompt_tokens
    assert client.responses.create(model="mistral", input=[*said, CALLED, CAME], tools=[ADD]).output


@pytest.mark.parametrize("stream", [False, True])
def test_text_may_have_a_form(client: openai.OpenAI, stream: bool) -> None:
    form = {"type": "json_schema", "name": "it", "schema": {"enum": ["x", "yy"]}, "strict": True}
    got = ask(client, stream, model="plain", text={"format": form})
    assert json.loads(got.output_text) in ("x", "yy")
    assert got.text.format.name == "it"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": None}, "[input] is missing or empty"),
        ({"input": []}, "[input] is missing or empty"),
        (
            {"input": [{"type": "item_reference"}]},
            "[input[0]] refers to None, which is not the id of a stored output item",
        ),
        ({"input": [{"type": "reasoning"}]}, "[input] there is no message"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "[input[0]] has content that is not text",
        ),
        ({"input": [{**CALLED, "arguments": "[]"}]}, "[input[0].arguments] are no JSON object"),
        ({"input": [{**CALLED, "arguments": '{"a": NaN}'}]}, "[input[0].arguments] is not JSON: NaN is no number"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": None}]}]},
            "the text of a part is None",
        ),
        ({"input": ""}, "[input] the last user message has no text"),
        ({"input": [{"role": "system", "content": "x"}]}, "[input] has no user message"),
        ({"input": [{**CAME, "call_id": None}]}, "[input[0]] is the result of a call, but does not say of which"),
        ({"input": 3}, "[input]"),
        ({"previous_response_id": "resp_1"}, "[previous_response_id] is 'resp_1', which is not stored"),
        ({"previous_response_id": 3}, "[previous_response_id] is 3; give the id of a response"),
        ({"conversation": "c"}, "[conversation] is given, but this server stores no conversations"),
        ({"background": True}, "[background]"),
        ({"include": ["message.output_text.logits"]}, "[include] has 'message.output_text.logits', which"),
        ({"truncation": "middle"}, "[truncation] is 'middle'; use auto or disabled"),
        ({"truncation": ["auto"]}, "[truncation] is ['auto']; use auto or disabled"),
        ({"truncation": "auto", "input": "x" * 5000}, "context"),
        ({"reasoning": {"effort": "much"}}, "[reasoning.effort] is 'much'; use one of none, minimal, low"),
        ({"reasoning": {"summary": "detailed", "effort": "none"}}, "[reasoning.summary]"),
        ({"store": "yes"}, "[store] is 'yes'; give true or false"),
        ({"tools": [{"type": "web_search"}]}, "[tools[0]] is of type 'web_search'; offer functions alone"),
        (
            {"tools": [{"type": "function"}]},
            '[tools[0]] is no function with a name; give {"type": "function", "name": ...}',
        ),
        ({"tools": [{**ADD, "parameters": 3}]}, "[tools[0].parameters] is 3"),
        ({"tools": [{**ADD, "description": ["x"]}]}, "[tools[0].description] is ['x']; give a string"),
        ({"tools": [ADD], "tool_choice": {"type": "function"}}, 'no function; give {"type": "function", "name": ...}'),
        (
            {"tools": [ADD], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function"}]}},
            "[tool_choice] names no function",
        ),
        ({"metadata": "x"}, "[metadata] is 'x'"),
        ({"metadata": {"a": 1}}, "[metadata.a] is 1; give a text"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "rm"}}, "names 'rm', which is not offered"),
        ({"text": {"format": {"type": "xml"}}}, "[text.format] has type 'xml'; use text, json_object or json_schema"),
        ({"text": {"format": {"type": "json_object", "schema": 3}}}, "[text.format.schema] is 3"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "[text.format] has a schema that cannot",
        ),
        ({"text": {"format": {"type": "json_schema", "name": 3, "schema": {}}}}, "[text.format.name] is 3"),
        ({"max_output_tokens": 0}, "[max_output_tokens] is 0; allowed is 1 or more"),
        ({"max_output_tokens": 10**400}, "give a whole number of 64 bits"),
        ({"text": {"verbosity": "loud"}}, "[text.verbosity]"),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "[top_logprobs] is 21; allowed is 0 to 20"),
        ({"top_logprobs": 2}, "[top_logprobs] is 2, but include has no message.output_text.logprobs; add that"),
        ({"include": [[]]}, "[include] has []"),
        ({"include": "all"}, "[include] is 'all'; give a list"),
        ({"max_tokens": 3}, "did you mean max_output_tokens?"),
        ({"stop": "x"}, "[stop] is not a known field"),
        ({"input": "x" * 5000}, "context"),
    ],
)
def test_what_is_refused_is_named(url: str, http: httpx.Client, change: dict, words: str) -> None:
    got = http.post(f"{url}/v1/responses", json={"model": "plain", "input": "hi", **change})
    assert got.status_code == 400, got.text
    assert words in got.json()["error"]["message"]
    if words == "context":
        assert (got.json()["error"]["code"], got.json()["error"]["param"]) == ("context_length_exceeded", "input")


def test_what_asks_for_nothing_is_taken(url: str, http: httpx.Client) -> None:
    """Null for whatever a client's user left out, and what says that nothing more is wanted."""
    names = "background conversation include instructions max_output_tokens max_tool_calls metadata parallel_tool_calls"
    names += " previous_response_id prompt reasoning service_tier store stream stream_options temperature text"
    names += " tool_choice tools top_logprobs top_p truncation user"
    nothing = {"include": [], "reasoning": {"effort": "none", "summary": None}, "text": {"verbosity": "medium"}}
    nothing |= {"truncation": "disabled", "background": False, "prompt_cache_options": {"mode": "implicit"}}
    tools = {"include": ["reasoning.encrypted_content", "file_search_call.results"], "text": {"verbosity": "low"}}
    for given in (dict.fromkeys(names.split()), nothing, tools):
        got = http.post(f"{url}/v1/responses", json={"model": "plain", "input": "hi", **given})
        assert got.status_code == 200, got.text
        made = got.json()
        assert (made["tools"], made["tool_choice"], made["parallel_tool_calls"]) == ([], "auto", True)
        assert (made["text"], made["metadata"], made["instructions"]) == ({"format": {"type": "text"}}, {}, None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_fails_in_the_middle_of_a_stream_is_its_last_event(folder: Path) -> None:
    coterie = Coterie.open(folder)
    step, said = coterie.step, list[Any]()

    def breaks_after_the_first(within_s: float) -> Any:
        if said:
            raise ZeroDivisionError
        said.extend(step(within_s))
        return said

    coterie.step = breaks_after_the_first
    with served(coterie) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        events = list(client.responses.create(model="hermes", input="hi", stream=True))
    assert events[0].type == "response.created"
    assert "response.output_text.delta" in [event.type for event in events]
    assert (events[-1].type, events[-1].response.status) == ("response.failed", "failed")
    assert "restart the server" in events[-1].response.error.message


def test_tokens_of_an_input_are_counted(client: openai.OpenAI, url: str, http: httpx.Client) -> None:
    """As many as the answer's usage has, with instructions and functions; refusals are in this endpoint's words."""
    for more in ({}, {"instructions": "Be brief.", "tools": [ADD]}):
        asked = {"model": "hermes", "input": "What is 2 + 3?", **more}
        counted = client.responses.input_tokens.count(**asked)
        assert counted.object == "response.input_tokens"
        assert counted.input_tokens == client.responses.create(**asked).usage.input_tokens
    for body, status, words in (
        ({"model": "nobody", "input": "x"}, 404, "nobody"),
        ({"model": "hermes", "input": "x", "text": {"format": {"type": "xml"}}}, 400, "[text.format]"),
        ({"model": "hermes"}, 400, "[input] is missing"),
    ):
        got = http.post(f"{url}/v1/responses/input_tokens", json=body)
        assert (got.status_code, words in got.json()["error"]["message"]) == (status, True), got.text

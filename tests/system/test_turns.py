"""POST /v1/messages: Anthropic's Messages API, whole and streamed, with thoughts, tools and forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.model.test_tool_templates import HERMES
from tests.system.scripted import write_scripted
from tests.system.serving import served
from tests.system.test_reasoning import OPENS, TURNS

from coterie.api import Coterie
from coterie.checkpoint.calls import Calling
from coterie.core.errors import RequestError
from coterie.server.turns import parse_turns

SAID = {
    "thinker": ["<think>\n", "Hm", ", four", ".\n", "</think>", "\n\nIt is", " four."],
    "caller": ["Let me see.\n", "<tool_call>\n", '{"name": "add", "arguments": ', '{"a": 2', "}}\n</tool_call>"],
}
TEMPLATES = {"thinker": TURNS, "caller": HERMES}
ADD = {
    "name": "add",
    "description": "adds",
    "input_schema": {"type": "object", "properties": {"a": {"type": "number"}}},
}
ASKED = [{"role": "user", "content": "What is 2 + 2?"}]
BASE = {"model": "thinker", "max_tokens": 64, "messages": ASKED}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root: Path = tmp_path_factory.mktemp("turns")
    for name, pieces in SAID.items():
        write_scripted(root / name, pieces, TEMPLATES[name])
    write_scripted(root / "opened", SAID["thinker"][1:], OPENS)
    with served(Coterie.open(root), keys=["secret"]) as found:
        yield found


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"x-api-key": "secret", "anthropic-version": "2023-06-01"}) as client:
        yield client


def ask(http: httpx.Client, **options: object) -> dict:
    got = http.post("/v1/messages", json={**BASE, **options})
    assert got.status_code == 200, got.text
    return got.json()


def streamed(http: httpx.Client, **options: object) -> list[dict]:
    text = http.post("/v1/messages", json={**BASE, **options, "stream": True}).text
    events = []
    for part in text.split("\n\n"):
        lines = [line for line in part.splitlines() if not line.startswith(":")]
        if lines:
            name, data = lines
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
    return events


def joined(events: list[dict]) -> list[dict]:
    """The blocks that a client makes of a stream."""
    blocks: list[dict] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({**event["content_block"], "open": True, "json": ""})
        elif event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            assert block["open"]
            kind = delta["type"].removesuffix("_delta")
            if kind == "input_json":
                block["json"] += delta["partial_json"]
            else:
                assert kind == block["type"]
                block[kind] += delta[kind]
        elif event["type"] == "content_block_stop":
            assert blocks[event["index"]].pop("open")
    for block in blocks:
        assert "open" not in block
        text = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(text)
    return blocks


def test_an_answer_is_a_message_of_blocks(http: httpx.Client) -> None:
    got = ask(http)
    assert got["content"] == [
        {"type": "thinking", "thinking": "Hm, four.", "signature": ""},
        {"type": "text", "text": "It is four."},
    ]
    assert (got["type"], got["role"], got["model"], got["stop_reason"]) == (
        "message",
        "assistant",
        "thinker",
        "end_turn",
    )
    assert got["id"].startswith("msg_")
    used = got["usage"]
    again = ask(http)["usage"]
    assert used["output_tokens"] == len(SAID["thinker"]) + 1
    assert (
        again["input_tokens"] + again["cache_read_input_tokens"]
        == used["input_tokens"] + used["cache_read_input_tokens"]
    )
    counted = http.post("/v1/messages/count_tokens", json={"model": "thinker", "messages": ASKED}).json()
    assert counted == {"input_tokens": used["input_tokens"] + used["cache_read_input_tokens"]}


def test_a_stream_tells_of_the_same_blocks(http: httpx.Client) -> None:
    events = streamed(http)
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    begun = events[0]["message"]
    assert (begun["content"], begun["stop_reason"], begun["role"]) == ([], None, "assistant")
    assert joined(events) == ask(http)["content"]
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == len(SAID["thinker"]) + 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [None, {"type": "any"}, {"type": "tool", "name": "add"}])
def test_calls_are_blocks(http: httpx.Client, stream: bool, choice: dict | None) -> None:
    asked = {"model": "caller", "tools": [ADD], **({"tool_choice": choice} if choice else {})}
    if stream:
        events = streamed(http, **asked)
        blocks, reason = joined(events), events[-2]["delta"]["stop_reason"]
    else:
        got = ask(http, **asked)
        blocks, reason = got["content"], got["stop_reason"]
    call = blocks[-1]
    assert (call["type"], call["name"], reason) == ("tool_use", "add", "tool_use")
    if choice is None:
        assert blocks[0] == {"type": "text", "text": "Let me see."}
        assert call["input"] == {"a": 2}
    else:
        assert [block["type"] for block in blocks] == ["tool_use"]
    assert call["id"].isalnum()


def test_why_an_answer_ended(http: httpx.Client) -> None:
    assert ask(http, max_tokens=3)["stop_reason"] == "max_tokens"
    stopped = ask(http, stop_sequences=[" four"])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", " four")
    assert stopped["content"][-1]["text"] == "It is"
    either = ask(http, stop_sequences=[" four", "zzz"])
    assert (either["stop_reason"], either["stop_sequence"]) == ("stop_sequence", None)
    assert ask(http, stop_sequences=["zzz"])["stop_reason"] == "end_turn"
    cut = ask(http, model="caller", tools=[ADD], tool_choice={"type": "any"}, max_tokens=4)
    assert cut["stop_reason"] == "max_tokens"


def test_a_form_that_is_whole_was_ended_by_no_stop_sequence(http: httpx.Client) -> None:
    form = {"type": "json_schema", "schema": {"type": "boolean"}}
    held = ask(http, stop_sequences=["zzz"], output_config={"format": form})
    assert (held["stop_reason"], held["stop_sequence"]) == ("end_turn", None)
    asked = {"tools": [ADD], "tool_choice": {"type": "tool", "name": "add"}}
    called = ask(http, model="caller", stop_sequences=["zzz"], **asked)
    assert (called["stop_reason"], called["stop_sequence"]) == ("tool_use", None)


def test_thinking_is_switched_by_the_template(http: httpx.Client) -> None:
    def count(**more: object) -> int:
        used = ask(http, model="opened", **more)["usage"]
        return used["input_tokens"] + used["cache_read_input_tokens"]

    assert count(thinking={"type": "disabled"}) == count() - len("<think>\n")
    assert count(thinking={"type": "enabled", "budget_tokens": 1024}) == count()
    assert count(output_config={"effort": "none"}) == count() - len("<think>\n")


def test_a_form_holds_the_text(http: httpx.Client) -> None:
    form = {"type": "json_schema", "schema": {"type": "boolean"}}
    got = ask(http, output_config={"format": form})
    assert json.loads(got["content"][-1]["text"]) in (True, False)


def test_turns_are_messages_of_a_chat() -> None:
    use = {"type": "tool_use", "id": "abc", "name": "add", "input": {"a": 1}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    result = {
        "type": "tool_result",
        "tool_use_id": "abc",
        "content": [{"type": "text", "text": "3"}],
        "is_error": False,
    }
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "2?"}]},
        {"role": "assistant", "content": [thought, {"type": "redacted_thinking", "data": "z"}, use]},
        {
            "role": "user",
            "content": [result, {"type": "text", "text": "Well?", "cache_control": {"type": "ephemeral"}}],
        },
    ]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    query = parse_turns({**BASE, "system": system, "messages": turns}).query
    assert [(m.role, m.content) for m in query.messages] == [
        ("system", "Be brief."),
        ("user", "1 + 2?"),
        ("assistant", ""),
        ("tool", "3"),
        ("user", "Well?"),
    ]
    assert (query.messages[2].reasoning, query.messages[2].calls[0].name) == ("Hm.", "add")
    assert (query.messages[3].call_id, query.messages[3].name) == ("abc", "add")
    tools = [{**ADD, "strict": True, "cache_control": None}]
    chosen = parse_turns(
        {**BASE, "tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    ).query
    function = {"name": "add", "description": "adds", "parameters": ADD["input_schema"], "strict": True}
    assert (chosen.calling, chosen.tools) == (Calling(True, False), ({"type": "function", "function": function},))
    assert parse_turns({**BASE, "tools": tools, "tool_choice": {"type": "none"}}).query.tools == ()


def test_an_empty_last_turn_of_the_assistants_is_no_beginning() -> None:
    """Anthropic's API lets the last one alone be empty."""
    anew = parse_turns({**BASE, "seed": 1, "messages": ASKED}).query
    for empty in ("", [], [{"type": "text", "text": ""}]):
        messages = [*ASKED, {"role": "assistant", "content": empty}]
        assert parse_turns({**BASE, "seed": 1, "messages": messages}).query == anew
    begun = parse_turns({**BASE, "messages": [*ASKED, {"role": "assistant", "content": "It"}]}).query
    assert begun.continues
    nothing = parse_turns({**BASE, "messages": [{"role": "assistant", "content": ""}]}).query
    assert (nothing.messages, nothing.continues) == ((), False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": None}, "[max_tokens] is missing"),
        ({"max_tokens": 0}, "[max_tokens] is 0"),
        ({"messages": []}, "[messages] is missing or empty"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "[messages[0]] has no known role"),
        ({"messages": [{"role": "system", "content": [{"type": "image"}]}]}, "[messages[0].content[0]] is no text"),
        ({"thread": {"type": "create"}}, "[thread] is {'type': 'create'}, which Coterie does not implement"),
        (
            {"messages": [*ASKED, {"role": "assistant", "content": " "}]},
            "[messages] the last one is to be continued",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "[messages[0].content[0]] is no text"),
        ({"messages": [{"role": "user", "content": 3}]}, "[messages[0].content] is neither text nor blocks"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "does not say of which"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "[tools[0]] is of type 'web_search_20250305'",
        ),
        ({"tools": [{"name": ""}]}, "[tools[0]] is no function with a name"),
        ({"tools": [{**ADD, "input_schema": 3}]}, "[tools[0].input_schema] is 3"),
        ({"tool_choice": {"type": "maybe"}}, "[tool_choice.type] is 'maybe'"),
        ({"tools": [ADD], "tool_choice": {"type": "tool", "name": "rm"}, "model": "caller"}, "names 'rm'"),
        ({"thinking": {"type": "much"}}, "[thinking.type] is 'much'"),
        ({"mcp_servers": [{}]}, "[mcp_servers] is"),
        ({"stop": ["x"]}, "[stop] is not a known field"),
        ({"stop_sequences": [3]}, "[stop_sequences]"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"not": {}}}}}, "[output_config.format]"),
        ({"output_config": {"effort": "much"}}, "[output_config.effort]"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, "context"),
    ],
)
def test_what_is_refused_is_named(http: httpx.Client, change: dict, words: str) -> None:
    body = {**BASE, **change}
    for stream in (False, True):
        got = http.post("/v1/messages", json={**body, "stream": stream})
        assert got.status_code == 400, got.text
        assert got.json()["type"] == "error"
        assert got.json()["error"]["type"] == "invalid_request_error"
        assert words in got.json()["error"]["message"]


def test_errors_have_the_kinds_of_this_endpoint(http: httpx.Client) -> None:
    got = http.post("/v1/messages", json={**BASE, "model": "nobody"})
    assert (got.status_code, got.json()["error"]["type"]) == (404, "not_found_error")
    assert http.get("/v1/messages").json()["type"] == "error"
    assert http.post("/v1/messages", content=b"{").json()["error"]["type"] == "invalid_request_error"
    unknown = http.post("/v1/messages/count_tokens", json={"model": "nobody", "messages": ASKED})
    assert unknown.json()["error"]["type"] == "not_found_error"


def test_a_client_that_asks_the_server_to_keep_its_conversation_is_told_to_go_on_without(http: httpx.Client) -> None:
    """Anthropic's tool runner begins so, and sends all of a conversation itself when it reads this."""
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        error = http.post(path, json={**BASE, "thread": {"type": "create"}}).json()["error"]
        assert error["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert "details" not in http.post("/v1/messages", json={**BASE, "container": "x"}).json()["error"]


def test_a_system_message_may_stand_between_turns() -> None:
    turns = [*ASKED, {"role": "assistant", "content": "4"}, {"role": "system", "content": "Be brief."}, *ASKED]
    said = parse_turns({**BASE, "messages": turns, "diagnostics": {}, "output_config": {"effort": "max"}}).query
    assert [one.role for one in said.messages] == ["user", "assistant", "system", "user"]
    assert (said.messages[2].content, said.switches["reasoning_effort"]) == ("Be brief.", "high")


def test_a_key_may_come_in_either_header(url: str) -> None:
    for headers, status in (
        ({}, 401),
        ({"x-api-key": "wrong"}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "Bearer wrong", "x-api-key": "secret"}, 401),
    ):
        got = httpx.post(f"{url}/v1/messages", json=BASE, headers=headers)
        assert got.status_code == status
        assert status == 200 or got.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("field", ["thinking", "tool_choice"])
@pytest.mark.parametrize("kind", [["enabled"], {"a": 1}, "x", None, 1])
def test_a_type_that_is_none_is_refused_by_its_name(field: str, kind: object) -> None:
    """Lists and objects too, which are no keys of a table."""
    body = {"model": "ada", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}], field: {"type": kind}}
    with pytest.raises(RequestError, match=rf"\[{field}.type\] is "):
        parse_turns(body)

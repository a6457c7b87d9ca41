"""Answers that go on with a last message of the assistant's: by Anthropic's API always, by OpenAI's if it is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.model.test_tool_templates import HERMES, TOOLS
from tests.system.scripted import write_scripted
from tests.system.serving import served
from tests.system.test_reasoning import CHANNELS, MARKS, TURNS

from coterie.api import Coterie, Message, Query
from coterie.core.errors import RequestError

BEGUN = "[It]"  # a scripted expert answers what ends with a bracket
PLAIN = '{"name": "add", "arguments": {"a": 1}}'
SAID = {
    "plain": [" is", " four."],
    "thinker": [" is", " four."],
    "thinking": ["Hm.", "</think>", "\n\n", "Four."],
    "caller": [
        " ",
        '{"name": "add", "arguments": {"a": 1}}',
        "\n<tool_call>\n",
        '{"name": "add", "arguments": ',
        "{}}",
    ],
    "channels": [" is", " four."],
}
TEMPLATES = {
    "plain": TURNS.replace("</think>", ""),
    "thinker": TURNS,
    "thinking": TURNS,
    "caller": HERMES,
    "channels": CHANNELS,
}
ASKED = [{"role": "user", "content": "What is 2 + 2?"}]
TURN = {"role": "assistant", "content": BEGUN}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("begun")
    for name, pieces in SAID.items():
        write_scripted(root / name, pieces, TEMPLATES[name], special=MARKS)
    return root


@pytest.fixture(scope="module")
def http(root: Path) -> Iterator[httpx.Client]:
    with served(Coterie.open(root)) as url, httpx.Client(base_url=url) as client:
        yield client


def chat(http: httpx.Client, name: str, turn: dict = TURN, **options: object) -> dict:
    body = {"model": name, "messages": [*ASKED, turn], "continue_final_message": True, "seed": 1, **options}
    got = http.post("/v1/chat/completions", json=body)
    assert got.status_code == 200, got.text
    return got.json()


@pytest.mark.parametrize("name", ["plain", "thinker", "channels"])
def test_an_answer_goes_on_with_the_last_message(http: httpx.Client, name: str) -> None:
    got = chat(http, name, add_generation_prompt=False)
    assert got["choices"][0]["message"]["content"] == " is four."
    said = {"model": name, "messages": [*ASKED, TURN], "continue_final_message": True}
    tokens = http.post("/tokenize", json=said).json()["tokens"]
    assert len(tokens) == got["usage"]["prompt_tokens"]
    assert bytes(tokens[-len(BEGUN) :]) == BEGUN.encode()
    turn = http.post("/v1/messages", json={"model": name, "messages": [*ASKED, TURN], "max_tokens": 9}).json()
    assert turn["content"] == [{"type": "text", "text": " is four."}]
    counted = http.post("/v1/messages/count_tokens", json={"model": name, "messages": [*ASKED, TURN]}).json()
    assert counted == {"input_tokens": len(tokens)}


@pytest.mark.parametrize("name", ["plain", "thinker", "channels"])
def test_a_stream_goes_on_with_it_too(http: httpx.Client, name: str) -> None:
    asked = {"model": name, "messages": [*ASKED, TURN], "stream": True}
    text = http.post("/v1/chat/completions", json={**asked, "continue_final_message": True}).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == " is four."
    text = http.post("/v1/messages", json={**asked, "max_tokens": 9}).text
    deltas = [json.loads(line[6:]).get("delta", {}) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(delta.get("text", "") for delta in deltas) == " is four."


def test_without_the_word_an_answer_begins_anew(http: httpx.Client) -> None:
    """The prompt has the beginning of an answer behind that message."""
    usual, begun = chat(http, "plain", continue_final_message=None), chat(http, "plain")
    more = len("\nassistant\n")
    assert usual["usage"]["prompt_tokens"] == begun["usage"]["prompt_tokens"] + more
    assert chat(http, "plain", continue_final_message=False, add_generation_prompt=True)["usage"] == usual["usage"]


def test_a_thought_that_was_begun_goes_on_as_one(http: httpx.Client) -> None:
    got = chat(http, "thinking", {"role": "assistant", "content": "<think>[so]"})["choices"][0]["message"]
    assert (got["reasoning_content"], got["content"]) == ("Hm.", "Four.")
    whole = chat(http, "thinking", {"role": "assistant", "content": "<think>x</think>[so]"})["choices"][0]["message"]
    assert whole["content"] == "".join(SAID["thinking"])


def test_calls_are_found_behind_it_by_their_marks(http: httpx.Client) -> None:
    """Not without: what is there of the answer stands before them."""
    got = chat(http, "caller", tools=TOOLS)["choices"][0]["message"]
    assert got["content"].strip() == PLAIN
    assert [call["function"]["arguments"] for call in got["tool_calls"]] == ["{}"]


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"add_generation_prompt": True}, "[add_generation_prompt] is True, while continue_final_message is True"),
        ({"continue_final_message": False, "add_generation_prompt": False}, "[add_generation_prompt] is False, while"),
        ({"continue_final_message": "yes"}, "[continue_final_message] is"),
        ({"messages": ASKED}, "[messages] the last one is to be continued"),
        ({"response_format": {"type": "json_object"}}, "[response_format] constrains the whole answer"),
        ({"tools": TOOLS, "tool_choice": "required"}, "[tools] constrain the whole answer"),
    ],
)
def test_what_cannot_be_is_refused(http: httpx.Client, options: dict, fact: str) -> None:
    body = {"model": "caller", "messages": [*ASKED, TURN], "continue_final_message": True, **options}
    got = http.post("/v1/chat/completions", json=body)
    assert got.status_code == 400
    assert fact in got.json()["error"]["message"]


def test_a_whole_conversation_is_reused(root: Path) -> None:
    messages = (Message("user", "What is 2 + 2? " * 20), Message("assistant", BEGUN))
    query = Query(messages, "plain", continues=True)
    with Coterie.open(root) as coterie:
        first, again = coterie.ask(query), coterie.ask(query)
    assert (first.cached_tokens, again.text) == (0, first.text)
    assert again.cached_tokens >= 256


def test_python_says_so_too(root: Path) -> None:
    query = Query((Message("user", "x"), Message("assistant", BEGUN)), "plain", continues=True)
    with Coterie.open(root) as coterie:
        with pytest.raises(RequestError, match="constrains the whole answer"):
            coterie.ask(replace(query, form='{"type": "object"}'))
        assert coterie.ask(query).text == " is four."

"""What clients send that says nothing, or says it otherwise: bodies of requests as the server reads them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.system.serving import served
from tests.system.tiny import TEMPLATE, write_expert

from coterie.api import Coterie, Message
from coterie.core.errors import RequestError
from coterie.server.inputs import parse_response
from coterie.server.openai import parse_chat

USER = {"role": "user", "content": "and?"}
CALL = {"id": "call12345", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def chat(**body: Any) -> Any:
    return parse_chat({"model": "ada", "messages": [USER], **body}).query


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"content": None}, ""),
        ({}, ""),
        ({"content": None, "refusal": None, "audio": None, "function_call": None, "annotations": []}, ""),
        ({"content": None, "tool_calls": [CALL]}, ""),
        ({"content": "Yes.", "tool_calls": []}, "Yes."),
        ({"content": None, "refusal": "I will not."}, "I will not."),
        ({"content": [{"type": "text", "text": "I "}, {"type": "refusal", "refusal": "will not."}]}, "I will not."),
    ],
)
def test_what_an_assistant_said_comes_back_as_it_was_sent(said: dict[str, Any], text: str) -> None:
    """As OpenAI's client dumps an answer's message: all its fields, most of them null."""
    message, _ = chat(messages=[{"role": "assistant", **said}, USER]).messages
    assert (message.role, message.content) == ("assistant", text)
    assert [call.name for call in message.calls] == [call["function"]["name"] for call in said.get("tool_calls", [])]


@pytest.mark.parametrize(
    ("message", "where"),
    [
        ({"role": "user", "content": None}, "messages[0]"),
        ({"role": "assistant", "content": None, "function_call": CALL["function"]}, "messages[0].function_call"),
        ({"role": "assistant", "audio": {"id": "audio_1"}}, "messages[0].audio"),
        ({"role": "assistant", "refusal": ["no"]}, "messages[0].refusal"),
        ({"role": "assistant", "content": [{"type": "refusal", "text": "no"}]}, "messages[0]"),
    ],
)
def test_what_no_text_stands_for_is_refused(message: dict[str, Any], where: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(messages=[message, USER])
    assert caught.value.where == where


def test_what_another_model_thought_is_passed_over() -> None:
    """Calls behind it still belong to the message before it."""
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    called = {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"}
    found = parse_response({"model": "ada", "input": [thought, refused, thought, called, USER]}).query.messages
    assert [(m.role, m.content, len(m.calls)) for m in found] == [("assistant", "No.", 1), ("user", "and?", 0)]
    assert found[1] == Message("user", "and?")


@pytest.mark.parametrize("seed", [-(2**63), -5, 0, 2**53 + 1, 2**63 - 1, 2**64 - 1])
def test_any_seed_of_64_bits_is_one(seed: int) -> None:
    assert chat(seed=seed).sampling.seed == seed % 2**64
    assert parse_response({"model": "ada", "input": "x", "seed": seed}).query.sampling.seed == seed % 2**64


def test_a_negative_seed_is_the_same_seed_each_time(composition: Path) -> None:
    with served(Coterie.open(composition)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:

        def text(seed: int) -> str | None:
            asked: Any = {"model": "ada", "messages": [USER], "max_tokens": 8, "temperature": 1.5, "seed": seed}
            got = client.chat.completions.create(**asked, n=2)
            assert [choice.coterie["seed"] for choice in got.choices] == [seed % 2**64, (seed + 1) % 2**64]
            return got.choices[0].message.content

        assert text(-5) == text(2**64 - 5) != text(5)


def test_numbers_of_languages_without_integers_are_whole() -> None:
    asked = chat(seed=7.0, max_tokens=20.0, top_k=3.0, n=1.0)
    assert (asked.sampling.seed, asked.max_tokens, asked.sampling.top_k) == (7, 20, 3)
    for wrong in (7.5, 2.0**64):
        with pytest.raises(RequestError, match="whole number of 64 bits"):
            chat(seed=wrong)


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [(None, ()), ("", ()), ([], ()), ([""], ()), (["a", ""], ("a",)), ("a", ("a",)), (["\n", "b"], ("\n", "b"))],
)
def test_an_empty_stop_string_stops_nothing(stop: Any, wanted: tuple[str, ...]) -> None:
    assert chat(stop=stop).stop == wanted


def test_an_answers_bound_is_refused_by_the_name_that_was_sent() -> None:
    for older, said in ((3, 3), (3.0, 3), (-1, 3), (None, 3)):
        assert chat(max_completion_tokens=3, max_tokens=older).max_tokens == said
    assert chat(max_completion_tokens=-1, max_tokens=5).max_tokens == 5
    for name in ("max_completion_tokens", "max_tokens"):
        assert chat(**{name: 3}).max_tokens == 3
        with pytest.raises(RequestError, match=rf"\[{name}\] is 0") as caught:
            chat(**{name: 0})
        assert caught.value.where == name


def test_no_limit_of_top_k_may_be_said_as_vllm_says_it() -> None:
    assert chat(top_k=-1, seed=1).sampling == chat(top_k=0, seed=1).sampling
    assert chat(top_k=-1).sampling.top_k == 0  # which goes before an expert's default, as leaving it out does not
    assert chat().sampling.top_k is None
    with pytest.raises(RequestError, match="top_k is -2"):
        chat(top_k=-2)


def test_a_chat_template_reads_its_switches(tmp_path: Path) -> None:
    """A chat and /tokenize alike; who has none, or another one, takes no notice."""
    thinks = "{{ '<think>' if enable_thinking is not defined or enable_thinking }}{{ effort or '' }}"
    for seed, (name, more) in enumerate((("plain", ""), ("thinker", thinks))):
        write_expert(tmp_path / name, seed)
        (tmp_path / name / "chat_template.jinja").write_text(TEMPLATE + more)
    body = {"messages": [USER], "max_tokens": 1}
    with served(Coterie.open(tmp_path)) as url:
        for model, switches, more in (
            ("plain", {"enable_thinking": False}, ""),
            ("thinker", None, "<think>"),
            ("thinker", {"enable_thinking": True, "effort": "low"}, "<think>low"),
            ("thinker", {"enable_thinking": False}, ""),
        ):
            asked = {"model": model, "chat_template_kwargs": switches}
            got = httpx.post(f"{url}/v1/chat/completions", json={**body, **asked}).json()
            tokens = httpx.post(f"{url}/tokenize", json={"messages": [USER], **asked}).json()["tokens"]
            assert got["usage"]["prompt_tokens"] == len(tokens) == len("and?") + 2 + len(more)
        refused = httpx.post(f"{url}/tokenize", json={"model": "plain", "prompt": "x", "chat_template_kwargs": {}})
        assert "[chat_template_kwargs] are read by a chat template alone" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("switches", "where"),
    [({"tools": []}, "chat_template_kwargs.tools"), ({"messages": 1}, "chat_template_kwargs.messages"),
     ([], "chat_template_kwargs"), ("x", "chat_template_kwargs")],
)  # fmt: skip
def test_switches_are_no_way_around_a_request(switches: Any, where: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(chat_template_kwargs=switches)
    assert caught.value.where == where


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_usage_is_null_in_a_stream_until_its_last_event(composition: Path, path: str, n: int) -> None:
    """Where it is asked for, and else not there."""
    said = {"messages": [USER]} if path.startswith("chat") else {"prompt": "and?"}
    body = {"model": "ada", "max_tokens": 4, "stream": True, "n": n, **said}
    with served(Coterie.open(composition)) as url:
        for options in ({}, {"include_usage": True}):
            text = httpx.post(f"{url}/v1/{path}", json={**body, "stream_options": options}).text
            *events, done = [line.removeprefix("data: ") for line in text.splitlines() if line]
            assert done == "[DONE]"
            found = [httpx.Response(200, text=event).json() for event in events]
            if not options:
                assert all("usage" not in event for event in found)
                continue
            *before, last = found
            assert all(event["usage"] is None for event in before)
            assert (last["choices"], last["usage"]["prompt_tokens"]) == ([], 4 + 2 * path.startswith("chat"))


def test_half_of_a_body_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.server.reading.PART_S", 0.2)
    with served(Coterie.open(write_expert(tmp_path / "ada", 0))) as url:
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port or 80), timeout=60) as caller:
            caller.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"model": ')
            said = b"".join(iter(lambda: caller.recv(4096), b""))  # until the connection is closed
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"[body] stopped after 10 bytes, and nothing came for 0.2 s; send all of it" in said

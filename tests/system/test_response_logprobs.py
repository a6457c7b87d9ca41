"""Logprobs of responses: those of a chat, of a message's text alone, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.model.test_tool_templates import HERMES
from tests.system.callers import SAID, SET
from tests.system.scripted import write_scripted
from tests.system.serving import served
from tests.system.test_reasoning import SAID as THOUGHT
from tests.system.test_reasoning import TURNS
from tests.system.tiny import write_expert

from coterie.api import Coterie
from coterie.api.logprobs import TokenLogprob
from coterie.server import choices
from coterie.server.token_texts import TokenTexts

INCLUDED = ["message.output_text.logprobs"]
ADD = {"type": "function", "name": "add", "parameters": SET}
BEHIND = ["Let me.\n", "<tool_call>\n", '{"name": "add", "arguments": {"a": "me"}}', "\n</tool_call>", " me", " too"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root: Path = tmp_path_factory.mktemp("scored")
    write_scripted(root / "hermes", SAID["hermes"], HERMES)
    write_scripted(root / "behind", BEHIND, HERMES)
    write_scripted(root / "thinker", THOUGHT["thinker"], TURNS)
    write_expert(root / "plain", 1, max_position_embeddings=512)
    with served(Coterie.open(root)) as found:
        yield found


def ask(client: openai.OpenAI, stream: bool, **options: Any) -> Any:
    """The response, whole or at the end of a stream, whose events have the same logprobs without bytes."""
    options = {"input": "What is 2 + 3?", "include": INCLUDED, **options}
    if not stream:
        return client.responses.create(**options)
    events = list(client.responses.create(**options, stream=True))
    for place, item in enumerate(events[-1].response.output):
        its = [event for event in events if getattr(event, "output_index", None) == place]
        said = {kind: [one for event in its if event.type == f"response.output_text.{kind}" for one in event.logprobs]
                for kind in ("delta", "done")}  # fmt: skip
        deltas, done = said["delta"], said["done"]
        assert [one.model_dump() for one in deltas] == [one.model_dump() for one in done]
        whole = [one for part in (item.content if item.type == "message" else ()) for one in part.logprobs]
        assert [(one.token, one.logprob) for one in deltas] == [(one.token, one.logprob) for one in whole]
        tops = [[(other.token, other.logprob) for other in one.top_logprobs] for one in whole]
        assert [[(other.token, other.logprob) for other in one.top_logprobs] for one in deltas] == tops
        assert not any(hasattr(one, "bytes") for one in deltas)
    return events[-1].response


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("top", [None, 3])
def test_they_are_those_of_a_chat(client: openai.OpenAI, stream: bool, top: int | None) -> None:
    more = {"temperature": 0.8, "extra_body": {"seed": 4}}
    got = ask(client, stream, model="plain", input="hello", max_output_tokens=40, top_logprobs=top, **more)
    said = [{"role": "user", "content": "hello"}]
    told = {"logprobs": True, "top_logprobs": top}
    chat = client.chat.completions.create(model="plain", messages=said, max_tokens=40, **told, **more).choices[0]
    (part,) = got.output[0].content
    assert part.text == chat.message.content
    assert [one.model_dump() for one in part.logprobs] == [one.model_dump() for one in chat.logprobs.content]
    assert len(part.logprobs) > 3
    assert {len(one.top_logprobs) for one in part.logprobs} == {top or 0}
    assert got.top_logprobs == (top or 0)


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_and_calls_have_none(client: openai.OpenAI, stream: bool) -> None:
    text, call = ask(client, stream, model="hermes", tools=[ADD]).output
    assert (text.content[0].text, call.type) == ("Let me see.", "function_call")
    assert [one.token for one in text.content[0].logprobs] == ["Let me", " see.\n"]
    thought, text = ask(client, stream, model="thinker").output
    assert (thought.type, text.content[0].text) == ("reasoning", "It is four.")
    assert [one.token for one in text.content[0].logprobs] == ["\n\nIt is", " four."]


@pytest.mark.parametrize("stream", [False, True])
def test_text_behind_a_call_has_its_own(client: openai.OpenAI, stream: bool) -> None:
    before, call, behind = ask(client, stream, model="behind", tools=[ADD]).output
    assert call.arguments == '{"a": "me"}'
    assert [one.token for one in before.content[0].logprobs] == ["Let me.\n"]
    assert [one.token for one in behind.content[0].logprobs] == [" me", " too"]


def test_without_them_a_part_has_none(client: openai.OpenAI) -> None:
    got = client.responses.create(model="plain", input="hello", max_output_tokens=5)
    assert (got.output[0].content[0].logprobs, got.top_logprobs) == ([], 0)


def test_they_are_stored_and_change_no_prompt(client: openai.OpenAI) -> None:
    first = ask(client, False, model="plain", input="hello", max_output_tokens=5, top_logprobs=1)
    kept = client.responses.retrieve(first.id)
    assert kept.output == first.output
    bare = client.responses.create(model="plain", input="hello", max_output_tokens=5)
    assert first.output[0].content[0].text == bare.output[0].content[0].text
    more = {"model": "plain", "input": "go on", "max_output_tokens": 5}
    onwards = [client.responses.create(**more, previous_response_id=one.id) for one in (first, bare)]
    assert onwards[0].usage.input_tokens == onwards[1].usage.input_tokens


def test_very_many_are_written_beside_the_loop(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"model": "plain", "input": "hello", "include": INCLUDED, "top_logprobs": 3, "max_output_tokens": 30}
    few = httpx.post(f"{url}/v1/responses", json=body).json()
    monkeypatch.setattr(choices, "QUICK_LOGPROBS", 1)
    monkeypatch.setattr(choices, "RUN", 2)
    many = httpx.post(f"{url}/v1/responses", json=body).json()
    assert many["output"][0]["content"] == few["output"][0]["content"]


def spelled(*texts: bytes) -> list[TokenLogprob]:
    return [TokenLogprob(number, "", text, -1.0) for number, text in enumerate(texts)]


def taken(texts: TokenTexts, text: str, behind: str = "") -> list[tuple[str, list[int]]]:
    return [(piece, [one.token_id for one in tokens]) for piece, tokens in texts.take(text, behind)]


def test_tokens_of_a_text_are_found_in_order() -> None:
    texts = TokenTexts()
    texts.add(spelled(b"<t>\n", b"a", b" \xc3", b"\xa9", b"b<"))
    assert taken(texts, "") == []
    assert taken(texts, "a é") == [("a", [1]), (" ", [2]), ("é", [3])]
    assert taken(texts, "b") == [("b", [4])]
    assert taken(texts, "<") == [("<", [])]  # given out with what it began with
    texts.add(spelled(b"x", b"</t>", b"x", b"y"))
    assert taken(texts, "x", behind="x") == [("x", [2])]
    texts.forget(last=1)
    assert taken(texts, "other") == [("other", [3])]
    assert taken(texts, "z") == [("z", [])]


def test_a_text_is_no_part_of_what_is_not_shown() -> None:
    """Where it can be of tokens of its own."""
    texts = TokenTexts()
    texts.add(spelled(b"</think>", b"\n\n", b"think", b" so"))
    assert taken(texts, "think") == [("think", [2])]
    assert taken(texts, " so") == [(" so", [3])]
    texts.add(spelled(b"</think>", b" a b", b" ab"))
    assert taken(texts, "a b") == [("a b", [1])]

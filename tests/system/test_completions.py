"""Text completions, and several choices of one prompt, by the official OpenAI client over a real socket."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
from tests.system.serving import leaves, served
from tests.system.test_python import open_held, until_idle

from coterie.api import Coterie, Message, Options, Query
from coterie.engine.request import SamplingParams

LONG = "for ada: " + "a long question " * 3  # a block holds 32 tokens


@pytest.fixture(scope="module")
def alone(composition: Path) -> Iterator[Coterie]:
    """Answers one query at a time, and reuses nothing."""
    with Coterie.open(str(composition), Options(reuse=False)) as found:
        yield found


def raw(prompt: str, model: str = "four", seed: int = 0, temperature: float = 0.0, max_tokens: int = 6) -> Query:
    sampling = SamplingParams(temperature, seed=seed)
    return Query((Message("user", prompt),), model, sampling, max_tokens=max_tokens, raw=True)


def complete(client: openai.OpenAI, prompt: object, **options):
    return client.completions.create(**{"model": "four", "max_tokens": 6, "prompt": prompt, **options})


def streamed(events, count: int) -> list[str]:
    """The text of each choice."""
    texts = [""] * count
    for event in events:
        for choice in event.choices:
            texts[choice.index] += choice.text
    return texts


def test_a_completion_is_raw_text_to_the_routers_choice(client: openai.OpenAI, alone: Coterie) -> None:
    got = complete(client, "for bob")
    wanted = alone.ask(raw("for bob"))
    assert (got.model, got.choices[0].text) == ("bob", wanted.text)
    assert got.choices[0].finish_reason == wanted.finish_reason
    assert got.usage.prompt_tokens == len("for bob")  # no template: a byte is a token here
    assert got.usage.completion_tokens == len(wanted.token_ids)
    assert (got.object, got.id[:5], got.coterie["expert"]) == ("text_completion", "cmpl-", "bob")
    assert complete(client, "for bob", model="cyd").choices[0].text == alone.ask(raw("for bob", "cyd")).text


def test_sixteen_tokens_where_nothing_is_said(client: openai.OpenAI) -> None:
    lengths = [
        client.completions.create(model=name, prompt=text).usage.completion_tokens
        for name in ("ada", "bob", "cyd", "dan")
        for text in ("one", "two")
    ]
    assert max(lengths) == 16


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_of_every_form(client: openai.OpenAI, alone: Coterie, stream: bool) -> None:
    """Tokens are bytes here, the same in all experts, so that the router can read them too."""
    texts = ["for ada", "and for bob", "nobody"]
    ids = [list(text.encode()) for text in texts]
    wanted = [alone.ask(raw(text)).text for text in texts]
    for prompt, answers in ((texts, wanted), (ids, wanted), (texts[0], wanted[:1]), (ids[0], wanted[:1])):
        got = complete(client, prompt, stream=stream)
        found = streamed(got, len(answers)) if stream else [choice.text for choice in got.choices]
        assert found == answers
    assert [choice.coterie["expert"] for choice in complete(client, texts).choices] == ["ada", "bob", "dan"]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_each_prompt_first(client: openai.OpenAI, alone: Coterie, stream: bool) -> None:
    texts = ["for ada", "for bob"]
    wanted = [text + alone.ask(raw(text)).text for text in texts for _ in range(2)]
    got = complete(client, texts, n=2, echo=True, stream=stream)
    assert (streamed(got, 4) if stream else [choice.text for choice in got.choices]) == wanted


def test_a_stream_ends_with_reasons_and_usage(client: openai.OpenAI) -> None:
    plain = complete(client, "for ada")
    *events, last = complete(client, "for ada", stream=True, stream_options={"include_usage": True})
    reasons = [event.choices[0].finish_reason for event in events]
    assert reasons == [*[None] * (len(reasons) - 1), plain.choices[0].finish_reason]
    assert (last.choices, last.usage.total_tokens) == ([], plain.usage.total_tokens)
    assert len({event.id for event in [*events, last]}) == 1


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_choices_count_their_seeds_up_and_share_the_prompt(
    client: openai.OpenAI, alone: Coterie, chat: bool, stream: bool
) -> None:
    """Asked for at once, one computes the prompt; of the others' whole blocks nothing is computed again."""
    prompt = f"{chat} {stream} {LONG}"  # each case's own, so that nothing is there before
    options = {"model": "ada", "n": 5, "seed": 2**64 - 2, "temperature": 1.0, "max_tokens": 8, "stream": stream}
    options |= {"stream_options": {"include_usage": True}} if stream else {}
    seeds = [2**64 - 2, 2**64 - 1, 0, 1, 2]
    query = raw(prompt, "ada", 0, 1.0, 8)
    wanted = [
        alone.ask(Query(query.messages, "ada", SamplingParams(1.0, seed=seed), max_tokens=8, raw=not chat))
        for seed in seeds
    ]
    if chat:
        got = client.chat.completions.create(messages=[{"role": "user", "content": prompt}], **options)
    else:
        got = client.completions.create(prompt=prompt, **options)
    texts, details = [""] * 5, [{}] * 5
    for event in got if stream else [got]:
        usage = event.usage
        for choice in event.choices:
            said = (choice.delta if stream else choice.message).content if chat else choice.text
            texts[choice.index] += said or ""
            if choice.finish_reason:
                details[choice.index] = event.coterie if stream else choice.coterie
    assert texts == [answer.text for answer in wanted]
    assert len(set(texts)) > 1
    assert [detail["seed"] for detail in details] == seeds
    blocks = (usage.prompt_tokens - 1) // 32 * 32
    assert sorted(detail["cached_tokens"] for detail in details) == [0, *[blocks] * 4]
    assert blocks >= 32
    assert usage.prompt_tokens == wanted[0].prompt_tokens
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert usage.completion_tokens == sum(len(answer.token_ids) for answer in wanted)


def test_seeds_that_nobody_gave_are_all_different(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(
        model="ada", n=128, temperature=1.0, max_tokens=2, messages=[{"role": "user", "content": "for ada"}]
    )
    assert [choice.index for choice in got.choices] == list(range(128))
    assert len({choice.coterie["seed"] for choice in got.choices}) == 128
    assert len({choice.message.content for choice in got.choices}) > 64


def test_a_prompts_choices_are_encoded_once(composition: Path) -> None:
    with Coterie.open(str(composition)) as coterie:
        text = coterie.texts["ada"].tokenizer
    ids = text.encode("the same")
    ids.append(5)
    assert text.encode("the same") == list(b"the same")
    assert text.encode("another") == list(b"another")


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_cancels_every_choice(composition: Path, stream: bool) -> None:
    coterie, arrives, _ = open_held(composition)
    metrics = coterie.parts.engine.metrics
    arrives.clear()
    with served(coterie) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        body = {"model": "four", "prompt": ["for ada", "for bob"], "n": 3, "stream": stream, "max_tokens": 6}
        leaves(url, "/v1/completions", body, lambda: metrics.submitted == 6)
        until_idle(coterie)
        arrives.set()
        assert metrics.finished["cancelled"] == 6
        assert complete(client, "for ada").model == "ada"


def test_nothing_is_written_to_who_has_left(composition: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A step of many choices has many chunks: written one by one, asyncio warns of each that a lost connection gets."""
    coterie = Coterie.open(str(composition))
    body = {"model": "ada", "prompt": "so", "stream": True, "n": 64, "max_tokens": 120, "temperature": 1}
    data = json.dumps(body).encode()
    with served(coterie) as url:
        for _ in range(3):
            address = httpx.URL(url)
            with socket.create_connection((address.host, address.port or 80)) as leaving:
                leaving.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data))
                leaving.sendall(data)
                assert leaving.recv(2000)
                leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # cut, not closed
            until_idle(coterie)
        assert coterie.parts.engine.metrics.finished["cancelled"] > 0
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_where_one_prompt_is_refused_none_is_asked(composition: Path) -> None:
    coterie = Coterie.open(str(composition))
    with served(coterie) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as caught:
                complete(client, ["for ada", "x" * 300], stream=stream)
            assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
        until_idle(coterie)
        assert coterie.parts.engine.metrics.finished["cancelled"] == 2
        assert coterie.parts.engine.metrics.drawn_tokens == 0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"prompt": ["a", []]}, "prompt[1]"),
        ({"prompt": ["a"] * 1025}, "at most 1024 answers"),
        ({"prompt": ["a"] * 9, "n": 128}, "at most 1024 answers"),
        ({"prompt": [5, 259]}, "token 1 is 259"),
        ({"prompt": "a", "suffix": "b"}, "[suffix] is given, but ada has no fill-in-the-middle tokens"),
        ({"prompt": [5], "suffix": "b"}, "[suffix] is given with a prompt of tokens"),
        ({"prompt": "a", "suffix": 3}, "[suffix] is 3"),
        ({"prompt": "a", "suffix": "b", "echo": True, "logprobs": 0}, "[suffix] is given with echo and logprobs"),
        ({"prompt": "a", "suffix": "b\ud800"}, "U+D800"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "best_of": 1, "n": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 21}, "is 21; give a whole number from 0 to 20"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "max_tokens": 0, "echo": True}, "max_tokens"),
        ({"prompt": "a", "n": 0}, "ask for 1 to 128 choices"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "echo": "yes"}, "[echo] is 'yes'; give true or false"),
        ({"prompt": "a", "stream_options": {"include_usage": "no"}}, "[stream_options.include_usage] is 'no'"),
        ({"prompt": "a", "stream_options": {"include_usages": True}}, "did you mean include_usage?"),
        ({"prompt": "a", "messages": []}, "messages"),
        ({"prompt": "a\ud800"}, "U+D800"),
    ],
)
def test_what_is_refused_is_named(url: str, change: dict, word: str) -> None:
    got = httpx.post(f"{url}/v1/completions", content=json.dumps({"model": "ada", **change}))
    error = got.json()["error"]
    assert (got.status_code, error["type"]) == (400, "invalid_request_error")
    assert word in error["message"]


def test_what_asks_for_nothing_is_taken(url: str) -> None:
    body = {"model": "ada", "prompt": "x", "best_of": 1, "suffix": "", "logprobs": None, "presence_penalty": 0.0}
    assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200


def test_tokens_of_different_tokenizers_want_an_experts_name(composition: Path) -> None:
    coterie = Coterie.open(str(composition))
    coterie.texts["bob"] = replace(coterie.texts["bob"], vocab_size=200)
    with served(coterie) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="four have different tokenizers; name the expert"):
            complete(client, [102, 111])
        assert complete(client, [102, 111], model="ada").model == "ada"
        with pytest.raises(openai.NotFoundError, match="eve"):
            complete(client, [102, 111], model="eve")

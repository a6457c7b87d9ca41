"""The server, asked by the official OpenAI client over a real socket, several requests at once."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from tests.system.serving import ask, leaves, served
from tests.system.test_python import open_held, until_idle

from coterie.api import Coterie, Message, Options, Query
from coterie.cli.listening import listen
from coterie.core.errors import CapacityError
from coterie.engine.request import SamplingParams
from coterie.server.models import model_list
from coterie.server.openai import error_body, parse_chat


@pytest.fixture(scope="module")
def url(composition: Path) -> Iterator[str]:
    # A budget of two of the four experts, so that requests at once must switch.
    with served(Coterie.open(str(composition), Options(near_bytes=200 * 1024))) as found:
        yield found


def test_models_lists_the_composition_and_its_experts(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["four", "ada", "bob", "cyd", "dan"]


def test_models_say_where_they_are_and_what_they_do(composition: Path) -> None:
    with served(Coterie.open(str(composition))) as url, httpx.Client(base_url=url) as client:
        body = {"model": "bob", "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        rows = {row["id"]: row["coterie"] for row in client.get("/v1/models").json()["data"]}
        lengths = {row["id"]: row["max_model_len"] for row in client.get("/v1/models").json()["data"]}
        alone = client.get("/v1/models/bob").json()["coterie"]
    assert lengths == dict.fromkeys(("four", "ada", "bob", "cyd", "dan"), 128)
    assert rows["four"] == {"kind": "composition", "experts": 4, "left_out": {}}
    places = {name: (row["state"], row["resident"], row["tier"]) for name, row in rows.items() if name != "four"}
    assert places == {
        "ada": ("absent", False, "disk"),
        "bob": ("resident", True, "dram"),
        "cyd": ("absent", False, "disk"),
        "dan": ("absent", False, "disk"),
    }
    assert alone == rows["bob"]
    assert (alone["description"], alone["chat_template"]) == ("random bob", True)
    assert (alone["pinned"], alone["running"], alone["waiting"]) == (False, 0, 0)
    assert alone["last_used_s"] > 0
    assert rows["ada"]["last_used_s"] is None


def test_models_say_no_more_than_the_kv_cache_holds(composition: Path) -> None:
    """A context of 128 tokens, and one block."""
    with Coterie.open(str(composition)) as coterie:
        block = coterie.parts.kv.block_bytes
    with Coterie.open(str(composition), Options(kv_bytes=block)) as coterie:
        held = coterie.parts.kv.tokens_held(coterie.models["ada"].kv)
        assert held < 128
        assert {row["max_model_len"] for row in model_list(coterie)} == {held}


def test_one_model_is_found_by_its_name(client: openai.OpenAI) -> None:
    assert [client.models.retrieve(name).id for name in ("four", "bob")] == ["four", "bob"]
    with pytest.raises(openai.NotFoundError, match="no such model among 5"):
        client.models.retrieve("eve")


@pytest.mark.parametrize("stream", [False, True])
def test_answers_of_fixed_length_go_on_behind_an_end(client: openai.OpenAI, stream: bool) -> None:
    """Nothing but an end token may come: so an answer ends at once, or has as many of them as were asked for."""
    ends = {"model": "ada", "temperature": 0, "max_tokens": 6, "logit_bias": {"256": 100}, "stream": stream}
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    for ask_for in (
        lambda **more: client.chat.completions.create(messages=[{"role": "user", "content": "x"}], **more),
        lambda **more: client.completions.create(prompt="x", **more),
    ):
        for extra, reason, tokens in (({}, "stop", 1), ({"ignore_eos": True}, "length", 6)):
            found = ask_for(**ends, **usage, extra_body=extra)
            pieces = list(found) if stream else [found]
            reasons = [choice.finish_reason for piece in pieces for choice in piece.choices]
            assert (reasons[-1], pieces[-1].usage.completion_tokens) == (reason, tokens)


def test_what_clients_send_that_asks_for_nothing_is_taken(url: str, client: openai.OpenAI) -> None:
    """Null for what their user left out, and defaults."""
    body = {"model": "ada", "messages": [{"role": "user", "content": "x", "name": "me"}], "max_tokens": 2}
    nothing = {"n": 1, "tools": [], "logit_bias": None, "frequency_penalty": 0.0, "verbosity": "low", "newer": None}
    plain, more = (httpx.post(f"{url}/v1/chat/completions", json={**body, **extra}) for extra in ({}, nothing))
    assert plain.status_code == more.status_code == 200
    assert plain.json()["choices"] == more.json()["choices"]
    assert "text" not in plain.json()["coterie"]  # once is enough
    with pytest.raises(openai.BadRequestError, match="verbosity"):
        ask(client, "for ada", extra_body={"verbosity": "loud"})


def test_a_developers_words_are_the_systems() -> None:
    """Templates of what runs here know no developer: Qwen's would drop the message without a word."""
    said = [{"role": role, "content": role} for role in ("developer", "system", "user", "assistant")]
    found = parse_chat({"model": "ada", "messages": said}).query.messages
    assert [m.role for m in found] == ["system", "system", "user", "assistant"]
    assert [m.content for m in found] == ["developer", "system", "user", "assistant"]


def test_a_prompt_longer_than_the_context_is_named_as_clients_know_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context of this expert") as caught:
        ask(client, "x" * 300)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_memory_can_never_hold_is_the_callers_to_change(composition: Path, stream: bool) -> None:
    """A block holds 32 tokens here, and there are two; what may have room later stays a 503."""
    with (
        served(Coterie.open(str(composition), Options(kv_bytes=8192))) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, "x" * 40, max_tokens=70, stream=stream)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
        words = "111 tokens (42 of the prompt, the others for max_tokens) needs 16.00 KiB but 8.00 KiB can be had"
        assert f"{words}; set max_tokens to at most 23 or set --kv to at least 16384 B" in str(caught.value)
        assert ask(client, "x" * 40, max_tokens=23).usage.prompt_tokens == 42
        assert ask(client, "x" * 40, max_tokens=None).usage.completion_tokens <= 23
    assert error_body(CapacityError("hbm", "the pool", 2, 1, ()))[0] == 503


def test_a_completion_names_its_expert_and_counts_tokens(client: openai.OpenAI) -> None:
    got = ask(client, "for bob")
    assert got.model == "bob"
    assert got.usage.prompt_tokens == len("for bob") + 2
    assert 1 <= got.usage.completion_tokens <= 6
    assert got.choices[0].finish_reason in ("stop", "length")
    assert got.coterie["expert"] == "bob"
    assert got.coterie["ttft_s"] > 0


def test_streamed_text_equals_plain_text(client: openai.OpenAI) -> None:
    plain = ask(client, "for ada", max_tokens=20).choices[0].message.content
    chunks = list(ask(client, "for ada", max_tokens=20, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == plain
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].usage.completion_tokens >= 1


def test_a_conversation_shares_the_state_of_its_earlier_turns(client: openai.OpenAI, composition: Path) -> None:
    """A block holds 32 tokens here. Turns repeat the questions; what random weights said is no text to repeat."""
    said, cached = [], []
    with Coterie.open(str(composition), Options(reuse=False)) as alone:
        for turn, text in enumerate(("for ada: " + "a long question " * 2, "and so on", "and on")):
            said.append({"role": "user", "content": text})
            options = {"model": "ada", "messages": said, "max_tokens": 9, "temperature": 0.7, "seed": turn}
            got = client.chat.completions.create(**options)
            cached.append(got.usage.prompt_tokens_details.cached_tokens)
            *_, last = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
            tokens = last.usage.prompt_tokens
            assert last.usage.prompt_tokens_details.cached_tokens == (tokens - 1) // 32 * 32
            asked = Query(tuple(Message(**m) for m in said), "ada", SamplingParams(0.7, seed=turn), max_tokens=9)
            assert got.choices[0].message.content == alone.ask(asked).text
            assert got.coterie["cached_tokens"] == cached[-1]
            said.append({"role": "assistant", "content": "yes"})
    assert cached == [0, 32, 32]


def test_an_experts_name_bypasses_the_router(client: openai.OpenAI) -> None:
    assert ask(client, "for ada", model="cyd").model == "cyd"


def test_many_at_once_answer_as_each_alone(url: str, client: openai.OpenAI) -> None:
    prompts = [f"{n} for {name}" for n in range(6) for name in ("ada", "bob", "cyd", "nobody")]
    alone = [ask(client, p, max_tokens=12).choices[0].message.content for p in prompts]

    async def gather() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as many:
            jobs = [
                many.chat.completions.create(
                    model="four", max_tokens=12, temperature=0, messages=[{"role": "user", "content": p}]
                )
                for p in prompts
            ]
            return [r.choices[0].message.content for r in await asyncio.gather(*jobs)]

    assert asyncio.run(gather()) == alone


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_leaves_is_cancelled(composition: Path, stream: bool) -> None:
    """The slow disk keeps the query waiting, so that the caller leaves in the middle."""
    coterie, arrives, _ = open_held(composition)
    metrics = coterie.parts.engine.metrics
    arrives.clear()
    with served(coterie) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        body = {"model": "four", "messages": [{"role": "user", "content": "for ada"}], "stream": stream}
        leaves(url, "/v1/chat/completions", body, lambda: metrics.submitted)
        until_idle(coterie)
        arrives.set()
        assert metrics.finished["cancelled"] == 1
        assert ask(client, "for ada").model == "ada"


def test_a_request_that_breaks_our_code_gets_500_and_the_rest_go_on(composition: Path) -> None:
    coterie = Coterie.open(str(composition))
    submit = coterie.submit
    with served(coterie) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        coterie.submit = lambda *_: 1 // 0
        with pytest.raises(openai.InternalServerError, match="division"):
            ask(client, "for ada")
        coterie.submit = submit
        assert ask(client, "for ada").model == "ada"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_breaks_says_so_to_everybody(composition: Path) -> None:
    coterie = Coterie.open(str(composition))
    with served(coterie) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        coterie.step = lambda within_s: 1 // 0
        for _ in range(2):
            with pytest.raises(openai.InternalServerError, match="restart"):
                ask(client, "for ada")
        assert httpx.get(f"{url}/health").status_code == 500


def test_emoji_may_come_escaped(url: str) -> None:
    """As Python's json writes them: two halves that are one character."""
    texts = [{"prompt": text, "model": "ada", "max_tokens": 1} for text in ("a\U0001f600e\u0301", "\u2028")]
    for asked in texts:
        plain, escaped = (
            httpx.post(f"{url}/v1/completions", content=json.dumps(asked, ensure_ascii=ascii)).json()
            for ascii in (False, True)
        )
        assert plain["choices"] == escaped["choices"]
        assert plain["usage"]["prompt_tokens"] == escaped["usage"]["prompt_tokens"] == len(asked["prompt"].encode())


def test_stop_strings_are_not_shown(client: openai.OpenAI) -> None:
    whole = ask(client, "for dan please", max_tokens=30).choices[0].message.content
    if len(whole) < 6:
        pytest.skip("the random expert says too little")
    cut = whole[3:5]
    got = ask(client, "for dan please", max_tokens=30, stop=[cut])
    assert got.choices[0].message.content == whole[: whole.index(cut)]
    assert got.choices[0].finish_reason == "stop"


def test_bodies_are_json_with_event_stream(url: str) -> None:
    body = {"model": "four", "stream": True, "max_tokens": 3, "messages": [{"role": "user", "content": "for ada"}]}
    lines = [line for line in httpx.post(f"{url}/v1/chat/completions", json=body).text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: ")) for line in lines[:-1])


def test_small_answers_are_sent_at_once() -> None:
    """Where packets are held back for more (Nagle), an answer waits some 40 ms for the client's delayed receipt."""

    async def accepted_no_delay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(accept, sock=listener):
                _, client = await asyncio.open_connection(*listener.getsockname())
                no_delay = await asyncio.wait_for(found, 10)
                client.close()
                await client.wait_closed()
        return no_delay

    assert asyncio.run(accepted_no_delay()) == 1

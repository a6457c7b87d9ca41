"""Streams: how chunks come to who writes them, and events of plain text, which are what writing all of them gives."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from coterie.api import Answer, Chunk, Message, Query
from coterie.api.logprobs import TokenLogprob
from coterie.composition.router import Route
from coterie.core.errors import ClosedError
from coterie.engine.request import ChoiceParams
from coterie.server.choices import EventStream, _gather, _write
from coterie.server.completions import CompletionBody, TextAnswers
from coterie.server.openai import MARK, ChatAnswers, ChatBody
from coterie.server.opening import Opening
from coterie.server.stream import Stream

TEXTS = ("", "a", ' "b"\\\n', "\u00e9\u4e16\U0001f600\x00\u2028", MARK, json.dumps(MARK), "", "z")
NAME = f'x"{MARK}'  # of an expert, at its worst


def answer(text: str) -> Answer:
    route = Route(NAME, 1.0, (), "asked for")
    return Answer("1", text, (1,), NAME, route, "length", 0, 3, True, 0.0, 0.1, 0.2, 5.0, False)


def chunks(found: tuple[TokenLogprob, ...] = ()) -> list[Chunk]:
    said = [Chunk("1", NAME, text, (1,), logprobs=found) for text in TEXTS]
    return [*said, Chunk("1", NAME, "end", (1,), answer("".join(TEXTS) + "end"), logprobs=found)]


def chat(choice: ChoiceParams, n: int, calls: object = None) -> ChatAnswers:
    query = Query((Message("user", "hi"),), choice=choice)
    texts = {NAME: SimpleNamespace(calls=lambda _: calls)}
    return ChatAnswers(ChatBody(query, True, False, n), 7, texts)


def completion(choice: ChoiceParams, n: int, echo: bool = False) -> TextAnswers:
    query = Query((Message("user", "hi"),), raw=True, choice=choice)
    return TextAnswers(CompletionBody((query,), True, False, n, False, echo), 7)


class Letters:
    """Holds the text of what might be a call back, as those that look for calls do."""

    num_calls, cut = 0, False

    def push(self, text: str) -> list[str]:
        return [text.upper()] if text else []

    def flush(self) -> list[str]:
        return ["."]


FOUND = (TokenLogprob(1, "a", b"a", -0.5, ()),)
WAYS = {
    "chat": lambda: chat(ChoiceParams(), 2),
    "chat that looks for calls": lambda: chat(ChoiceParams(), 2, Letters()),
    "chat with logprobs": lambda: chat(ChoiceParams(top_logprobs=0), 2),
    "completion": lambda: completion(ChoiceParams(), 2),
    "completion with echo": lambda: completion(ChoiceParams(), 2, echo=True),
    "completion with logprobs": lambda: completion(ChoiceParams(top_logprobs=0), 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_plain_pieces_are_what_writing_all_of_an_event_gives(way: str) -> None:
    quick, slow = WAYS[way](), WAYS[way]()
    found = FOUND if way.endswith("logprobs") else ()
    shortcuts = 0
    for chunk in chunks(found):
        for index in (0, 1):
            shortcuts += quick.encode_text(index, chunk) is not None
            written = [slow.encode(event) for event in slow.events(index, chunk)]
            assert list(quick.encode_chunk(index, chunk)) == written
    assert shortcuts == (0 if "logprobs" in way or "calls" in way else 2 * (len(TEXTS) - 1))


def chunk(request_id: str, **more: object) -> Chunk:
    return Chunk(request_id, "", **more)


def test_a_stream_gives_in_order_what_came_before_and_after_somebody_waits() -> None:
    async def taken() -> list[list[str]]:
        stream, got = Stream(5, lambda _: None), list[list[str]]()

        async def take() -> None:
            got.append([one.request_id for one in await stream.take()])

        first = stream.news()
        assert not first.done()
        stream.put(chunk("a"))
        stream.put(chunk("b"))
        assert first.done()
        assert stream.news().done()  # who asks only now has something to take too
        await take()
        assert not stream.news().done()
        waiting = asyncio.ensure_future(take())
        await asyncio.sleep(0)
        assert not waiting.done()
        stream.put(chunk("c"))
        stream.put(chunk("d"))
        await waiting
        left = asyncio.ensure_future(take())
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait({left})
        stream.put(chunk("e"))  # who left took nothing
        await take()
        return got

    assert asyncio.run(taken()) == [["a", "b"], ["c", "d"], ["e"]]


@pytest.mark.parametrize("before", [True, False])
def test_who_takes_of_a_stream_that_fails_gets_its_error(before: bool) -> None:
    async def taken() -> None:
        stream = Stream(1, lambda _: None)
        stream.check()
        if before:
            stream.put(chunk("a"))
            stream.check()
            stream.fail(ClosedError("server", "ends", "wait"))
        waiting, first = asyncio.ensure_future(stream.take()), stream.news()
        await asyncio.sleep(0)
        if not before:
            assert not first.done()
            stream.fail(ClosedError("server", "ends", "wait"))
        assert first.done()
        for one in (waiting, asyncio.ensure_future(stream.take())):
            with pytest.raises(ClosedError):
                await one
        with pytest.raises(ClosedError):
            stream.check()

    asyncio.run(taken())


@pytest.mark.parametrize(("ends", "cancelled"), [((), 1), (("x",), 1), (("x", "y"), 0)])
def test_who_leaves_a_stream_cancels_what_has_not_ended_once(ends: tuple[str, ...], cancelled: int) -> None:
    async def left() -> int:
        told: list[Stream] = []
        stream = Stream(2, told.append)
        for request_id in ("x", "y"):
            stream.put(chunk(request_id))
        for request_id in ends:
            stream.put(chunk(request_id, error=ClosedError("server", "ends", "wait")))
        assert len(await stream.take()) == 2 + len(ends)
        stream.leave()
        stream.leave()
        return len(told)

    assert asyncio.run(left()) == cancelled


def test_who_comes_to_a_stream_after_its_error_has_the_last_one() -> None:
    """It may fail again, as where a caller leaves whose request is refused, and chunks of others still come."""

    async def failed() -> None:
        stream = Stream(1, lambda _: None)
        stream.fail(ClosedError("server", "ends", "wait"))
        first = stream.news()
        assert first.done()
        stream.fail(ClientDisconnect())
        stream.put(chunk("a"))
        with pytest.raises(ClientDisconnect):
            await stream.take()

    asyncio.run(failed())


def test_who_leaves_a_stream_stops_what_makes_its_queries_ready() -> None:
    async def left() -> None:
        stream = Stream(1, lambda _: None)
        stream.preparing = asyncio.ensure_future(asyncio.sleep(5))
        stream.leave()
        with pytest.raises(asyncio.CancelledError):
            await stream.preparing

    asyncio.run(left())


def test_a_first_chunk_that_is_an_error_refuses_a_stream() -> None:
    async def refused() -> None:
        stream = Stream(1, lambda _: None)
        stream.put(chunk("a", error=ClosedError("server", "ends", "wait")))
        with pytest.raises(ClosedError):
            stream.check()

    asyncio.run(refused())


def test_whole_answers_are_in_the_order_of_their_queries_whoever_ends_first() -> None:
    async def gathered(*last: Chunk) -> list[Answer]:
        stream = Stream(2, lambda _: None)
        stream.request_ids += ["a", "b"]
        stream.put(Chunk("b", NAME, "one", (1,), answer("one")))
        for one in last:
            stream.put(one)
        return await _gather(stream, None)

    assert [one.text for one in asyncio.run(gathered(Chunk("a", NAME, "two", (1,), answer("two"))))] == ["two", "one"]
    with pytest.raises(ClosedError):
        asyncio.run(gathered(chunk("a", error=ClosedError("server", "ends", "wait"))))


class Caller:
    """Takes what is sent, each time when `lets` says so, and may leave."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.lets = asyncio.Event()
        self.lets.set()

    async def send(self, message: Any) -> None:
        await self.lets.wait()
        self.sent.append(dict(message))

    async def receive(self) -> Any:
        raise AssertionError("a response asks nothing of its caller")

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]

    @property
    def ended(self) -> bool:
        return self.sent[-1].get("more_body") is False


def answering(stream: Stream, caller: Caller, n: int = 1) -> tuple[asyncio.Task[None], list[str]]:
    """A chat's streamed response to a caller, under way, and who was told that it ended."""
    asked, told = chat(ChoiceParams(), n), list[str]()

    async def nothing() -> None:
        return None

    opening = Opening(stream, nothing)
    response = EventStream(partial(_write, asked, opening, stream), lambda: told.append("end"), asked.media_type)
    return asyncio.ensure_future(response({}, caller.receive, caller.send)), told


def contents(body: bytes) -> list[str]:
    """The pieces of text in some events."""
    events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    return [event["choices"][0]["delta"].get("content", "") for event in events if event.get("choices")]


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_comes_in_one_step_is_sent_at_once_and_what_comes_later_waits_for_a_slow_caller() -> None:
    async def run() -> None:
        stream, caller = Stream(2, lambda _: None), Caller()
        stream.request_ids += ["a", "b"]
        stream.put(Chunk("b", NAME, "0", (1,)))
        task, told = answering(stream, caller, 2)
        await settled()
        assert [contents(body) for body in caller.bodies] == [["0"]]
        caller.lets.clear()
        for text in "123":
            stream.put(Chunk("b", NAME, text, (1,)))
            await settled()
        assert len(caller.bodies) == 1
        caller.lets.set()
        await settled()
        # The one that it waited with, then all that came meanwhile.
        assert [contents(body) for body in caller.bodies[1:]] == [["1"], ["2", "3"]]
        stream.put(Chunk("b", NAME, "4", (1,), answer("01234")))
        stream.put(Chunk("a", NAME, "x", (1,)))
        await settled()
        assert not task.done()
        stream.put(Chunk("a", NAME, "y", (1,), answer("xy")))
        await task
        assert caller.ended
        assert caller.bodies[-1].endswith(b"data: [DONE]\n\n")
        assert told == ["end"]
        indices = [
            json.loads(line[6:])["choices"] for line in b"".join(caller.bodies).split(b"\n") if b"choices" in line
        ]
        assert {choice["index"] for choices in indices for choice in choices} == {0, 1}

    asyncio.run(run())


def test_a_stream_that_fails_says_so_behind_what_came_before_and_ends() -> None:
    async def run() -> None:
        stream, caller = Stream(1, lambda _: None), Caller()
        stream.request_ids.append("a")
        stream.put(Chunk("a", NAME, "0", (1,)))
        task, told = answering(stream, caller)
        await settled()
        stream.put(Chunk("a", NAME, "1", (1,)))
        stream.put(Chunk("a", NAME, error=ClosedError("server", "ends", "wait")))
        await task
        assert contents(caller.bodies[1]) == ["1"]
        assert b'"code": "shutting_down"' in caller.bodies[1]
        assert caller.ended
        assert told == ["end"]

    asyncio.run(run())


@pytest.mark.parametrize("error", [ClosedError("server", "ends", "wait"), ClientDisconnect()])
def test_a_stream_that_was_refused_late_says_so_but_not_to_who_has_left(error: Exception) -> None:
    async def run() -> None:
        stream, caller = Stream(1, lambda _: None), Caller()
        task, told = answering(stream, caller)
        await settled()
        assert caller.bodies == [b": waiting\n\n"]
        stream.fail(error)
        await task
        assert told == ["end"]
        assert caller.ended is isinstance(error, ClosedError)
        assert len(caller.bodies) == 1 + isinstance(error, ClosedError)

    asyncio.run(run())


def test_a_response_that_is_cut_ends_too() -> None:
    async def run() -> None:
        stream, caller = Stream(1, lambda _: None), Caller()
        task, told = answering(stream, caller)
        await settled()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert told == ["end"]
        before = len(caller.sent)
        stream.put(Chunk("a", NAME, "0", (1,)))
        await settled()
        assert len(caller.sent) == before

    asyncio.run(run())

"""Events of streams: those of plain text, which are written around their text, are what writing all of them gives."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from coterie.api import Answer, Chunk, Message, Query
from coterie.api.logprobs import TokenLogprob
from coterie.composition.router import Route
from coterie.core.errors import ClosedError
from coterie.engine.request import ChoiceParams
from coterie.server.completions import CompletionBody, TextAnswers
from coterie.server.openai import MARK, ChatAnswers, ChatBody
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
            shortcuts += quick.plain(index, chunk) is not None
            written = [slow.encode(event) for event in slow.events(index, chunk)]
            assert list(quick.said(index, chunk)) == written
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


def test_a_first_chunk_that_is_an_error_refuses_a_stream() -> None:
    async def refused() -> None:
        stream = Stream(1, lambda _: None)
        stream.put(chunk("a", error=ClosedError("server", "ends", "wait")))
        with pytest.raises(ClosedError):
            stream.check()

    asyncio.run(refused())

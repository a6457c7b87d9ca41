"""The chunks of a request's queries: taken in order, or the error in their place; who leaves early cancels the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from coterie.api import Chunk
from coterie.core.errors import RequestError
from coterie.server.stream import Stream

ERROR = RequestError("prompt", "is empty", "give one")
LATER = RequestError("prompt", "is too long", "give less")


def with_stream(count: int, check: Callable[[Stream, list[Stream]], Awaitable[None]]) -> None:
    """Check a stream of so many queries, with the list of those whose rest was cancelled."""

    async def run() -> None:
        cancelled = list[Stream]()
        await check(Stream(count, cancelled.append), cancelled)

    asyncio.run(run())


def said(text: str, error: RequestError | None = None) -> Chunk:
    return Chunk("1", "ada", text, error=error)


def test_all_that_is_there_is_taken_in_order() -> None:
    async def check(stream: Stream, _: list[Stream]) -> None:
        for text in "ab":
            stream.put(said(text))
        assert [chunk.text for chunk in await stream.take()] == ["a", "b"]
        taking = asyncio.ensure_future(stream.take())
        await asyncio.sleep(0)
        assert not taking.done()
        for text in "cd":
            stream.put(said(text))
        assert [chunk.text for chunk in await taking] == ["c", "d"]

    with_stream(1, check)


def test_news_are_one_future_until_there_are_some() -> None:
    async def check(stream: Stream, _: list[Stream]) -> None:
        first = stream.news()
        assert (stream.news() is first, first.done()) == (True, False)
        stream.put(said("a"))
        assert first.done()
        assert stream.news().done()
        await stream.take()
        assert not stream.news().done()

    with_stream(1, check)


def test_an_error_comes_in_place_of_what_was_there_whenever_it_came() -> None:
    async def check(stream: Stream, _: list[Stream]) -> None:
        first = stream.news()
        stream.put(said("a"))
        for error in (LATER, ERROR):
            stream.fail(error)
            stream.put(said("b"))
        assert first.done()
        for _again in range(2):
            with pytest.raises(RequestError, match="is empty"):
                await stream.take()
            with pytest.raises(RequestError, match="is empty"):
                stream.check()

    with_stream(1, check)


def test_who_asks_for_news_after_an_error_has_them() -> None:
    async def check(stream: Stream, _: list[Stream]) -> None:
        stream.fail(ERROR)
        assert stream.news().done()

    with_stream(1, check)


def test_a_first_chunk_may_say_that_its_query_failed() -> None:
    async def check(stream: Stream, _: list[Stream]) -> None:
        stream.check()
        stream.put(said("", ERROR))
        with pytest.raises(RequestError, match="is empty"):
            stream.check()

    with_stream(1, check)


@pytest.mark.parametrize("ended", [0, 1, 2])
def test_who_leaves_cancels_what_has_not_ended_once(ended: int) -> None:
    async def check(stream: Stream, cancelled: list[Stream]) -> None:
        stream.put(said("a"))
        for _query in range(ended):
            stream.put(said("", ERROR))
        await stream.take()
        stream.leave()
        stream.leave()
        assert cancelled == [stream] * (ended < 2)

    with_stream(2, check)


def test_who_leaves_stops_what_is_made_ready() -> None:
    async def check(stream: Stream, cancelled: list[Stream]) -> None:
        stream.preparing = asyncio.ensure_future(asyncio.sleep(60))
        stream.leave()
        with pytest.raises(asyncio.CancelledError):
            await stream.preparing
        assert cancelled == [stream]

    with_stream(1, check)

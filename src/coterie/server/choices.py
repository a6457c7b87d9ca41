"""Several answers as one response: the queries that a request asks for, whole or streamed, and one count of tokens.

    prompt 0, prompt 1, ... x n choices -> queries -> (index, chunk) ... -> one JSON body, or events with an index each

Knows nothing about how an endpoint writes an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from coterie.api import Answer, Chunk, Coterie, Query
from coterie.api.watch import Waiting
from coterie.core.errors import CoterieError
from coterie.server.events import HEADERS
from coterie.server.guard import client_of
from coterie.server.opening import Chunks, Opening
from coterie.server.worker import Ticket, Worker

T = TypeVar("T")


class Asked(Protocol):
    """A request of one endpoint: what it asks, and how its answers are written. Choices are counted from 0.

    `prompt_field` is the body's field that holds what a model reads.
    """

    prompt_field: str
    queries: tuple[Query, ...]
    stream: bool
    end: bytes

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of a response that is not streamed."""

    def said(self, index: int, chunk: Chunk) -> Iterable[bytes]:
        """What a stream says of one choice's chunk, which is no error: events as they are sent."""

    def ending(self, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
        """A stream's last events, before the bytes of its `end`."""

    def failure(self, error: CoterieError, request_id: str) -> Iterator[dict[str, Any]]:
        """A stream's last events where an answer failed; without an id it was refused late."""

    def encode(self, event: Mapping[str, Any]) -> bytes:
        """An event as it is sent."""


async def respond(request: Request, worker: Worker, asked: Asked) -> Response:
    """Ask, and answer when all is there or as it comes; a caller who leaves cancels all. Raises CoterieError."""
    client = client_of(request.scope)
    ticket = Ticket(asyncio.get_running_loop())
    chunks = worker.stream([replace(query, client=client) for query in asked.queries], ticket)
    if not asked.stream:
        return JSONResponse(asked.whole(await _unless_gone(request, _gather(chunks, len(asked.queries)), chunks)))

    def look(coterie: Coterie) -> Waiting | None:
        """None while it is not submitted yet."""
        return coterie.watch.waiting(ticket.request_ids[0]) if ticket.request_ids else None

    opening = Opening(chunks, lambda: worker.call(look))
    try:
        # A refused request must get its status before any byte of a stream is sent.
        await _unless_gone(request, opening.accepted(), chunks)
    except CoterieError:
        await chunks.aclose()
        raise
    events = _events(asked, opening, chunks, ticket.sink.empty)
    return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS)


async def _gather(chunks: Chunks, count: int) -> list[Answer]:
    """All answers, in order. Raises the first error."""
    answers: dict[int, Answer] = {}
    async with aclosing(chunks):
        async for index, chunk in chunks:
            if chunk.error is not None:
                raise chunk.error
            if chunk.answer is not None:
                answers[index] = chunk.answer
    return [answers[index] for index in range(count)]


async def _unless_gone(request: Request, wanted: Coroutine[Any, Any, T], chunks: Chunks) -> T:
    """Await what is made of chunks, but stop the queries when their caller leaves. Raises ClientDisconnect."""
    work, gone = asyncio.ensure_future(wanted), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
            await chunks.aclose()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    asked: Asked, opening: Opening, rest: Chunks, is_all: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    """A stream's bytes; `is_all`: no more chunks are there yet.

    What is there is sent together. A write waits for nothing, so that one for each chunk of a step of many choices
    would go on to a caller who has left, whom asyncio notices only between two waits.
    """
    async for comment in opening.comments():
        yield comment
    answers: dict[int, Answer] = {}
    index, chunk = opening.first()
    parts: list[bytes] = []
    async with aclosing(rest):
        while True:
            if chunk.error is not None:
                yield b"".join([*parts, *map(asked.encode, asked.failure(chunk.error, chunk.request_id))])
                return
            parts += asked.said(index, chunk)
            if chunk.answer is not None:
                answers[index] = chunk.answer
            if len(answers) == len(asked.queries):
                break
            if parts and is_all():
                yield b"".join(parts)
                parts.clear()
            index, chunk = await anext(rest)
    parts += map(asked.encode, asked.ending([answers[index] for index in range(len(answers))]))
    yield b"".join([*parts, asked.end])

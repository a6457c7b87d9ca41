"""Several answers in one response: the queries of a request, answered whole or streamed, with one usage count.

    prompt 0, prompt 1, ... x n choices -> queries -> (index, chunk) ... -> one JSON body, or events with an index each

Knows nothing about how an endpoint writes an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from coterie.api import Answer, Chunk, Query, Serving
from coterie.api.texts import Text
from coterie.api.watch import Waiting
from coterie.core.errors import CoterieError, CrowdedError
from coterie.server.body import written
from coterie.server.choosing import QUICK_LOGPROBS, num_logprobs
from coterie.server.events import HEADERS
from coterie.server.guard import client_of
from coterie.server.log import log_refusal
from coterie.server.openai import error_body
from coterie.server.opening import Opening
from coterie.server.stream import Stream
from coterie.server.worker import Worker

RUN = 64  # tokens with logprobs, encoded at a time
AT_ONCE = 128  # inputs of one request in the queue at once, so that a large request gets no more places than others
RETRY_S = 1.0  # retry interval for queueing further inputs once some have been answered
QUICK_NUMBERS = 8192  # numbers of vectors, encoded in about 4 ms


class EndpointRequest(Protocol):
    """A request to an endpoint: its queries, and how its answers are encoded. Choices are numbered from 0.

    `prompt_field`: the body's field with the prompt; `media_type`: that of a stream; `within`: the nesting depth of
    logprobs in the lists of a response that is not streamed.
    """

    prompt_field: str
    media_type: str
    queries: tuple[Query, ...]
    stream: bool
    end: bytes
    within: int

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of a response that is not streamed."""

    def heartbeat(self, words: str) -> bytes:
        """Sent before a stream's first chunk, so that no proxy drops the connection."""

    def observe(self, chunk: Chunk) -> None:
        """A chunk, not an error, of a response that is not streamed."""

    def encode_chunk(self, index: int, chunk: Chunk) -> Iterable[bytes]:
        """The encoded events for one choice's chunk, not an error."""

    def ending(self, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
        """A stream's last events, before its `end` bytes."""

    def failure(self, error: CoterieError, request_id: str) -> Iterator[dict[str, Any]]:
        """A stream's last events if an answer failed; without an id, the request was refused late."""

    def encode(self, event: Mapping[str, Any]) -> bytes:
        """The encoded event."""


class SendPiece(Protocol):
    """Sends a piece of a body; the last one without `more`."""

    async def __call__(self, body: bytes, more: bool = True) -> None: ...


async def respond(request: Request, worker: Worker, asked: EndpointRequest) -> Response:
    """Ask, and answer once complete or as a stream; a disconnect cancels everything. Raises CoterieError."""
    if not asked.stream:
        answers = await answered(request, worker, asked.queries, observe=asked.observe)
        if sum([num_logprobs((*one.prompt_logprobs, *one.logprobs)) for one in answers]) <= QUICK_LOGPROBS:
            return JSONResponse(asked.whole(answers))
        body = await worker.run_in_pool(lambda _: written(asked.whole(answers), RUN, within=asked.within), reads=True)
        return Response(body, media_type=JSONResponse.media_type)
    stream, end = _submit(request, worker, asked.queries)
    return await _streamed(worker, asked, stream, end)


async def answered(
    request: Request,
    worker: Worker,
    queries: Sequence[Query],
    partly: bool = False,
    observe: Callable[[Chunk], None] | None = None,
) -> list[Answer]:
    """Ask, and wait for all answers; a disconnect cancels all. `partly`: as in Worker.ask. `observe` gets each chunk.

    Raises CoterieError.
    """
    stream, end = _submit(request, worker, queries, partly)
    try:
        return await _gather(stream, observe)
    finally:
        end()


async def vectors_of(
    request: Request, worker: Worker, coterie: Serving, queries: Sequence[Query]
) -> tuple[list[Answer], Text]:
    """The answers to queries for vectors of one expert, and its Text, queueing as many at a time as allowed.

    Raises CoterieError.
    """
    name, answers, text = queries[0].model, list[Answer](), coterie.texts[queries[0].model]
    while len(answers) < len(queries):
        rest = queries[len(answers) : len(answers) + AT_ONCE]
        try:
            answers += await answered(request, worker, rest, partly=True)
        except CrowdedError:
            if not answers:
                raise
            await asyncio.sleep(RETRY_S)  # keep what is answered so far
        if (now := coterie.texts.get(name, text)) is not text:  # replaced: earlier vectors are not comparable
            answers, text = [], now
    return answers, text


async def numbers(worker: Worker, answers: Sequence[Answer], make: Callable[[], Mapping[str, Any]]) -> Response:
    """The JSON that `make` builds from the vectors of these answers; if there are many, off the event loop."""

    def response() -> Response:
        return Response(written(make(), 1), media_type=JSONResponse.media_type)

    if sum([len(answer.vector) for answer in answers]) <= QUICK_NUMBERS:
        return response()
    return await worker.run_in_pool(lambda _: response(), reads=True)


def _submit(
    request: Request, worker: Worker, queries: Sequence[Query], partly: bool = False
) -> tuple[Stream, Callable[[], None]]:
    """The stream of the queries' chunks, and a function to call when no more of it is wanted."""
    client, priority = client_of(request.scope), request.state.priority
    stream = worker.ask([replace(query, client=client, priority=priority) for query in queries], partly)
    watching = asyncio.ensure_future(_watch(request, stream))

    def end() -> None:
        watching.cancel()
        stream.leave()

    return stream, end


async def _streamed(worker: Worker, asked: EndpointRequest, stream: Stream, end: Callable[[], None]) -> Response:
    """The response of a stream that was not refused; it calls `end`."""

    def look(coterie: Serving) -> Waiting | None:
        """None until it is submitted."""
        return coterie.watch.waiting(stream.request_ids[0]) if stream.request_ids else None

    opening = Opening(stream, lambda: worker.look(look))
    try:
        # A refused request must get its status before any byte of a stream is sent.
        await opening.accepted()
    except BaseException:
        end()
        raise
    return EventStream(partial(_write, asked, opening, stream), end, asked.media_type)


async def _watch(request: Request, stream: Stream) -> None:
    """Fail the stream when the client disconnects."""
    await _disconnect(request)
    stream.fail(ClientDisconnect())


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _gather(stream: Stream, observe: Callable[[Chunk], None] | None) -> list[Answer]:
    """All answers, in order. Raises the first error."""
    answers: dict[str, Answer] = {}
    while not answers or len(answers) < len(stream.request_ids):  # complete once there are chunks
        for chunk in await stream.take():
            if chunk.error is not None:
                raise chunk.error
            if observe is not None:
                observe(chunk)
            if chunk.answer is not None:
                answers[chunk.request_id] = chunk.answer
    return [answers[request_id] for request_id in stream.request_ids]


class EventStream(Response):
    """A response whose body `write` sends piece by piece until its end or a disconnect; then calls `end`.

    Starlette's StreamingResponse supports any iterator, with a task group and a generator, at a fifth of a streamed
    request's cost here.
    """

    def __init__(
        self, write: Callable[[SendPiece], Coroutine[Any, Any, None]], end: Callable[[], None], media_type: str
    ) -> None:
        self.status_code, self.background, self.media_type = 200, None, media_type
        self._write, self._end = write, end
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""

        async def piece(body: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            # In its own task: each await re-enters all frames of a task, and those of a request are about fifteen.
            await asyncio.ensure_future(self._write(piece))
        except ClientDisconnect:
            pass  # the client is gone
        finally:
            self._end()


async def _write(asked: EndpointRequest, opening: Opening, stream: Stream, send: SendPiece) -> None:
    """Write a stream's events.

    Available chunks are sent together, so that there is an await between two writes: only then a disconnect is noticed.
    """
    async for words in opening.waits():
        await send(asked.heartbeat(words))
    answers: dict[str, Answer] = {}
    index_of: dict[str, int] = {}
    count, parts = len(asked.queries), list[bytes]()
    while len(answers) < count:
        if parts:
            await send(b"".join(parts))
            parts.clear()
        try:
            chunks = await stream.take()
        except CoterieError as error:  # the stream has begun, so a refusal is an event too
            chunks = (Chunk("", "", error=error),)
        for chunk in chunks:
            if chunk.error is not None:
                log_refusal("a stream", error_body(chunk.error)[0], chunk.error)
                failure = asked.failure(chunk.error, chunk.request_id)
                await send(b"".join([*parts, *map(asked.encode, failure)]), more=False)
                return
            index_of = index_of or {request_id: index for index, request_id in enumerate(stream.request_ids)}
            parts += asked.encode_chunk(index_of[chunk.request_id], chunk)
            if chunk.answer is not None:
                answers[chunk.request_id] = chunk.answer
    parts += map(asked.encode, asked.ending([answers[request_id] for request_id in stream.request_ids]))
    await send(b"".join([*parts, asked.end]), more=False)

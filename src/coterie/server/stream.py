"""The chunks of the queries of one request, on their way to the task that writes them.

    engine thread --distribute, once a step--> put, put ... --> Stream --take: all that is there--> the request's task
    refused, or client disconnected ---> fail -------^

Every token of every answer passes here between two steps, so it costs few calls. A Stream must only be used on its
loop's thread. Knows nothing about HTTP or the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from coterie.api import Chunk
from coterie.server.log import log_end


class Stream:
    """The chunks of `count` queries. `cancel` is called when the reader leaves before all have ended.

    `request_ids` are set by the engine's thread before there are chunks. `preparing`: the task before submission.
    """

    def __init__(self, count: int, cancel: Callable[[Stream], None]) -> None:
        self.loop = asyncio.get_running_loop()  # cached: asking for the running loop costs a system call
        self.request_ids: list[str] = []
        self.preparing: asyncio.Task[None] | None = None
        self._left, self._cancel = count, cancel
        self._chunks: list[Chunk] = []
        self._failure: Exception | None = None
        self._taker: asyncio.Future[None] | None = None

    def shorten(self, count: int) -> None:
        """Only `count` queries were submitted. Call before there are chunks."""
        self._left = count

    def put(self, chunk: Chunk) -> None:
        """Add a chunk."""
        self._chunks.append(chunk)
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    def fail(self, error: Exception) -> None:
        """Make `take` raise this error from now on."""
        self._failure = error
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    def news(self) -> asyncio.Future[None]:
        """A future that is done when there is something to take, or a failure.

        Until then all calls return the same one.
        """
        if self._taker is None or self._taker.done():
            self._taker = self.loop.create_future()
            if self._chunks or self._failure is not None:
                self._taker.set_result(None)
        return self._taker

    async def take(self) -> Sequence[Chunk]:
        """All available chunks, in order, waiting for at least one. Raises the failure."""
        while not self._chunks and self._failure is None:
            await self.news()
        if self._failure is not None:
            raise self._failure
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            if chunk.last:
                self._left -= 1
        return chunks

    def check(self) -> None:
        """Raise the failure, or the error of the first chunk."""
        error = self._failure or (self._chunks[0].error if self._chunks else None)
        if error is not None:
            raise error

    def leave(self) -> None:
        """Stop taking: queries that have not ended are cancelled. Idempotent.

        Drops the failure: its traceback refers to this stream and megabytes of text, a cycle that Python may not
        collect for minutes.
        """
        self._failure = None
        if self.preparing is not None:
            self.preparing.cancel()
        if self._left:
            self._left = 0
            self._cancel(self)


def distribute(chunks: Sequence[Chunk], streams: dict[str, Stream]) -> None:
    """Distribute a step's chunks to their streams, and forget the streams that end.

    Each loop is woken once: that costs as much for one chunk as for a whole batch.
    """
    parcels: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Chunk]]] = {}
    for chunk in chunks:
        stream = streams.pop(chunk.request_id, None) if chunk.last else streams.get(chunk.request_id)
        if chunk.last:
            log_end(chunk)
        if stream is not None:
            parcels.setdefault(stream.loop, []).append((stream, chunk))
    for loop, parcel in parcels.items():
        loop.call_soon_threadsafe(_put, parcel)


def _put(parcel: Sequence[tuple[Stream, Chunk]]) -> None:
    for stream, chunk in parcel:
        stream.put(chunk)

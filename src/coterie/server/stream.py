"""The chunks of queries that one request asks together, on their way to the one task that writes them.

    engine thread --give_out, once a step--> put, put ... --> Stream --take: all that is there--> the request's task
    refused, or the caller has left ---> fail -------^

Every token of every answer comes this way, between two of its steps: so it takes few calls. A Stream is for its
loop's thread alone. Knows nothing about HTTP or the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from coterie.api import Chunk
from coterie.server.log import log_end


class Stream:
    """The chunks of `count` queries. `cancel` is called by who leaves before all have ended.

    `request_ids` are filled in by the engine's thread before there are chunks. `preparing`: what comes before that.
    """

    def __init__(self, count: int, cancel: Callable[[Stream], None]) -> None:
        self.loop = asyncio.get_running_loop()  # kept, as to ask which one runs costs a system call
        self.request_ids: list[str] = []
        self.preparing: asyncio.Task[None] | None = None
        self._left, self._cancel = count, cancel
        self._chunks: list[Chunk] = []
        self._failure: Exception | None = None
        self._taker: asyncio.Future[None] | None = None

    def shorten(self, count: int) -> None:
        """Only so many queries were asked. Before there are chunks."""
        self._left = count

    def put(self, chunk: Chunk) -> None:
        """Let a chunk be taken."""
        self._chunks.append(chunk)
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    def fail(self, error: Exception) -> None:
        """Let whoever takes get this error, from now on."""
        self._failure = error
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    def news(self) -> asyncio.Future[None]:
        """Done once there is something to take, or it has failed. All who ask before then get the same one."""
        if self._taker is None or self._taker.done():
            self._taker = self.loop.create_future()
            if self._chunks or self._failure is not None:
                self._taker.set_result(None)
        return self._taker

    async def take(self) -> Sequence[Chunk]:
        """All that is there, in order, once there is something. Raises what it failed with."""
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
        """Raise what it failed with, or the error by which the first chunk says that its query has failed."""
        error = self._failure or (self._chunks[0].error if self._chunks else None)
        if error is not None:
            raise error

    def leave(self) -> None:
        """No more is taken: what has not ended is cancelled. May be called again.

        An error's frames have this stream, and texts of megabytes: a circle, which Python may not look for in minutes.
        """
        self._failure = None
        if self.preparing is not None:
            self.preparing.cancel()
        if self._left:
            self._left = 0
            self._cancel(self)


def give_out(chunks: Sequence[Chunk], streams: dict[str, Stream]) -> None:
    """Put what a step brought into the streams of those who asked, by request, and forget the streams that end. To wake
    a loop costs as much for one chunk as for those of a whole batch.
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

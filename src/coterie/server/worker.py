"""One thread that owns the engine; asyncio tasks hand it requests and receive chunks.

    HTTP task --submit--> inbox --> engine thread --call_soon_threadsafe--> asyncio.Queue --> HTTP task

Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from coterie.api import Chunk, Coterie, Query
from coterie.core.errors import CoterieError, DeviceError

WAIT_S = 0.005  # a step that waits for bytes looks for new requests this often
_Job = Callable[[], None]
T = TypeVar("T")


class Worker:
    """Runs a Coterie in its own thread until `stop`."""

    def __init__(self, coterie: Coterie) -> None:
        self._coterie = coterie
        self._inbox: queue.Queue[_Job | None] = queue.Queue()
        self._sinks: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[Chunk]]] = {}
        self._thread = threading.Thread(target=self._serve, name="coterie-engine", daemon=True)
        self._broken: BaseException | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the step in flight, then stop and close the device."""
        self._inbox.put(None)
        self._thread.join()
        self._coterie.close()

    async def stream(self, query: Query) -> AsyncIterator[Chunk]:
        """Submit and yield chunks until the last; leaving early cancels the request. Raises CoterieError at once."""
        loop = asyncio.get_running_loop()
        sink: asyncio.Queue[Chunk] = asyncio.Queue()
        request_id = await self._call(lambda: self._submit(query, loop, sink))
        finished = False
        try:
            while not finished:
                chunk = await sink.get()
                finished = chunk.last
                yield chunk
        finally:
            if not finished:
                self._inbox.put(lambda: self._cancel(request_id))

    async def call(self, function: Callable[[Coterie], T]) -> T:
        """Run a function on the engine's thread, between two steps, and return its result."""
        return await self._call(lambda: function(self._coterie))

    async def _call(self, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def job() -> None:
            try:
                value = function()
            except CoterieError as error:
                loop.call_soon_threadsafe(_fail, result, error)
            else:
                loop.call_soon_threadsafe(_resolve, result, value)

        if self._broken is not None:
            raise DeviceError("engine", f"has stopped after {self._broken!r}", "restart the server")
        self._inbox.put(job)
        return await result

    def _submit(self, query: Query, loop: asyncio.AbstractEventLoop, sink: asyncio.Queue[Chunk]) -> str:
        request_id = self._coterie.submit(query)
        self._sinks[request_id] = (loop, sink)
        return request_id

    def _cancel(self, request_id: str) -> None:
        self._sinks.pop(request_id, None)
        self._coterie.cancel(request_id)

    def _serve(self) -> None:
        try:
            while self._take_jobs():
                if not self._coterie.idle:
                    for chunk in self._coterie.step(WAIT_S):
                        self._deliver(chunk)
        except BaseException as error:
            self._broken = error
            self._fail_all(error)
            raise

    def _take_jobs(self) -> bool:
        """Run the jobs that wait; with nothing to compute, sleep until there is one. False when told to stop."""
        block = self._coterie.idle
        while True:
            try:
                job = self._inbox.get(block=block)
            except queue.Empty:
                return True
            if job is None:
                return False
            job()
            block = False

    def _deliver(self, chunk: Chunk) -> None:
        found = self._sinks.get(chunk.request_id)
        if found is None:
            return
        loop, sink = found
        if chunk.last:
            del self._sinks[chunk.request_id]
        loop.call_soon_threadsafe(sink.put_nowait, chunk)

    def _fail_all(self, error: BaseException) -> None:
        fault = DeviceError("engine", f"stopped in the middle of a step: {error!r}", "restart the server")
        for request_id, (loop, sink) in self._sinks.items():
            loop.call_soon_threadsafe(sink.put_nowait, Chunk(request_id, "", error=fault))
        self._sinks.clear()


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)

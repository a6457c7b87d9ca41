"""One thread that owns the engine; asyncio tasks hand it requests and receive chunks.

    HTTP task --submit--> inbox --> engine thread --call_soon_threadsafe, once a step--> sinks --> HTTP tasks
        `-- what takes long and needs no engine --> a thread beside it

Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from coterie.api import Chunk, Coterie, Query
from coterie.api.coterie import WAIT_S
from coterie.api.ready import Ready
from coterie.core.errors import ClosedError, CoterieError, DeviceError
from coterie.engine.wishes import Told

T = TypeVar("T")
LONG_CHARS = 16384  # of what is read for a request: more would let others wait for more than a few milliseconds
NUM_BESIDE = 2  # so that one form which takes long holds up no other, and most cores are left to the engine
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """Something to do between two steps; `fail` tells whoever waits for it that it will not be done."""

    run: Callable[[], None]
    fail: Callable[[Exception], None]


class Sink:
    """Chunks that wait for the one task that takes them. For its loop's thread alone."""

    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()
        self._taker: asyncio.Future[None] | None = None

    def empty(self) -> bool:
        """True when nothing waits."""
        return not self._chunks

    def put(self, chunk: Chunk) -> None:
        """Let a chunk be taken."""
        self._chunks.append(chunk)
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    async def take(self) -> Chunk:
        """The next chunk, once there is one."""
        while not self._chunks:
            self._taker = asyncio.get_running_loop().create_future()
            await self._taker
        return self._chunks.popleft()


@dataclass(slots=True)
class Ticket:
    """Where the chunks of some queries go; their ids are known once the engine's thread has submitted them."""

    loop: asyncio.AbstractEventLoop
    sink: Sink = field(default_factory=Sink)
    request_ids: list[str] = field(default_factory=list)


class Worker:
    """Runs a Coterie in its own thread until `stop`."""

    def __init__(self, coterie: Coterie) -> None:
        self._coterie = coterie
        self._inbox: queue.Queue[_Job | None] = queue.Queue()
        self._tickets: dict[str, Ticket] = {}
        self._waiting: set[Told] = set()  # for loads
        self._thread = threading.Thread(target=self._serve, name="coterie-engine", daemon=True)
        self._beside = ThreadPoolExecutor(NUM_BESIDE, "coterie-beside")
        self._at_end: list[Callable[[], None]] = []
        self.broken: CoterieError | None = None

    def at_end(self, tell: Callable[[], None]) -> None:
        """Call `tell` when there will be no more answers. It must return at once, and may be called twice."""
        self._at_end.append(tell)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """After the step in flight, tell those who wait, and who comes later, that there will be no answer."""
        self._put(_Job(self._end, _ignore))

    def stop(self) -> None:
        """Finish the step in flight, then stop and close the device."""
        self._inbox.put(None)
        self._coterie.interrupt()
        self._thread.join()
        self._beside.shutdown(wait=False, cancel_futures=True)
        self._coterie.close()

    async def stream(
        self, queries: Sequence[Query], ticket: Ticket | None = None
    ) -> AsyncGenerator[tuple[int, Chunk], None]:
        """Submit queries together and yield their chunks, each with its query's index, until all have ended.

        Leaving early cancels what has not. Raises CoterieError at once where one is refused, and then none is asked.
        A `ticket` that is given has the queries' ids once they are submitted.
        """
        ticket = ticket or Ticket(asyncio.get_running_loop())
        left = len(queries)
        try:
            asked: Sequence[Query | Ready] = queries
            if any(map(_takes_long, queries)):
                asked = await self.beside(lambda coterie: [coterie.ready(query) for query in queries])
            await self.call(lambda coterie: self._submit(asked, ticket))
            index_of = {request_id: index for index, request_id in enumerate(ticket.request_ids)}
            while left:
                chunk = await ticket.sink.take()
                left -= chunk.last
                yield index_of[chunk.request_id], chunk
        finally:
            if left:
                # Jobs run in order, so by then the queries were submitted or refused.
                self._put(_Job(lambda: self._cancel(ticket), _ignore))

    async def call(self, function: Callable[[Coterie], T]) -> T:
        """Run a function on the engine's thread, between two steps, and return its result or raise its error."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def fail(error: Exception) -> None:
            loop.call_soon_threadsafe(_fail, result, error)

        def run() -> None:
            try:
                value = _guarded(function, self._coterie)
            except CoterieError as error:
                fail(error)
            else:
                loop.call_soon_threadsafe(_resolve, result, value)

        self._put(_Job(run, fail))
        return await result

    async def beside(self, function: Callable[[Coterie], T]) -> T:
        """Run a function that takes long, and needs no step to be over, while the engine goes on.

        Returns its result or raises its error.
        """
        return await asyncio.get_running_loop().run_in_executor(self._beside, _guarded, function, self._coterie)

    def soon(self, function: Callable[[Coterie], None]) -> None:
        """Run a function on the engine's thread, between two steps, if there still are any; nobody waits for it."""
        self._put(_Job(lambda: function(self._coterie), _ignore))

    async def told(self, begin: Callable[[Coterie, Told], None]) -> None:
        """Begin something between two steps and wait until it is told how it ended. Raises that, or the refusal."""
        loop = asyncio.get_running_loop()
        end: asyncio.Future[None] = loop.create_future()

        def tell(error: CoterieError | None) -> None:
            self._waiting.discard(tell)
            if error is None:
                loop.call_soon_threadsafe(_resolve, end, None)
            else:
                loop.call_soon_threadsafe(_fail, end, error)

        def run(coterie: Coterie) -> None:
            if self.broken is not None:  # since this was put into the inbox
                raise self.broken
            begin(coterie, tell)
            self._waiting.add(tell)

        await self.call(run)
        await end

    def _put(self, job: _Job) -> None:
        if self.broken is not None:
            job.fail(self.broken)
        else:
            self._inbox.put(job)
            self._coterie.interrupt()  # after the put: whoever ends a run early finds the job
            if self.broken is not None:
                self._drain(self.broken)  # it broke in between, and nobody else empties the inbox any more

    def _submit(self, queries: Sequence[Query | Ready], ticket: Ticket) -> None:
        if self.broken is not None:
            raise self.broken
        try:
            for index, query in enumerate(queries):
                request_id = self._coterie.submit(query, len(queries) - 1 - index)
                ticket.request_ids.append(request_id)
                self._tickets[request_id] = ticket
        except BaseException:
            self._cancel(ticket)
            raise

    def _cancel(self, ticket: Ticket) -> None:
        for request_id in ticket.request_ids:
            if self._tickets.pop(request_id, None) is not None:
                self._coterie.cancel(request_id)

    def _serve(self) -> None:
        try:
            while self._take_jobs():
                if not self._coterie.quiet:
                    self._deliver(self._coterie.step(WAIT_S))
        except BaseException as error:
            broken = DeviceError("engine", f"stopped in the middle of a step: {error!r}", "restart the server")
            self._give_up(broken)
            self._drain(broken)
            raise

    def _end(self) -> None:
        for request_id in self._tickets:
            self._coterie.cancel(request_id)
        self._give_up(ClosedError("server", "is being shut down", "ask again when it is back"))

    def _give_up(self, error: CoterieError) -> None:
        """Every answer, from now on, is this error."""
        self.broken = error
        for request_id, ticket in self._tickets.items():
            ticket.loop.call_soon_threadsafe(ticket.sink.put, Chunk(request_id, "", error=error))
        self._tickets.clear()
        for tell in tuple(self._waiting):
            tell(error)
        for end in self._at_end:
            end()

    def _take_jobs(self) -> bool:
        """Run the jobs that wait; with nothing to do or to come, sleep until there is one. False when told to stop."""
        block = self._coterie.quiet
        while True:
            try:
                job = self._inbox.get(block=block)
            except queue.Empty:
                return True
            if job is None:
                return False
            job.run()
            block = False

    def _drain(self, error: CoterieError) -> None:
        while True:
            try:
                job = self._inbox.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                job.fail(error)

    def _deliver(self, chunks: Sequence[Chunk]) -> None:
        """Give out what a step brought: to wake a loop costs as much for one chunk as for those of a whole batch."""
        parcels: dict[asyncio.AbstractEventLoop, list[tuple[Sink, Chunk]]] = {}
        for chunk in chunks:
            ids = self._tickets
            ticket = ids.pop(chunk.request_id, None) if chunk.last else ids.get(chunk.request_id)
            if ticket is not None:
                parcels.setdefault(ticket.loop, []).append((ticket.sink, chunk))
        for loop, parcel in parcels.items():
            loop.call_soon_threadsafe(_give, parcel)


def _takes_long(query: Query) -> bool:
    """Whether forms must be compiled, or much text be cut into tokens, before the engine can have a query."""
    read = len(query.prompt_ids) + sum([len(message.content) for message in query.messages])
    return bool(query.form or query.tools) or read > LONG_CHARS


def _guarded(function: Callable[[Coterie], T], coterie: Coterie) -> T:
    """Run a function. A bug of ours in it ends its caller's request and nobody else's. Raises CoterieError."""
    try:
        return function(coterie)
    except CoterieError:
        raise
    except Exception as error:
        _LOG.exception("a request failed")
        raise DeviceError("server", f"failed: {error!r}", "report it") from error


def _give(parcel: Sequence[tuple[Sink, Chunk]]) -> None:
    for sink, chunk in parcel:
        sink.put(chunk)


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _ignore(error: Exception) -> None:
    """For jobs that nobody waits for."""

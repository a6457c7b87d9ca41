"""One thread that owns the engine; asyncio tasks hand it requests and receive chunks.

    HTTP task --ask--> inbox --> engine thread --call_soon_threadsafe, once a step--> streams --> HTTP tasks
        |-- what takes long and needs no engine --> threads beside it
        |-- what waits for steps of several devices --> one more, in order
        `-- what looks at several devices and waits for none --> one more

Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import monotonic
from typing import Any, TypeVar

from coterie.api import Chunk, Query, Serving, Status
from coterie.api.jobs import Inbox, Job
from coterie.api.known import LOOK_S, Known
from coterie.api.ready import Ready
from coterie.api.serving import WAIT_S
from coterie.api.texts import all_read
from coterie.core.errors import ClosedError, CoterieError, DeviceError
from coterie.core.resident import give_back
from coterie.engine.expert_control import Told
from coterie.server.lengths import are_quick, takes_long
from coterie.server.log import LOG, log_avoided, log_repinned
from coterie.server.stream import Stream, give_out

T = TypeVar("T")
NUM_BESIDE = 2  # so that one form which takes long holds up no other, and most cores are left to the engine
FREED_S = 2.0  # after what takes long its memory goes back; a megabyte of text takes up to 400 MB


class Worker:
    """Runs what serves a composition in its own thread until `stop`."""

    def __init__(self, coterie: Serving, rest_s: float | None = None) -> None:
        """`rest_s`: after so long without work the memory of what is not pinned is given back."""
        self._coterie, self._rest_s, self._worked_s = coterie, rest_s, monotonic()
        self._inbox = Inbox(coterie.interrupt)
        self._streams: dict[str, Stream] = {}
        self._waiting: set[Told] = set()  # for loads
        self._thread = threading.Thread(target=self._serve, name="coterie-engine", daemon=True)
        self._beside = ThreadPoolExecutor(NUM_BESIDE, "coterie-beside")
        self._reading = ThreadPoolExecutor(NUM_BESIDE, "coterie-reading")  # texts wait behind no form
        # Where devices step themselves the engine's thread waits for none of them: it gives out what the others bring.
        self._between = ThreadPoolExecutor(1, "coterie-between") if coterie.steps_itself else None
        self._known = None if coterie.steps_itself else Known(coterie.status)
        # On the thread that steps: who hears that something has changed may hear it later than the next step begins.
        self._changed = self._known.renew_soon if self._known is not None else lambda: None
        self._looking = ThreadPoolExecutor(1, "coterie-looking") if coterie.steps_itself else None
        self._giving_back: asyncio.TimerHandle | None = None
        self._num_ended = 0  # beside the engine, since the last time
        self._at_end: list[Callable[[], None]] = []
        self.broken: CoterieError | None = None
        coterie.at_break(self._device_broke)
        coterie.at_avoid(log_avoided)
        coterie.at_repin(log_repinned)

    def at_end(self, tell: Callable[[], None]) -> None:
        """Call `tell` when there will be no more answers. It must return at once, and may be called twice."""
        self._at_end.append(tell)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """After the step in flight, tell those who wait, and who comes later, that there will be no answer."""
        self._inbox.put(Job(self._end, _ignore))

    def stop(self) -> None:
        """Finish the step in flight, then stop and close the device."""
        self._inbox.end()
        self._thread.join()
        if self._giving_back is not None:
            self._giving_back.cancel()
        for pool in (self._beside, self._reading, self._between, self._looking):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        self._coterie.close()

    def ask(self, queries: Sequence[Query], partly: bool = False) -> Stream:
        """Submit queries together, soon; their stream has what comes of them, or by which error none was asked.

        `partly`: of many only the first, as many as may wait now; one at least, or that it may not is the error.
        What takes long before that is done beside the engine. For a loop's thread, which gets the chunks.
        """
        stream = Stream(len(queries), self._leave)
        if any(takes_long(query) or not all_read(self._coterie.texts, query.model) for query in queries):
            stream.preparing = stream.loop.create_task(self._prepare(queries, stream, partly))
        else:
            self._hand_over(queries, stream, partly)
        return stream

    async def call(self, function: Callable[[Serving], T]) -> T:
        """Run a function between two steps, in order, and return its result or raise its error: on the engine's thread,
        or where devices step themselves, on one that may wait for them.
        """

        def change(coterie: Serving) -> T:
            try:
                return function(coterie)
            finally:
                self._changed()

        try:
            return await self._call(change, self._between)
        finally:
            if self._between is not None:
                self._inbox.put(Job(lambda: None, _ignore))  # there may be something to step for: a load, say

    async def look(self, function: Callable[[Serving], T]) -> T:
        """As `call`, of what changes nothing: where devices step themselves, it waits behind nothing that changes."""
        return await self._call(function, self._looking)

    async def status(self) -> Status:
        """The status; of a device that is in a long step what was last known, which says so (`late`)."""
        if self._known is None:
            return await self.look(lambda coterie: coterie.status())
        asked = asyncio.ensure_future(self._call(lambda coterie: coterie.status()))
        while not (await asyncio.wait({asked}, timeout=LOOK_S))[0]:
            if self._known.late:
                asked.cancel()
                return replace(self._known.status, late={self._coterie.names[0]: self._known.age_s})
        return asked.result()

    async def turn(self) -> None:
        """Return once the engine has taken a turn, and one at least of the devices that step themselves: the others may
        hang, and it can go on without. Raises what they ended with.
        """
        await self._call(lambda _: None)
        turns = {asyncio.wrap_future(one) for one in self._coterie.turns()}
        while turns:
            over, turns = await asyncio.wait(turns, return_when=asyncio.FIRST_COMPLETED)
            if any(one.exception() is None for one in over):
                break
        for one in turns:
            one.cancel()

    async def _call(self, function: Callable[[Serving], T], pool: ThreadPoolExecutor | None = None) -> T:
        """On a pool's thread, else on the engine's."""
        if pool is not None:
            if self.broken is not None:
                raise self.broken
            return await asyncio.get_running_loop().run_in_executor(pool, _guarded, function, self._coterie)
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

        self._inbox.put(Job(run, fail))
        return await result

    async def beside(self, function: Callable[[Serving], T], reads: bool = False) -> T:
        """Run a function that takes long, and needs no step to be over, while the engine goes on.

        `reads`: it takes milliseconds, not seconds. Returns its result or raises its error.
        """
        loop, pool = asyncio.get_running_loop(), self._reading if reads else self._beside
        try:
            return await loop.run_in_executor(pool, _guarded, function, self._coterie)
        finally:
            self._num_ended += 1
            if self._giving_back is None:
                self._giving_back = loop.call_later(FREED_S, self._give_back, loop)

    def soon(self, function: Callable[[Serving], None]) -> None:
        """Run a function as `call`, if there still are any steps; nobody waits for it."""

        def run() -> None:
            with contextlib.suppress(CoterieError):  # logged, where it is a bug of ours
                _guarded(function, self._coterie)

        if self._between is None:
            self._inbox.put(Job(run, _ignore))
        elif self.broken is None:
            with contextlib.suppress(RuntimeError):  # it was stopped
                self._between.submit(run)

    def _give_back(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give memory back, and once more later if something has ended meanwhile: its answer may be on its way."""
        again, self._num_ended = self._num_ended > 1, 1
        self._giving_back = loop.call_later(FREED_S, self._give_back, loop) if again else None
        self._reading.submit(give_back)

    async def told(self, begin: Callable[[Serving, Told], None]) -> None:
        """Begin something between two steps and wait until it is told how it ended. Raises that, or the refusal."""
        loop = asyncio.get_running_loop()
        end: asyncio.Future[None] = loop.create_future()

        def tell(error: CoterieError | None) -> None:
            self._waiting.discard(tell)
            self._changed()
            if error is None:
                loop.call_soon_threadsafe(_resolve, end, None)
            else:
                loop.call_soon_threadsafe(_fail, end, error)

        def run(coterie: Serving) -> None:
            self._waiting.add(tell)  # first: who gives up after the next line tells it
            try:
                if self.broken is not None:  # since this was put into the inbox
                    raise self.broken
                begin(coterie, tell)
            except BaseException:
                self._waiting.discard(tell)
                raise

        await self.call(run)
        await end

    async def _prepare(self, queries: Sequence[Query], stream: Stream, partly: bool) -> None:
        reads = are_quick(queries)
        try:
            ready = await self.beside(lambda coterie: [coterie.ready(query) for query in queries], reads)
        except CoterieError as error:
            stream.fail(error)
        else:
            self._hand_over(ready, stream, partly)

    def _hand_over(self, queries: Sequence[Query | Ready], stream: Stream, partly: bool) -> None:
        def refuse(error: Exception) -> None:
            stream.loop.call_soon_threadsafe(stream.fail, error)

        def run() -> None:
            try:
                _guarded(lambda _: self._submit(queries, stream, partly), self._coterie)
            except CoterieError as error:
                refuse(error)

        self._inbox.put(Job(run, refuse))

    def _submit(self, queries: Sequence[Query | Ready], stream: Stream, partly: bool) -> None:
        if self.broken is not None:
            raise self.broken
        if partly:
            first = queries[0].query if isinstance(queries[0], Ready) else queries[0]
            places = self._coterie.places(first.client)
            queries = queries if places is None else queries[: max(places, 1)]
            stream.shorten(len(queries))
        try:
            for index, query in enumerate(queries):
                request_id = self._coterie.submit(query, len(queries) - 1 - index)
                stream.request_ids.append(request_id)
                self._streams[request_id] = stream
        except BaseException:
            self._cancel(stream)
            raise

    def _leave(self, stream: Stream) -> None:
        # Jobs run in order, so by then the queries were submitted or refused.
        self._inbox.put(Job(lambda: self._cancel(stream), _ignore))

    def _cancel(self, stream: Stream) -> None:
        for request_id in stream.request_ids:
            if self._streams.pop(request_id, None) is not None:
                self._coterie.cancel(request_id)

    def _serve(self) -> None:
        try:
            while self._inbox.work(self._coterie.quiet, self._awake_s, self._rest):
                if not self._coterie.quiet:
                    with contextlib.nullcontext() if self._known is None else self._known.step():
                        chunks = self._coterie.step(WAIT_S)
                    give_out(chunks, self._streams)
                    self._worked_s = monotonic()
        except BaseException as error:
            broken = DeviceError("engine", f"stopped in the middle of a step: {error!r}", "restart the server")
            if self._coterie.steps_itself and isinstance(error, DeviceError):  # its last device's, which was told of
                broken = error
            self._give_up(broken)
            self._inbox.close(broken)
            if error is not broken:
                raise

    def _device_broke(self, name: str, error: CoterieError, cause: BaseException) -> None:
        """One of several: who sleeps is to see whether one is left. In any thread."""
        LOG.error("the device %s has stopped", name, exc_info=cause)
        self._inbox.put(Job(lambda: None, _ignore))

    def _end(self) -> None:
        for request_id in self._streams:
            self._coterie.cancel(request_id)
        self._give_up(ClosedError("server", "is being shut down", "ask again when it is back"))

    def _give_up(self, error: CoterieError) -> None:
        """Every answer, from now on, is this error."""
        self.broken = self._inbox.refuses = error
        for request_id, stream in self._streams.items():
            stream.loop.call_soon_threadsafe(stream.put, Chunk(request_id, "", error=error))
        self._streams.clear()
        for tell in tuple(self._waiting):
            tell(error)
        for end in self._at_end:
            end()

    def _rest(self) -> None:
        self._coterie.release_idle()
        # Until there is work again; where one of several devices was not known to be at work, once more.
        self._worked_s = math.inf if self._coterie.quiet else monotonic()

    def _awake_s(self) -> float | None:
        """How much longer to keep what is in memory, if there is no work; None: as long as there is none."""
        if self._rest_s is None or self._worked_s == math.inf:
            return None
        return min(max(self._worked_s + self._rest_s - monotonic(), 0.0), threading.TIMEOUT_MAX)


def _guarded(function: Callable[[Serving], T], coterie: Serving) -> T:
    """Run a function. A bug of ours in it ends its caller's request and nobody else's. Raises CoterieError."""
    try:
        return function(coterie)
    except CoterieError:
        raise
    except Exception as error:
        LOG.exception("a request failed")
        raise DeviceError("server", f"failed: {error!r}", "report it") from error


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _ignore(error: Exception) -> None:
    """For jobs that nobody waits for."""

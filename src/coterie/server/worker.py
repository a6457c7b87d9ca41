"""One thread that owns the engine; asyncio tasks hand it requests and receive chunks.

    HTTP task --ask--> inbox --> engine thread --call_soon_threadsafe, once a step--> streams --> HTTP tasks
        |-- slow work that needs no engine --> thread pools beside it
        |-- calls that wait for steps of several devices --> one more thread, in order
        `-- looks at several devices that wait for none --> one more thread

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
from coterie.engine.expert_control import LoadCallback
from coterie.server.lengths import are_quick, takes_long
from coterie.server.log import LOG, log_avoided, log_repinned
from coterie.server.stream import Stream, distribute

T = TypeVar("T")
POOL_THREADS = 2  # so that one slow grammar blocks no other, while most cores are left to the engine
FREED_S = 2.0  # delay before memory of slow work is released; a megabyte of text takes up to 400 MB


class Worker:
    """Runs whatever serves a composition, in its own thread, until `stop`."""

    def __init__(self, coterie: Serving, rest_s: float | None = None) -> None:
        """`rest_s`: after this many idle seconds, memory of everything not pinned is released."""
        self._coterie, self._rest_s, self._worked_s = coterie, rest_s, monotonic()
        self._inbox = Inbox(coterie.interrupt)
        self._streams: dict[str, Stream] = {}
        self._waiting: set[LoadCallback] = set()  # callbacks of unfinished loads
        self._thread = threading.Thread(target=self._serve, name="coterie-engine", daemon=True)
        self._slow_pool = ThreadPoolExecutor(POOL_THREADS, "coterie-beside")
        self._quick_pool = ThreadPoolExecutor(POOL_THREADS, "coterie-reading")  # texts do not queue behind grammars
        # If devices step themselves, the engine's thread waits for none of them: it only distributes their output.
        self._between = ThreadPoolExecutor(1, "coterie-between") if coterie.steps_itself else None
        self._known = None if coterie.steps_itself else Known(coterie.status)
        # Called on the stepping thread: a caller may learn of a change only after the next step has begun.
        self._changed = self._known.renew_soon if self._known is not None else lambda: None
        self._looking = ThreadPoolExecutor(1, "coterie-looking") if coterie.steps_itself else None
        self._release_timer: asyncio.TimerHandle | None = None
        self._num_ended = 0  # slow calls that ended since memory was last released
        self._on_end: list[Callable[[], None]] = []
        self.broken: CoterieError | None = None
        coterie.on_break(self._device_broke)
        coterie.on_avoid(log_avoided)
        coterie.on_repin(log_repinned)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Register a callback for the end of all answers. It must return at once, and may be called twice."""
        self._on_end.append(callback)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """After the current step, fail all waiting and later requests."""
        self._inbox.put(Job(self._end, _ignore))

    def stop(self) -> None:
        """Finish the current step, then stop and close the device."""
        self._inbox.end()
        self._thread.join()
        if self._release_timer is not None:
            self._release_timer.cancel()
        for pool in (self._slow_pool, self._quick_pool, self._between, self._looking):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        self._coterie.close()

    def ask(self, queries: Sequence[Query], partly: bool = False) -> Stream:
        """Submit queries together, soon; returns the stream of their chunks, or of the error if none was accepted.

        `partly`: submit only as many as may wait now, at least one; if not even that may, it is the error. Slow
        preparation runs beside the engine. Call on the thread of the loop that is to receive the chunks.
        """
        stream = Stream(len(queries), self._leave)
        if any(takes_long(query) or not all_read(self._coterie.texts, query.model) for query in queries):
            stream.preparing = stream.loop.create_task(self._prepare(queries, stream, partly))
        else:
            self._hand_over(queries, stream, partly)
        return stream

    async def call(self, function: Callable[[Serving], T]) -> T:
        """Run a function between two steps, in order, and return its result or raise its error.

        On the engine's thread, or, if devices step themselves, on one that may wait for them.
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
                self._inbox.put(Job(lambda: None, _ignore))  # it may have started work, such as a load

    async def look(self, function: Callable[[Serving], T]) -> T:
        """As `call`, for functions that change nothing: with devices that step themselves, they queue separately."""
        return await self._call(function, self._looking)

    async def status(self) -> Status:
        """The status; of a device in a long step the last known one, marked as `late`."""
        if self._known is None:
            return await self.look(lambda coterie: coterie.status())
        asked = asyncio.ensure_future(self._call(lambda coterie: coterie.status()))
        while not (await asyncio.wait({asked}, timeout=LOOK_S))[0]:
            if self._known.late:
                asked.cancel()
                return replace(self._known.status, late={self._coterie.names[0]: self._known.age_s})
        return asked.result()

    async def turn(self) -> None:
        """Return once the engine, and at least one of the devices that step themselves, has taken a turn.

        Other devices may hang. Raises the error that the engine has ended with.
        """
        await self._call(lambda _: None)
        turns = {asyncio.wrap_future(one) for one in self._coterie.next_turns()}
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

    async def run_in_pool(self, function: Callable[[Serving], T], reads: bool = False) -> T:
        """Run a slow function that does not need the engine between steps, while the engine goes on.

        `reads`: it takes milliseconds, not seconds. Returns its result or raises its error.
        """
        loop, pool = asyncio.get_running_loop(), self._quick_pool if reads else self._slow_pool
        try:
            return await loop.run_in_executor(pool, _guarded, function, self._coterie)
        finally:
            self._num_ended += 1
            if self._release_timer is None:
                self._release_timer = loop.call_later(FREED_S, self._release_memory, loop)

    def soon(self, function: Callable[[Serving], None]) -> None:
        """Run a function as `call` does, unless the engine has ended, without waiting for it."""

        def run() -> None:
            with contextlib.suppress(CoterieError):  # a bug has been logged
                _guarded(function, self._coterie)

        if self._between is None:
            self._inbox.put(Job(run, _ignore))
        elif self.broken is None:
            with contextlib.suppress(RuntimeError):  # stopped
                self._between.submit(run)

    def _release_memory(self, loop: asyncio.AbstractEventLoop) -> None:
        """Release memory; again later if more calls ended meanwhile, whose answers may be in flight."""
        again, self._num_ended = self._num_ended > 1, 1
        self._release_timer = loop.call_later(FREED_S, self._release_memory, loop) if again else None
        self._quick_pool.submit(give_back)

    async def wait_for_callback(self, begin: Callable[[Serving, LoadCallback], None]) -> None:
        """Start something between two steps and wait until its callback reports the end. Raises the error."""
        loop = asyncio.get_running_loop()
        end: asyncio.Future[None] = loop.create_future()

        def callback(error: CoterieError | None) -> None:
            self._waiting.discard(callback)
            self._changed()
            if error is None:
                loop.call_soon_threadsafe(_resolve, end, None)
            else:
                loop.call_soon_threadsafe(_fail, end, error)

        def run(coterie: Serving) -> None:
            self._waiting.add(callback)  # first, so that a concurrent _give_up finds it
            try:
                if self.broken is not None:  # broken since it was queued
                    raise self.broken
                begin(coterie, callback)
            except BaseException:
                self._waiting.discard(callback)
                raise

        await self.call(run)
        await end

    async def _prepare(self, queries: Sequence[Query], stream: Stream, partly: bool) -> None:
        reads = are_quick(queries)
        try:
            ready = await self.run_in_pool(lambda coterie: [coterie.ready(query) for query in queries], reads)
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
        # Jobs run in order, so the queries have been submitted or refused by then.
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
                    distribute(chunks, self._streams)
                    self._worked_s = monotonic()
        except BaseException as error:
            broken = DeviceError("engine", f"stopped in the middle of a step: {error!r}", "restart the server")
            if self._coterie.steps_itself and isinstance(error, DeviceError):  # its last device's error
                broken = error
            self._give_up(broken)
            self._inbox.close(broken)
            if error is not broken:
                raise

    def _device_broke(self, name: str, error: CoterieError, cause: BaseException) -> None:
        """One of several devices broke: wake the thread, to check whether any is left. In any thread."""
        LOG.error("the device %s has stopped", name, exc_info=cause)
        self._inbox.put(Job(lambda: None, _ignore))

    def _end(self) -> None:
        for request_id in self._streams:
            self._coterie.cancel(request_id)
        self._give_up(ClosedError("server", "is being shut down", "ask again when it is back"))

    def _give_up(self, error: CoterieError) -> None:
        """Fail every request with this error from now on."""
        self.broken = self._inbox.refuses = error
        for request_id, stream in self._streams.items():
            stream.loop.call_soon_threadsafe(stream.put, Chunk(request_id, "", error=error))
        self._streams.clear()
        for callback in tuple(self._waiting):
            callback(error)
        for end in self._on_end:
            end()

    def _rest(self) -> None:
        self._coterie.release_idle()
        # No more rests until there is work; repeated if one of several devices turned out to be working.
        self._worked_s = math.inf if self._coterie.quiet else monotonic()

    def _awake_s(self) -> float | None:
        """Seconds until idle memory is released; None: never, or not before there is work again."""
        if self._rest_s is None or self._worked_s == math.inf:
            return None
        return min(max(self._worked_s + self._rest_s - monotonic(), 0.0), threading.TIMEOUT_MAX)


def _guarded(function: Callable[[Serving], T], coterie: Serving) -> T:
    """Run a function; a bug in it ends only its caller's request. Raises CoterieError."""
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
    """For jobs without a waiting caller."""

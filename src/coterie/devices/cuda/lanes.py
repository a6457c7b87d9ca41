"""Lanes of the CUDA device: each has a stream, a thread that queues work on it, and a thread that waits for its end.

        submit     w0  w1  w2 ...            in order
        queueing       w1 waits on the host only until what it follows is queued; then its stream waits, not the host
        stream         [ w0 ][ w1 ]          so the GPU finds the next work when it has finished one
        ending     w0, then w1               the host learns of it by marks; an event's failure is its own

The submitting thread may queue, and a waiting thread may end, in place of these threads: a hand-over takes some 50 us,
and more if a third thread holds the interpreter lock. An event ends when the host sees it end; its duration is the
GPU's.
Knows nothing about what the work is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import TypeAlias

from coterie.core.errors import DeviceError
from coterie.core.values import value
from coterie.device import Event
from coterie.devices.cuda.driver import NAME, Driver, Health, Mark, Stream
from coterie.devices.real.lanes import LaneEvent, Lanes, as_own_event

Finish: TypeAlias = Callable[[bool], object]
"""Called once work has ended, with True on success: releases what it used, and returns its result; it may raise."""


@dataclass(slots=True)
class Turn:
    """Work that is being queued on a stream, and the events that the stream has been told to wait for."""

    lanes: Lanes
    driver: Driver
    stream: Stream
    followed: list[LaneEvent] = field(default_factory=list)

    def follow(self, event: LaneEvent) -> None:
        """Make what is queued from now on wait for an event. Raises its failure.

        The host waits until the event's work is queued on a stream, which a disk read never is.
        """
        mark = self.lanes.wait_queued(event)
        if mark is not None:
            self.driver.follow(self.stream, mark)
        self.followed.append(event)


Issue: TypeAlias = Callable[[Turn], Finish]
"""Queues work on the turn's stream. Even if it raises, its event ends only after what it has queued."""


@value
class _Work:
    event: LaneEvent
    after: tuple[LaneEvent, ...]
    issue: Issue


@value
class _Flight:
    """Queued work, from its first mark to its last; `failure` if queueing failed."""

    event: LaneEvent
    followed: tuple[LaneEvent, ...]
    after: tuple[LaneEvent, ...]
    first: Mark
    last: Mark
    finish: Finish
    failure: Exception | None


class StreamLane:
    """A lane with a name. Its threads start when it is first used.

    `brief`: its work takes milliseconds and is waited for each time, as tokens are.
    """

    def __init__(self, name: str, lanes: Lanes, driver: Driver, health: Health, brief: bool = False) -> None:
        self.name, self._brief = name, brief
        self._lanes, self._driver, self._health = lanes, driver, health
        self._lock = threading.Lock()
        self._to_queue = threading.Condition(self._lock)  # _works, _queueing or _closed changed
        self._to_end = threading.Condition(self._lock)  # _flights, _ending or _closed changed
        self._works: deque[_Work] = deque()
        self._flights: deque[_Flight] = deque()
        self._threads: list[threading.Thread] = []
        self._stream: Stream = None
        self._free_s = 0.0
        self._queueing = self._ending = False  # a thread is queueing, or ending, work
        self._closed = False

    def submit(self, label: str, after: Iterable[Event], issue: Issue, here: bool = False) -> LaneEvent:
        """Queue work after what was submitted before, and after the events `after`. Raises DeviceError when closed.

        `here`: queueing takes microseconds, so this thread may do it if nothing has to be waited for. The lane's own
        thread would get the interpreter lock only when this one is idle, and the GPU would wait.
        """
        awaited = tuple(as_own_event(event) for event in after)
        with self._lock:
            if self._closed:
                raise self._lanes.closed()
            self._start()
            event = self._lanes.new_event(self.name, label)
            work = _Work(event, awaited, issue)
            here = here and not (self._works or self._queueing) and all(map(self._lanes.is_queued, awaited))
            if here:
                self._queueing = True
            else:
                self._works.append(work)
                self._to_queue.notify()
        if here:
            self._put(work)
        return event

    def end_here(self, event: LaneEvent) -> bool:
        """Wait for work in this thread, if it is queued and the next to end; returns False if it is not."""
        with self._lock:
            if self._ending or not self._flights or self._flights[0].event is not event:
                return False
            flight = self._flights.popleft()
            self._ending = True
        self._end_one(flight)
        return True

    def cancel(self) -> None:
        """Fail work that is not yet on the stream; the rest runs to its end. The lanes must be closed next."""
        with self._lock:
            self._closed = True
            self._to_queue.notify()
            self._to_end.notify()

    def join(self) -> None:
        """Wait for the threads, after cancel and after the lanes were closed."""
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self) -> None:
        """Start threads that have not been started: the system may refuse one, and allow it later."""
        for part in (self._end, self._queue)[len(self._threads) :]:
            self._threads.append(self._lanes.start_thread(self.name, part))

    # ---- the thread that queues

    def _queue(self) -> None:
        while True:
            with self._lock:
                self._to_queue.wait_for(lambda: not self._queueing and (self._works or self._closed))
                if not self._works:
                    return
                work = self._works.popleft()
                self._queueing = True
            self._put(work)
            del work  # do not keep it alive while waiting

    def _put(self, work: _Work) -> None:
        """Queue one piece of work, as the only thread that does so now, and hand it on to be ended."""
        queued: list[_Flight] = []
        try:
            self._queue_one(work, queued)
        finally:
            with self._lock:
                self._flights.append(queued[0] if queued else _stopped(work))
                self._queueing = False
                self._to_end.notify()
                if self._works or self._closed:
                    self._to_queue.notify()

    def _queue_one(self, work: _Work, queued: list[_Flight]) -> None:
        """Put work on the stream, and its flight into `queued`, even if this thread is interrupted meanwhile."""
        first, last, failure = None, None, self._refusal() or self._open()
        turn = Turn(self._lanes, self._driver, self._stream)
        finish: Finish | None = None
        whole = False
        try:
            if failure is None:
                try:
                    with self._driver.on(self._stream):
                        for event in work.after:
                            turn.follow(event)
                        first = self._driver.mark(self._stream)
                        finish = work.issue(turn)
                except Exception as error:  # reported through the event
                    failure = error
                try:
                    last = self._driver.mark(self._stream, self._brief)
                except Exception as error:  # the first failure is the cause
                    failure = failure or error
                    with suppress(Exception):  # queued work still uses what is released at its end
                        last = self._driver.mark(self._stream, self._brief)
            if failure is None:
                self._lanes.queued(work.event, last)
            whole = True
        finally:
            if not whole:  # the event fails, but not before the queued work has ended
                failure = _stopped_while(work.event, "queued")
                with suppress(Exception):  # a lost GPU runs nothing any more
                    last = self._driver.mark(self._stream, self._brief)
            followed, end = tuple(turn.followed), finish or nothing
            queued.append(_Flight(work.event, followed, work.after, first, last, end, failure))

    def _refusal(self) -> Exception | None:
        """Why nothing more can be queued, or None."""
        return self._lanes.closed() if self._closed else self._health.gone

    def _open(self) -> Exception | None:
        """Create the stream if there is none; returns the error if that fails, and the next work tries again."""
        try:
            self._stream = self._stream or self._driver.stream()
        except Exception as error:  # reported through the event
            return error
        return None

    # ---- the thread that ends work

    def _end(self) -> None:
        while True:
            with self._lock:
                self._to_end.wait_for(lambda: not self._ending and (self._flights or self._is_over()))
                if not self._flights:
                    return
                flight = self._flights.popleft()
                self._ending = True
            self._end_one(flight)
            del flight  # do not keep it alive while waiting

    def _is_over(self) -> bool:
        """Whether nothing more can be queued."""
        return self._closed and not self._works and not self._queueing

    def _end_one(self, flight: _Flight) -> None:
        """End one piece of work, as the only thread that does so now.

        If it is interrupted while it waits, another thread will end the work.
        """
        waited = False
        try:
            failure, seconds = self._await(flight)
            waited = True
            self._end_event(flight, failure, seconds)
        finally:
            with self._lock:
                if not waited:
                    self._flights.appendleft(flight)
                self._ending = False
                if self._flights or self._closed:
                    self._to_end.notify()

    def _await(self, flight: _Flight) -> tuple[Exception | None, float]:
        """Wait for work; returns its failure, or that of what it followed, and the GPU's seconds."""
        failure, seconds = flight.failure, 0.0
        try:
            if flight.last is not None:
                self._driver.wait(flight.last)
            if failure is None:
                seconds = self._driver.seconds(flight.first, flight.last)
                # What it followed is done too, but its own lane may not have said so yet.
                failure = next((found for found in map(self._lanes.ended, flight.followed) if found is not None), None)
        except Exception as error:  # reported through the event
            failure = failure or error
        return failure, seconds

    def _end_event(self, flight: _Flight, failure: Exception | None, seconds: float) -> None:
        """Collect the result and end the event, even if this thread is interrupted meanwhile."""
        event, finished = flight.event, False
        try:
            event.state.result = flight.finish(failure is None)
            finished = True
        except Exception as error:
            failure, finished = failure or error, True
        finally:
            if not finished:
                failure = failure or _stopped_while(event, "ended")
            if failure is not None:
                failure = self._health.failure(event.label, failure)
            begun = [as_own_event(cause).state.end_s for cause in flight.after if cause.state.finished]
            start_s = max(self._free_s, perf_counter() - seconds, *begun, 0.0)
            self._free_s = self._lanes.end(event, failure, start_s)


def _stopped(work: _Work) -> _Flight:
    """Work whose thread was interrupted while queueing it."""
    return _Flight(work.event, (), work.after, None, None, nothing, _stopped_while(work.event, "queued"))


def _stopped_while(event: LaneEvent, what: str) -> DeviceError:
    return DeviceError(NAME, f"{event.label} was stopped while it was {what}", "ask again")


def nothing(_passed: bool) -> None:
    """The finish of a copy, which has nothing to release."""


def fail(error: Exception, _turn: Turn) -> Finish:
    """Work that cannot be queued, failing in its turn."""
    raise error

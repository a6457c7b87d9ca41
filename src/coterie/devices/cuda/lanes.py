"""Lanes of the CUDA device: a stream each, a thread that queues work on it, and a thread that sees work end.

        submit     w0  w1  w2 ...            in order
        queueing       w1 waits on the host only until what it follows is queued; then its stream waits, not the host
        stream         [ w0 ][ w1 ]          so the GPU finds the next work there when it has done one
        ending     w0, then w1               the host learns of it by marks; an event's failure is its own

Who submits may queue, and who waits may end, in the place of these threads: a hand-over takes some 50 us, and more
where a third thread has the interpreter. An event ends when the host saw it end, and lasted as long as the GPU says.
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
from coterie.devices.real.lanes import LaneEvent, Lanes, own

Finish: TypeAlias = Callable[[bool], object]
"""Called once work has ended, with True if it passed: gives back what it used, and then its result; it may raise."""


@dataclass(slots=True)
class Turn:
    """Work that is being queued on a stream, and what that stream has been told to wait for."""

    lanes: Lanes
    driver: Driver
    stream: Stream
    followed: list[LaneEvent] = field(default_factory=list)

    def follow(self, event: LaneEvent) -> None:
        """Let what is queued from now on wait for an event. Raises its failure.

        The host waits only until that is queued too: what a disk still reads can be queued on no stream.
        """
        mark = self.lanes.wait_queued(event)
        if mark is not None:
            self.driver.follow(self.stream, mark)
        self.followed.append(event)


Issue: TypeAlias = Callable[[Turn], Finish]
"""Queues work on the turn's stream. Whatever it raises, what it has queued ends before its event does."""


@value
class _Work:
    event: LaneEvent
    after: tuple[LaneEvent, ...]
    issue: Issue


@value
class _Flight:
    """Work that is queued: from its first mark to its last; `failure` if queueing it failed."""

    event: LaneEvent
    followed: tuple[LaneEvent, ...]
    after: tuple[LaneEvent, ...]
    first: Mark
    last: Mark
    finish: Finish
    failure: Exception | None


class StreamLane:
    """A lane of that name. Its threads start when it is first used.

    `brief`: its work takes milliseconds, and somebody waits for each end, as for tokens.
    """

    def __init__(self, name: str, lanes: Lanes, driver: Driver, health: Health, brief: bool = False) -> None:
        self.name, self._brief = name, brief
        self._lanes, self._driver, self._health = lanes, driver, health
        self._lock = threading.Lock()
        self._to_queue = threading.Condition(self._lock)  # works, whether somebody queues, or closed: another
        self._to_end = threading.Condition(self._lock)  # flights, whether somebody ends one, or closed: another
        self._works: deque[_Work] = deque()
        self._flights: deque[_Flight] = deque()
        self._threads: list[threading.Thread] = []
        self._stream: Stream = None
        self._free_s = 0.0
        self._queueing = self._ending = False  # somebody does
        self._closed = False

    def submit(self, label: str, after: Iterable[Event], issue: Issue, here: bool = False) -> LaneEvent:
        """Queue work behind what was submitted before and behind `after`. Raises DeviceError when closed.

        `here`: it takes microseconds, so this thread may put it on the stream where nothing has to be waited for. The
        lane's own would get the interpreter only when this one has nothing more to do, and the GPU wait for it.
        """
        awaited = tuple(own(event) for event in after)
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
        """Wait for work in this thread, where it is queued and the next to end; False where that is not so."""
        with self._lock:
            if self._ending or not self._flights or self._flights[0].event is not event:
                return False
            flight = self._flights.popleft()
            self._ending = True
        self._end_one(flight)
        return True

    def cancel(self) -> None:
        """Fail what has not been queued on the stream; what has been ends. The lanes must be closed next."""
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
        """Start what has not been started yet: the system may refuse a thread, and give it later."""
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
            del work  # keeps nothing of it

    def _put(self, work: _Work) -> None:
        """Queue one piece of work, by the only thread that does so now, and let its end be seen."""
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
        """Put work on the stream, and what it has become into `queued`: even where this thread is stopped behind it."""
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
                except Exception as error:  # whatever it is, it belongs to who holds the event
                    failure = error
                try:
                    last = self._driver.mark(self._stream, self._brief)
                except Exception as error:  # the first failure is the cause
                    failure = failure or error
                    with suppress(Exception):  # what is under way uses what is given back at its end
                        last = self._driver.mark(self._stream, self._brief)
            if failure is None:
                self._lanes.queued(work.event, last)
            whole = True
        finally:
            if not whole:  # what it has queued ends before its event does, which fails
                failure = _stopped_while(work.event, "queued")
                with suppress(Exception):  # a GPU that is gone has nothing under way
                    last = self._driver.mark(self._stream, self._brief)
            followed, end = tuple(turn.followed), finish or nothing
            queued.append(_Flight(work.event, followed, work.after, first, last, end, failure))

    def _refusal(self) -> Exception | None:
        """Why nothing more can be queued."""
        return self._lanes.closed() if self._closed else self._health.gone

    def _open(self) -> Exception | None:
        """Have a stream; why there is none, which the next work may have."""
        try:
            self._stream = self._stream or self._driver.stream()
        except Exception as error:  # whatever it is, it belongs to who holds the event
            return error
        return None

    # ---- the thread that sees work end

    def _end(self) -> None:
        while True:
            with self._lock:
                self._to_end.wait_for(lambda: not self._ending and (self._flights or self._is_over()))
                if not self._flights:
                    return
                flight = self._flights.popleft()
                self._ending = True
            self._end_one(flight)
            del flight  # keeps nothing of it

    def _is_over(self) -> bool:
        """Nothing more can be queued."""
        return self._closed and not self._works and not self._queueing

    def _end_one(self, flight: _Flight) -> None:
        """See work end, in the only thread that does so now; if that is stopped while it waits, another will."""
        waited = False
        try:
            failure, seconds = self._await(flight)
            waited = True
            self._tell(flight, failure, seconds)
        finally:
            with self._lock:
                if not waited:
                    self._flights.appendleft(flight)
                self._ending = False
                if self._flights or self._closed:
                    self._to_end.notify()

    def _await(self, flight: _Flight) -> tuple[Exception | None, float]:
        """Wait for work; its failure, or that of what it followed, and the GPU's seconds."""
        failure, seconds = flight.failure, 0.0
        try:
            if flight.last is not None:
                self._driver.wait(flight.last)
            if failure is None:
                seconds = self._driver.seconds(flight.first, flight.last)
                # What it followed is done too, but its own lane may not have said so yet.
                failure = next((found for found in map(self._lanes.ended, flight.followed) if found is not None), None)
        except Exception as error:  # whatever it is, it belongs to who holds the event
            failure = failure or error
        return failure, seconds

    def _tell(self, flight: _Flight, failure: Exception | None, seconds: float) -> None:
        """Take what work gives, and end its event; whoever is stopped from outside meanwhile ends it too."""
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
            begun = [own(cause).state.end_s for cause in flight.after if cause.state.finished]
            start_s = max(self._free_s, perf_counter() - seconds, *begun, 0.0)
            self._free_s = self._lanes.end(event, failure, start_s)


def _stopped(work: _Work) -> _Flight:
    """Work whose thread was stopped from outside while it queued it."""
    return _Flight(work.event, (), work.after, None, None, nothing, _stopped_while(work.event, "queued"))


def _stopped_while(event: LaneEvent, what: str) -> DeviceError:
    return DeviceError(NAME, f"{event.label} was stopped while it was {what}", "ask again")


def nothing(_passed: bool) -> None:
    """The result of a copy, which has used nothing."""


def fail(error: Exception, _turn: Turn) -> Finish:
    """Work that cannot be queued, in its turn."""
    raise error

"""Lanes of a real device, each with a worker thread that executes work in order, and the events of its completion.

Knows nothing about what the work is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from time import perf_counter

from coterie.core.errors import DeviceError
from coterie.core.values import value
from coterie.device import I32, Event, Span
from coterie.kernels import cpu as kernels

COMPUTE = "compute"  # the lane that runs programs


@dataclass(slots=True)
class _State:
    finished: bool = False
    failure: Exception | None = None
    start_s: float = 0.0
    end_s: float = 0.0
    result: object = None
    mark: object = None
    watchers: list[Callable[[bool], None]] = field(default_factory=list)
    awaited: bool = False  # some thread waits or has waited: only then does completion notify


@value
class LaneEvent(Event):
    """An event that carries its own state, so that the device keeps no record of events that are no longer referenced.

    `state.mark`: set once the work is queued on a stream, where other streams can await it without the host.
    """

    state: _State = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class _Work:
    event: LaneEvent
    after: tuple[LaneEvent, ...]
    body: Callable[[], object]
    may_run_inline: bool


@dataclass(slots=True)
class _Lane:
    ready: threading.Condition
    queue: deque[_Work] = field(default_factory=deque)
    busy: bool = False  # some thread is executing this lane's work


class Lanes:
    """Worker threads by lane name, started on first use. One lock guards all events and queues.

    Work submitted with `may_run_inline`, which blocks on nothing but `after`, may be executed by the thread that waits
    for it: handing it to another thread costs a good part of a small expert's decode step. So the lane's thread is
    woken for it only when its event is queried in another way, or more work is queued.
    """

    def __init__(self, device: str) -> None:
        self.device = device  # its name in failures
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # an event has finished or was queued on a stream
        self._lanes: dict[str, _Lane] = {}
        self._threads: list[threading.Thread] = []
        self._ids = count()
        self._closed = False

    def submit(
        self, lane: str, label: str, after: Iterable[Event], body: Callable[[], object], may_run_inline: bool = False
    ) -> LaneEvent:
        """Queue work; `body` runs on the lane's thread once `after` is done, and its result is stored in the event."""
        awaited = tuple(as_own_event(event) for event in after)
        with self._lock:
            self._check_open()
            event = LaneEvent(next(self._ids), lane, label, _State())
            if lane not in self._lanes:
                self._lanes[lane] = self._start(lane)
            waiting = self._lanes[lane].queue
            waiting.append(_Work(event, awaited, body, may_run_inline))
            if not may_run_inline or len(waiting) > 1:
                self._lanes[lane].ready.notify()
        return event

    def done(self, event: Event) -> bool:
        """Whether an event is finished; if not, makes sure that its lane's thread is awake."""
        state = as_own_event(event).state
        if not state.finished:
            with self._lock:
                self._begin(event)
        return state.finished

    def wait(self, event: Event) -> Exception | None:
        """Block until an event is finished; return its failure. Raises DeviceError if the device is closed first."""
        state = as_own_event(event).state
        with self._changed:
            state.awaited = True
            self._begin(event)
            self._changed.wait_for(lambda: state.finished or self._closed)
            if not state.finished:
                raise self.closed()
        return state.failure

    def wait_any(self, events: Sequence[Event], until: float | None) -> None:
        """Block until one of the events is finished or the clock reaches `until`."""
        states = [as_own_event(event).state for event in events]
        if len(events) == 1 and until is None and self._help(as_own_event(events[0])):
            return
        with self._changed:
            for event, state in zip(events, states, strict=True):
                state.awaited = True
                self._begin(event)
            while not any(state.finished for state in states):
                left = None if until is None else until - perf_counter()
                if left is not None and left <= 0:
                    return
                self._changed.wait(left)

    def signal_when_done(self, event: Event, flags: I32, index: int) -> None:
        """Set the native flag `flags[index]` to passed or failed when the event is finished."""
        self.when_ended(event, lambda passed: kernels.signal(kernels.address(flags) + index * flags.itemsize, passed))

    def when_ended(self, event: Event, callback: Callable[[bool], None]) -> None:
        """Invoke `callback(passed)` when the event is finished: immediately, or from the thread that completes it."""
        state = as_own_event(event).state
        with self._changed:
            if not state.finished:
                state.watchers.append(callback)
                self._begin(event)
                return
        callback(state.failure is None)

    def new_event(self, lane: str, label: str) -> LaneEvent:
        """An event for work done outside the lanes, which must call `end`. Raises DeviceError when closed."""
        with self._changed:
            self._check_open()
            return LaneEvent(next(self._ids), lane, label, _State())

    def end(
        self, event: LaneEvent, failure: Exception | None, start_s: float | None, lane: _Lane | None = None
    ) -> float:
        """Mark work done or failed; return the time. `start_s`: None if it never began; `lane`: to be marked idle.

        The time is taken under the lock shared by all lanes, so events become visible in the order of their end times.
        """
        state = event.state
        with self._lock:
            end_s = perf_counter()
            state.start_s, state.end_s = end_s if start_s is None else start_s, end_s
            state.failure, state.finished, state.mark = failure, True, None
            watchers, state.watchers = state.watchers, []
            if state.awaited or self._closed:
                self._changed.notify_all()
            if lane is not None:
                lane.busy = False
                if lane.queue or self._closed:
                    lane.ready.notify()
        for call in watchers:
            call(failure is None)
        return end_s

    def queued(self, event: LaneEvent, mark: object) -> None:
        """Record that an event's work is queued on a stream; the stream passes `mark` once it is done."""
        with self._changed:
            event.state.mark = mark
            if event.state.awaited:
                self._changed.notify_all()

    def is_queued(self, event: LaneEvent) -> bool:
        """Whether wait_queued would return at once."""
        with self._lock:
            return event.state.finished or event.state.mark is not None

    def wait_queued(self, event: LaneEvent) -> object:
        """Block until an event's work is queued or finished; return its mark, or None if it is finished.

        Raises its failure, and DeviceError if the device is closed first.
        """
        state = event.state
        with self._changed:
            state.awaited = True
            self._begin(event)
            self._changed.wait_for(lambda: state.finished or state.mark is not None or self._closed)
            if state.failure is not None:
                raise state.failure
            if not state.finished and state.mark is None:
                raise self.closed()
            return None if state.finished else state.mark

    def ended(self, event: LaneEvent) -> Exception | None:
        """Block until an event is finished, even if the device is closed meanwhile; return its failure."""
        with self._changed:
            event.state.awaited = True
            self._begin(event)
            self._changed.wait_for(lambda: event.state.finished)
        return event.state.failure

    def finished(self, event: Event) -> LaneEvent:
        """Narrow to our event type. Raises ValueError if it is not finished."""
        mine = as_own_event(event)
        if not mine.state.finished:
            raise ValueError(f"event {event.event_id} ({event.label}) is not finished; wait for it first")
        return mine

    def span(self, event: Event) -> Span:
        """Start and end of finished work; empty if it never began."""
        state = self.finished(event).state
        return Span(state.start_s, state.end_s)

    def close(self) -> None:
        """Fail work that has not begun, wait for work that has, and stop the threads. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for lane in self._lanes.values():
                lane.ready.notify()
            self._changed.wait_for(lambda: not any(lane.busy for lane in self._lanes.values()))
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def closed(self) -> DeviceError:
        """The failure of work that had not begun when the device was closed."""
        return DeviceError(self.device, "the device was closed", "make a new one")

    def start_thread(self, lane: str, work: Callable[[], None], number: int | None = None) -> threading.Thread:
        """Start a lane's thread, `number` if it has several. Raises DeviceError if the system refuses."""
        name = f"coterie {lane}" if number is None else f"coterie {lane} {number}"
        thread = threading.Thread(target=work, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            fact = f"the thread of lane {lane} could not be started"
            raise DeviceError(self.device, fact, "end other programs") from error
        return thread

    def _check_open(self) -> None:
        if self._closed:
            raise self.closed()

    def _start(self, name: str) -> _Lane:
        """Start a lane's thread and return the lane."""
        lane = _Lane(threading.Condition(self._lock))
        self._threads.append(self.start_thread(name, partial(self._serve, lane)))
        return lane

    def _begin(self, event: Event) -> None:
        """Wake the thread of the event's lane, since the caller will not execute the work itself. Needs the lock."""
        lane = self._lanes.get(event.lane)
        if lane is not None and lane.queue:
            lane.ready.notify()

    def _serve(self, lane: _Lane) -> None:
        while True:
            with self._lock:
                lane.ready.wait_for(lambda: not lane.busy and (lane.queue or self._closed))
                if not lane.queue:
                    return
                work = lane.queue.popleft()
                lane.busy = True
            self._do(lane, work)

    def _help(self, event: LaneEvent) -> bool:
        """Execute an event's work on this thread if it may run inline and is next in its lane and ready; whether so."""
        with self._lock:
            lane = self._lanes.get(event.lane)
            if lane is None or lane.busy or not lane.queue or lane.queue[0].event is not event:
                return False
            work = lane.queue[0]
            if not work.may_run_inline or not all(cause.state.finished for cause in work.after):
                return False
            lane.queue.popleft()
            lane.busy = True
        self._do(lane, work)
        return True

    def _do(self, lane: _Lane, work: _Work) -> None:
        state = work.event.state
        failure = self._await(work.after)
        state.start_s = perf_counter()
        try:
            if failure is None:
                state.result = work.body()
        except Exception as error:  # any failure is reported through the event
            failure = error
        except BaseException as error:  # a helping thread may be interrupted (KeyboardInterrupt)
            failure = DeviceError(self.device, f"{work.event.label} was stopped: {error!r}", "run it again")
            raise
        finally:
            self.end(work.event, failure, state.start_s, lane)

    def _await(self, events: tuple[LaneEvent, ...]) -> Exception | None:
        """Wait for events in order; return the first failure, or an error if the device is closed meanwhile."""
        with self._changed:
            for event in events:
                event.state.awaited = True
                self._begin(event)
                while not (event.state.finished or self._closed):
                    self._changed.wait()
                if event.state.failure is not None:
                    return event.state.failure
            return self.closed() if self._closed else None


def as_own_event(event: Event) -> LaneEvent:
    """Narrow to an event of a real device. Raises ValueError for any other."""
    if not isinstance(event, LaneEvent):
        raise ValueError(f"event {event.event_id} ({event.label}) is of another device")
    return event

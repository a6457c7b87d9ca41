"""Lanes of the CPU device: a worker thread each, work in order, and the events that say when it is done.

Knows nothing about what the work is.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter

from coterie.core.errors import DeviceError
from coterie.device import I32, Event, Span
from coterie.kernels import cpu as kernels


@dataclass(frozen=True, slots=True)
class _Gate:
    """A native flag, element `index` of an array that this keeps alive."""

    flags: I32
    index: int

    def set(self, passed: bool) -> None:
        kernels.signal(kernels.address(self.flags) + self.index * self.flags.itemsize, passed)


@dataclass(slots=True)
class _State:
    finished: bool = False
    failure: Exception | None = None
    start_s: float = 0.0
    end_s: float = 0.0
    result: object = None
    gates: list[_Gate] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CpuEvent(Event):
    """An event that carries its own state, so that the device keeps nothing of an event that nobody holds."""

    state: _State = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class _Work:
    event: CpuEvent
    after: tuple[CpuEvent, ...]
    body: Callable[[], object]


class Lanes:
    """Worker threads by lane name, started when first used. One condition guards every event."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queues: dict[str, deque[_Work]] = {}
        self._threads: list[threading.Thread] = []
        self._ids = count()
        self._closed = False

    def submit(self, lane: str, label: str, after: Iterable[Event], body: Callable[[], object]) -> CpuEvent:
        """Queue work; `body` runs on the lane's thread when `after` is done, and its result belongs to the event."""
        awaited = tuple(own(event) for event in after)
        with self._changed:
            self._check_open()
            event = CpuEvent(next(self._ids), lane, label, _State())
            if lane not in self._queues:
                self._queues[lane] = self._start(lane)
            self._queues[lane].append(_Work(event, awaited, body))
            self._changed.notify_all()
        return event

    def wait(self, event: Event) -> Exception | None:
        """Block until an event is finished; return its failure. Raises DeviceError when the device is closed first."""
        state = own(event).state
        with self._changed:
            self._changed.wait_for(lambda: state.finished or self._closed)
            if not state.finished:
                raise closed()
        return state.failure

    def wait_any(self, events: Sequence[Event], until: float | None) -> None:
        """Block until one of the events is finished or the clock is at `until`."""
        states = [own(event).state for event in events]
        with self._changed:
            while not any(state.finished for state in states):
                left = None if until is None else until - perf_counter()
                if left is not None and left <= 0:
                    return
                self._changed.wait(left)

    def pass_on(self, event: Event, flags: I32, index: int) -> None:
        """Set the native flag `flags[index]` when the event is finished: passed, or failed."""
        gate = _Gate(flags, index)
        state = own(event).state
        with self._changed:
            if not state.finished:
                state.gates.append(gate)
                return
        gate.set(state.failure is None)

    def finished(self, event: Event) -> CpuEvent:
        """The same event, with its state. Raises ValueError if it is not finished."""
        mine = own(event)
        if not mine.state.finished:
            raise ValueError(f"event {event.event_id} ({event.label}) is not finished; wait for it first")
        return mine

    def span(self, event: Event) -> Span:
        """When finished work began and ended; work that never began has an empty span."""
        state = self.finished(event).state
        return Span(state.start_s, state.end_s)

    def close(self) -> None:
        """Fail what has not begun, let what has begun end, and stop the threads. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise closed()

    def _start(self, lane: str) -> deque[_Work]:
        """Start a lane's thread and return its queue; the lane exists only if that worked."""
        queue: deque[_Work] = deque()
        thread = threading.Thread(target=self._serve, args=(queue,), name=f"coterie {lane}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise DeviceError("cpu", f"the thread of lane {lane} could not be started", "end other programs") from error
        self._threads.append(thread)
        return queue

    def _serve(self, queue: deque[_Work]) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: queue or self._closed)
                if not queue:
                    return
                work = queue.popleft()
            self._do(work)

    def _do(self, work: _Work) -> None:
        state = work.event.state
        failure = self._await(work.after)
        state.start_s = perf_counter()
        if failure is None:
            try:
                state.result = work.body()
            except Exception as error:  # whatever it is, it belongs to who holds the event
                failure = error
        with self._changed:
            state.end_s = perf_counter()
            state.failure, state.finished = failure, True
            gates, state.gates = state.gates, []
            self._changed.notify_all()
        for gate in gates:
            gate.set(failure is None)

    def _await(self, events: tuple[CpuEvent, ...]) -> Exception | None:
        """The first failure among events, once those before it are done; an error when the device is closed."""
        with self._changed:
            for event in events:
                while not (event.state.finished or self._closed):
                    self._changed.wait()
                if event.state.failure is not None:
                    return event.state.failure
            return closed() if self._closed else None


def own(event: Event) -> CpuEvent:
    """The event as one of ours. Raises ValueError for another device's."""
    if not isinstance(event, CpuEvent):
        raise ValueError(f"event {event.event_id} ({event.label}) is of another device")
    return event


def closed() -> DeviceError:
    """What work meets when the device was closed before it began."""
    return DeviceError("cpu", "the device was closed", "make a new one")

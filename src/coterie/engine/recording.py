"""Recording: which work was issued, for which expert, and how long it took; for traces, link use and exact replay.

    issued -> [pending per lane, in order] -> done: a plain value; its event is released

Knows nothing about schedules. Times are the device's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from coterie.checkpoint.layout import FileRange, Layout
from coterie.core.errors import UsageError
from coterie.core.trace import Async, Slice, Trace, Value
from coterie.device import Device, Event
from coterie.engine.request import Timings

MAX_WORKS = 1 << 18  # bounds memory: about 100 MB when full


@dataclass(frozen=True, slots=True)
class Done:
    """Work that ended. `ready_s`: the earliest it could start: issued, its lane free and its dependencies done.

    `what`: a label; `load`: the number of the switch it belongs to (0: none).
    """

    lane: str
    expert_id: str
    what: str
    load: int
    issued_s: float
    ready_s: float
    start_s: float
    end_s: float
    args: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class _Pending:
    event: Event
    after: tuple[Event, ...]
    issued_s: float
    expert_id: str
    what: str
    load: int
    args: Mapping[str, Value]


@dataclass(slots=True)
class LaneUse:
    """A lane's totals: busy seconds, pieces of work, and bytes moved."""

    busy_s: float = 0.0
    works: int = 0
    moved_bytes: int = 0


@dataclass(slots=True)
class _Subject:
    """What the engine is issuing work for at the moment."""

    expert_id: str = ""
    what: str = ""
    args: Mapping[str, Value] = field(default_factory=dict)
    layout: Layout | None = None


class Recording:
    """Remembers the last `max_works` pieces of work, and as many requests. `use`: totals per lane since the start."""

    def __init__(self, max_works: int = MAX_WORKS) -> None:
        self.use: dict[str, LaneUse] = {}
        self._works: deque[Done] = deque(maxlen=max_works)
        self._asyncs: deque[Async] = deque(maxlen=max_works)
        self._seen_works = self._seen_asyncs = 0
        self._pending: dict[str, deque[_Pending]] = {}
        self._free_s: dict[str, float] = {}
        self._subject = _Subject()
        self._loads = 0

    # ---- called by the engine

    def about(self, expert_id: str, what: str, layout: Layout | None = None, **args: Value) -> None:
        """Attribute work issued from now on to this expert; a `layout` starts a switch to it."""
        self._loads += layout is not None
        self._subject = _Subject(expert_id, what, args, layout)

    def request(self, request_id: str, expert_id: str, timings: Timings) -> None:
        """Record a request that ended."""
        args: dict[str, Value] = {"hit": int(timings.hit), "overtaken": timings.overtaken}
        if timings.cached_tokens:
            args["cached_tokens"] = timings.cached_tokens
        for name, moment in (("queued_s", timings.scheduled_s), ("ttft_s", timings.first_token_s)):
            if moment is not None:
                args[name] = round(moment - timings.arrival_s, 6)
        self._beside(Async("request", request_id, expert_id, timings.arrival_s, timings.end_s, args))

    def _beside(self, item: Async) -> None:
        self._asyncs.append(item)
        self._seen_asyncs += 1

    # ---- called by the device's wrapper

    def issued(
        self,
        device: Device,
        event: Event,
        after: tuple[Event, ...],
        issued_s: float,
        source: FileRange | None = None,
        size_bytes: int = 0,
    ) -> None:
        """Record issued work; also settles what has ended on its lane."""
        subject = self._subject
        what, args, load = subject.what, subject.args, 0
        if size_bytes:
            stage = _stage(subject.layout, source) if source is not None else ""
            what, args, load = stage or event.label, {"bytes": size_bytes}, self._loads
        lane = self._pending.setdefault(event.lane, deque())
        lane.append(_Pending(event, after, issued_s, subject.expert_id, what, load, args))
        self._settle(device, event.lane)

    def settle(self, device: Device) -> None:
        """Collect everything that has ended."""
        for lane in self._pending:
            self._settle(device, lane)

    def _settle(self, device: Device, lane: str) -> None:
        pending = self._pending[lane]
        while pending and device.done(pending[0].event):
            self._end(device, pending.popleft())

    def _end(self, device: Device, item: _Pending) -> None:
        lane, span = item.event.lane, device.span(item.event)
        causes = [device.span(event).end_s for event in item.after if device.done(event)]
        ready_s = max([item.issued_s, self._free_s.get(lane, item.issued_s), *causes])
        self._free_s[lane] = span.end_s
        args = item.args if device.failure(item.event) is None else {**item.args, "failed": 1}
        self._works.append(
            Done(
                lane,
                item.expert_id,
                item.what,
                item.load,
                item.issued_s,
                ready_s,
                span.start_s,
                span.end_s,
                args,
            )
        )
        self._seen_works += 1
        use = self.use.setdefault(lane, LaneUse())
        use.busy_s += span.end_s - span.start_s
        use.works += 1
        use.moved_bytes += int(item.args.get("bytes", 0))

    # ---- results

    @property
    def works(self) -> tuple[Done, ...]:
        """The remembered work, in the order in which it was settled: by lane, in order of issue."""
        return tuple(self._works)

    @property
    def dropped(self) -> int:
        """How many pieces of work and requests were dropped, the oldest first."""
        return self._seen_works - len(self._works) + self._seen_asyncs - len(self._asyncs)

    def durations(self) -> dict[str, list[float]]:
        """Seconds of each finished piece of work by lane, in order of issue: from when it could start to its end.

        The time the host took to issue it is included. This is the form that a modelled device replays. Raises
        UsageError if work was dropped: a part cannot be replayed.
        """
        if self._seen_works > len(self._works):
            fact = f"{self._seen_works} works were issued but {len(self._works)} are remembered"
            raise UsageError("recording", fact, "record a shorter run, or allow more works")
        lanes: dict[str, list[float]] = {}
        for work in self._works:
            lanes.setdefault(work.lane, []).append(max(0.0, work.end_s - work.ready_s))
        return lanes

    def trace(self, **notes: Value) -> Trace:
        """Everything remembered, as a trace; its notes include the number of dropped items."""
        slices = [
            Slice(work.lane, _kind(work), f"{work.expert_id} {work.what}".strip(), work.start_s, work.end_s, work.args)
            for work in self._works
        ]
        return Trace(slices, (*self._switches(), *self._asyncs), {**notes, "dropped": self.dropped})

    def _switches(self) -> list[Async]:
        """One span per switch: from the issue of its first transfer to the end of its last."""
        loads: dict[int, list[Done]] = {}
        for work in self._works:
            if work.load:
                loads.setdefault(work.load, []).append(work)
        return [
            Async(
                "switch",
                str(number),
                works[0].expert_id,
                min(work.issued_s for work in works),
                max(work.end_s for work in works),
                {"bytes": sum(int(work.args["bytes"]) for work in works)},
            )
            for number, works in loads.items()
        ]


def _kind(work: Done) -> str:
    return "transfer" if work.load else "step"


def _stage(layout: Layout | None, source: FileRange) -> str:
    """The stage that these bytes belong to. A range of a layout may be read in pieces."""
    for placed in layout.ranges if layout is not None else ():
        inside = placed.source.offset <= source.offset < placed.source.offset + placed.source.size_bytes
        if inside and placed.source.path == source.path:
            return placed.stage
    return ""

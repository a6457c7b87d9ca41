"""A device for tests of policy: nothing happens until the test says so, and every block is modelled by what it holds.

    finish(event) / fail(event, error)     by hand, in any order that lanes and dependencies allow (`runnable`)
    wait_any(events)                       finishes runnable events in order of issue until one of `events` is

Knows nothing about caches or engines. It raises AssertionError when memory is handed out that something still uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from coterie.checkpoint.layout import BLOCK_BYTES, FileIdentity, FileRange, Layout, PlacedRange
from coterie.core.errors import TransferError
from coterie.device import Binding, Buffer, Event, Executable, Limits, Span, copy_pieces
from coterie.graph.program import Program
from coterie.spec.machine import Link, MachineSpec, Tier

GIB = 1 << 30


def fake_spec(*tiers: str) -> MachineSpec:
    """A machine with these tiers, nearest first; each link is ten times slower than the one above it."""
    names = tiers or ("dram", "disk")
    links = [Link(src, dst, 1e10 / 10**i, 0.0, "fake") for i, (dst, src) in enumerate(pairwise(names))]
    return MachineSpec(
        name="fake",
        flops_per_s=1e12,
        flops_source="fake",
        tiers=tuple(Tier(name, GIB, 1e10, "fake") for name in names),
        links=tuple(links),
        launch_host_s=0.0,
        launch_device_s=0.0,
        launch_source="fake",
        rule_set="none",
    )


def fake_layout(path: str, num_blocks: int, num_stages: int = 1) -> Layout:
    """An expert of `num_blocks` blocks in at most `num_stages` ranges, one a stage; `path` stands for its bytes."""
    num_stages = min(num_stages, num_blocks)
    cuts = [num_blocks * i // num_stages * BLOCK_BYTES for i in range(num_stages + 1)]
    file_size = num_blocks * BLOCK_BYTES
    ranges = [
        PlacedRange(FileRange(path, start, end - start, FileIdentity(file_size)), start, f"layers.{i}")
        for i, (start, end) in enumerate(pairwise(cuts))
    ]
    return Layout(file_size, tuple(ranges), {})


@dataclass(frozen=True)
class FakeExecutable:
    program: Program


@dataclass(eq=False)
class Work:
    """An issued call: what it reads and writes, and what it waits for."""

    event: Event
    after: tuple[Event, ...]
    reads: Buffer | None = None
    writes: Buffer | None = None
    source: FileRange | None = None
    parts: tuple[Buffer, tuple[tuple[int, int], ...]] | None = None
    tokens: np.ndarray | None = None
    span: Span | None = None
    error: Exception | None = None


@dataclass
class FakeDevice:
    """Implements the Device protocol. `now()` counts finished events, in seconds of one each."""

    spec: MachineSpec = field(default_factory=fake_spec)
    next_token: int = 7
    refuse_after: int | None = None  # this many fetches and copies, then issuing one raises

    def __post_init__(self):
        self.slabs: list[list[object]] = []
        self.work: dict[int, Work] = {}
        self.open: list[Work] = []
        self.log: list[tuple[str, str]] = []
        self.clock = 0.0
        self.is_closed = False

    # ---- memory

    def reserve(self, tier: str, size_bytes: int, touched: bool = True) -> Buffer:
        self.spec.tier(tier)
        self.slabs.append([None] * (size_bytes // BLOCK_BYTES))
        return Buffer(len(self.slabs) - 1, tier, 0, size_bytes)

    def content(self, buffer: Buffer) -> list[object]:
        """(path, block of the file) for each block of a buffer."""
        first = buffer.offset // BLOCK_BYTES
        return self.slabs[buffer.slab_id][first : first + buffer.size_bytes // BLOCK_BYTES]

    def _store(self, buffer: Buffer, values: Sequence[object]) -> None:
        first = buffer.offset // BLOCK_BYTES
        self.slabs[buffer.slab_id][first : first + len(values)] = values

    # ---- work

    def fetch(self, dst: Buffer, source: FileRange, after: Iterable[Event] = (), parts=()) -> Event:
        self._may_refuse()
        assert dst.size_bytes == source.size_bytes
        if parts:  # what comes later may write the same blocks: they hold the same bytes
            return self._issue(f"disk->{dst.tier}", source.path, after, source=source, parts=(dst, tuple(parts)))
        return self._issue(f"disk->{dst.tier}", source.path, after, writes=dst, source=source)

    def place(self, dst: Buffer, tensors) -> None:
        assert all(offset >= 0 and offset + size <= dst.size_bytes for offset, size in tensors)

    def copy(
        self, dst: Buffer, src: Buffer, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        self._may_refuse()
        if dst.size_bytes != src.size_bytes:
            raise ValueError(f"{dst.size_bytes} != {src.size_bytes}")
        if parts:
            return self._issue(f"{src.tier}->{dst.tier}", "copy", after, reads=src, parts=(dst, tuple(parts)))
        return self._issue(f"{src.tier}->{dst.tier}", "copy", after, writes=dst, reads=src)

    def copy_all(self, dst: Buffer, src: Buffer, pieces: Sequence[tuple[int, int]], issued: list[Event]) -> None:
        copy_pieces(self, dst, src, pieces, issued)

    def load(self, program: Program) -> Executable:
        return FakeExecutable(program)

    def run(
        self,
        exe: Executable,
        binding: Binding,
        gates: Mapping[str, Event] | None = None,
        steps: int = 1,
        after: Iterable[Event] = (),
    ) -> Event:
        tokens = np.full((steps, len(binding.rows.rows_R)), self.next_token, dtype=np.int32)
        after = [*after, *(gates or {}).values()]
        return self._issue("compute", "run", after, reads=binding.weights, tokens=tokens)

    def read_weights(self, weights: Buffer, gates: Mapping[str, Event] | None = None) -> Event:
        """What a run does to weights, without a program."""
        return self._issue("compute", "read", (gates or {}).values(), reads=weights)

    def _may_refuse(self) -> None:
        if self.refuse_after is not None:
            if self.refuse_after == 0:
                self.refuse_after = None
                raise TransferError("fake", "the device refuses to start this transfer")
            self.refuse_after -= 1

    def _issue(self, lane: str, label: str, after: Iterable[Event], **fields) -> Event:
        event = Event(len(self.work), lane, label)
        work = Work(event, tuple(after), **fields)
        if work.writes is not None:
            for other in self.open:
                for used in (other.reads, other.writes):
                    assert used is None or not _overlap(used, work.writes), (
                        f"{event} overwrites what {other.event} uses"
                    )
            self._store(work.writes, ["torn"] * (work.writes.size_bytes // BLOCK_BYTES))
        self.work[event.event_id] = work
        self.open.append(work)
        self.log.append((lane, label))
        self._spread_failures()
        return event

    # ---- events

    def runnable(self) -> list[Event]:
        """Unfinished events that are first in their lane and whose dependencies are done, in order of issue."""
        first = {}
        for work in self.open:
            first.setdefault(work.event.lane, work)
        return [w.event for w in first.values() if all(self.done(e) for e in w.after)]

    def finish(self, event: Event) -> None:
        """Let a runnable event end well: now its bytes are there."""
        assert event in self.runnable(), f"{event} cannot end yet"
        work = self.work[event.event_id]
        if work.writes is not None:
            if work.source is not None:
                first = work.source.offset // BLOCK_BYTES
                blocks = range(first, first + work.writes.size_bytes // BLOCK_BYTES)
                self._store(work.writes, [(work.source.path, block) for block in blocks])
            else:
                self._store(work.writes, self.content(work.reads))
        if work.parts is not None:
            dst, parts = work.parts
            for offset, size_bytes in parts:
                if work.source is None:
                    self._store(dst.view(offset, size_bytes), self.content(work.reads.view(offset, size_bytes)))
                    continue
                first = (work.source.offset + offset) // BLOCK_BYTES
                blocks = range(first, first + size_bytes // BLOCK_BYTES)
                self._store(dst.view(offset, size_bytes), [(work.source.path, block) for block in blocks])
        self._end(work, None)

    def fail(self, event: Event, error: Exception | None = None) -> None:
        """Let a runnable event fail; what depends on it fails at once with the same failure."""
        assert event in self.runnable(), f"{event} cannot end yet"
        self._end(self.work[event.event_id], error or TransferError("fake", f"{event.label} was not read"))
        self._spread_failures()

    def _end(self, work: Work, error: Exception | None) -> None:
        start, self.clock = self.clock, self.clock + 1.0
        work.span, work.error = Span(start, self.clock), error
        self.open.remove(work)

    def _spread_failures(self) -> None:
        for work in list(self.open):
            errors = [self.work[e.event_id].error for e in work.after if self.work[e.event_id].error is not None]
            if errors:
                work.span, work.error = Span(self.clock, self.clock), errors[0]
                self.open.remove(work)

    def interrupt(self) -> None:
        """Its runs are one piece."""

    def tokens(self, event: Event):
        work = self.work[event.event_id]
        if work.error is not None:
            raise work.error
        assert work.span is not None
        return work.tokens

    def logits(self, event: Event, rows: Sequence[int]):
        raise NotImplementedError

    def expect(self, exe: Executable, limits: Limits, block_bytes: int, shared: Sequence[int] | None = None):
        """Nothing: it compiles nothing."""

    def inspect(self, exe: Executable, binding: Binding):
        raise NotImplementedError

    def changes_logits(self) -> bool:
        return False

    def synthetic(self) -> bool:
        return True

    def now(self) -> float:
        return self.clock

    def done(self, event: Event) -> bool:
        return self.work[event.event_id].span is not None

    def failure(self, event: Event) -> Exception | None:
        assert self.done(event)
        return self.work[event.event_id].error

    def span(self, event: Event) -> Span:
        span = self.work[event.event_id].span
        assert span is not None
        return span

    def wait_any(self, events: Sequence[Event], until: float | None = None) -> None:
        while not any(self.done(event) for event in events):
            if until is not None and (self.clock >= until or not self.open):
                self.clock = max(self.clock, until)
                return
            self.finish(self.runnable()[0])

    def close(self) -> None:
        self.is_closed = True


def _overlap(a: Buffer, b: Buffer) -> bool:
    return a.slab_id == b.slab_id and a.offset < b.offset + b.size_bytes and b.offset < a.offset + a.size_bytes

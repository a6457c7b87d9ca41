"""ModelledDevice: implements the seam by simulation. Lanes hold pending work; only `wait_any` advances the clock.

    ModelledDevice(spec)                       prices, no bytes, synthetic tokens
    ModelledDevice(spec, numerics=cpu)         prices, real bytes and tokens, computed when the work is issued
    ModelledDevice(spec, durations=recorded)   durations recorded on a real device instead of prices

Knows nothing about how concurrent work shares resources (fluid.py) or what work costs (price.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.layout import BLOCK_BYTES, FileRange
from coterie.core.errors import CapacityError
from coterie.core.units import format_bytes
from coterie.device import F32, I32, Binding, Buffer, Device, Event, Executable, Span, copy_pieces
from coterie.devices.modelled.clock import BEST, Kit
from coterie.devices.modelled.event import ModelledEvent, as_own_event, drawn_by, finished, foreign_event
from coterie.devices.modelled.exe import ModelledExecutable, Prices, numerics_of, own_executable, run_phases
from coterie.devices.modelled.fluid import Phase, Usage, Work
from coterie.devices.modelled.numerics import Drawn, Numerics, computing
from coterie.devices.modelled.price import StepPricer, gated, gated_by
from coterie.devices.modelled.region import Pricing
from coterie.devices.modelled.replay import Replay
from coterie.devices.modelled.shard import rank_program
from coterie.devices.modelled.tokens import synthetic_tokens
from coterie.devices.modelled.transfer import Transfers, resources, route
from coterie.graph.program import Program
from coterie.spec.machine import MachineSpec

COMPUTE_LANE: Final = "compute"
MAX_CHECKED: Final = 1024  # cache of buffers already validated; bounds memory, not use
NO_GATES: Final[Mapping[str, Work]] = MappingProxyType({})

Orchestration = Literal["host", "device"]
Fail = Callable[[str], Exception | None]
Compute = Callable[[], Exception | None]


class ModelledDevice(Device):
    """A device whose timing is computed from a MachineSpec.

    `numerics`: a real device that computes values, in order of issue; closed together with this one.
    `durations`: recorded seconds per lane, in order of issue, used instead of prices (gates are still awaited).
    `orchestration`: what launches regions, `host` or `device`; `spec.gated_launch` overrides it for steps with gates.
    `fail`: called with each work's label; if it returns an exception, the work fails with it.
    `mapped`: place sections on the machine's grid, which is exact but slow: for short runs.
    `kit`: the clock implementation; times do not depend on it.
    Raises UsageError when the spec lacks a number that pricing needs.
    """

    def __init__(
        self,
        spec: MachineSpec,
        numerics: Device | None = None,
        durations: Mapping[str, Sequence[float]] | None = None,
        orchestration: Orchestration = "device",
        fail: Fail | None = None,
        mapped: bool = False,
        kit: Kit = BEST,
    ) -> None:
        self._spec = spec
        self._numerics = None if numerics is None else Numerics(numerics)
        self._replay = None if durations is None else Replay(f"{spec.name}: replay", durations)
        self._fail, self._kit = fail, kit
        self._clock = kit.clock(resources(spec) if durations is None else {})
        self._slabs, self._checked = dict[int, Buffer](), dict[int, Buffer]()
        self._transfers, self._pricing = Transfers(spec, kit), Pricing(orchestration, mapped=mapped)
        self._used = {tier.name: 0 for tier in spec.tiers}
        self._interrupted = self._closed = False
        self._ran: int | None = None  # the latest run's number, not its event, which would keep its tokens alive

    @property
    def spec(self) -> MachineSpec:
        """Tiers nearest first, links, launch costs; frozen."""
        return self._spec

    def reserve(self, tier: str, size_bytes: int, touched: bool = True) -> Buffer:
        """Reserve bytes of a tier, rounded up to 4096. Raises CapacityError; KeyError for an unknown tier."""
        self._check_open()
        size = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        free = self._spec.tier(tier).capacity_bytes - self._used[tier]
        if size > free:
            levers = (f"reserve less in {tier}", f"choose a machine with more {tier}")
            raise CapacityError(f"{self._spec.name}: {tier}", "a slab", size, free, levers)
        slab_id = len(self._slabs)
        if self._numerics is not None:
            self._numerics.reserve(slab_id, size_bytes, touched)
        self._used[tier] += size
        return self._slabs.setdefault(slab_id, Buffer(slab_id, tier, 0, size_bytes))

    def give_back(self, buffer: Buffer) -> None:
        """No effect, not even on the numerics device's memory."""

    def place(self, dst: Buffer, tensors: Sequence[tuple[int, int]]) -> None:
        """Forwarded to the numerics device, if there is one."""
        if self._numerics is not None:
            self._numerics.place(dst, tensors)

    def copy(
        self, dst: Buffer, src: Buffer, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Copy between tiers. Raises ValueError when sizes differ, KeyError without links from `src` to `dst`."""
        self._check_buffers(dst, src)
        if dst.size_bytes != src.size_bytes:
            raise ValueError(f"a copy of {src.size_bytes} bytes into {dst.size_bytes}; sizes must be equal")
        size_bytes = sum([size for _, size in parts]) if parts else src.size_bytes
        lane, label, phases = self._transfer(src.tier, dst.tier, size_bytes)
        compute = None if self._numerics is None else partial(self._numerics.copy, dst, src, parts)
        return self._issue(lane, label, after, phases, compute)

    def copy_all(self, dst: Buffer, src: Buffer, pieces: Sequence[tuple[int, int]], issued: list[Event]) -> None:
        """See Device.copy_all. A single call of the clock, unless numerics, failures or a replay need each piece."""
        if not (self._numerics is None and self._fail is None and self._replay is None):
            copy_pieces(self, dst, src, pieces, issued)
            return
        self._check_buffers(dst, src)
        first = min([offset for offset, _ in pieces], default=0)
        end = max([offset + size_bytes for offset, size_bytes in pieces], default=0)
        dst.view(first, end - first), src.view(first, end - first)
        lane, labels, phases = self._transfers.of_pieces(src.tier, dst.tier, pieces)
        works = self._clock.issue_chain(lane, [as_own_event(event).work for event in issued[-1:]], phases)
        issued += [ModelledEvent(work.number, lane, label, work) for work, label in zip(works, labels, strict=True)]

    def fetch(
        self, dst: Buffer, source: FileRange, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Model the reading of a file range. Without numerics the file is not opened, so changes go unnoticed."""
        self._check_buffers(dst)
        if source.size_bytes > dst.size_bytes:
            raise ValueError(f"a range of {source.size_bytes} bytes into a buffer of {dst.size_bytes}")
        disk = self._spec.home_tier
        size_bytes = sum([size for _, size in parts]) if parts else source.size_bytes
        lane, _, phases = self._transfer(disk, dst.tier, size_bytes)
        compute = None if self._numerics is None else partial(self._numerics.fetch, dst, source, parts)
        return self._issue(lane, f"fetch {source.path}@{source.offset}", after, phases, compute)

    def load(self, program: Program) -> ModelledExecutable:
        """Prepare a program (one rank's shard if the machine has several units); steps are priced on first use."""
        self._check_open()
        numerics = None if self._numerics is None else self._numerics.load(program)
        priced = rank_program(self._spec, program)
        ways = self._pricing, gated_by(self._spec, self._pricing)
        made = {way: Prices(StepPricer(self._spec, priced, way, self._kit)) for way in ways}
        return ModelledExecutable(program, numerics, made[ways[0]], made[ways[1]])

    def run(
        self,
        exe: Executable,
        binding: Binding,
        gates: Mapping[str, Event] | None = None,
        steps: int = 1,
        after: Iterable[Event] = (),
    ) -> Event:
        """Run up to `steps` steps on the compute lane, stalling at gates.

        Raises ValueError for arguments that do not fit the executable.
        """
        before = [as_own_event(event).work for event in after] if after else []
        awaited = {stage: as_own_event(gate).work for stage, gate in gates.items()} if gates else NO_GATES
        rows, weights, kv = binding.rows, binding.weights, binding.kv
        sizes = rows.sizes
        self._check_buffers(*binding.extents)
        mine = own_executable(exe, binding, sizes, awaited, steps)
        if self._interrupted:
            steps, self._interrupted = 1, False
        failure, drawn, compute = None, Drawn(), None
        if self._numerics is not None:
            compute = partial(self._numerics.run, numerics_of(mine), binding, steps, drawn)
        if before or awaited or compute is not None or self._fail is not None:
            failure = self._compute(mine.label, (*before, *awaited.values()), compute)
        if self._numerics is not None:
            found = drawn.tokens
            steps, tokens = (1, None) if found is None else (len(found), lambda: found)
        else:
            tokens = partial(synthetic_tokens, rows, mine.vocab_size, steps, self._kit.draw)
            steps = len(tokens()) if steps > 1 and any(rows.end_ids) else steps
        if self._replay is not None:
            gated_by = [self._kit.phase(gate=gate) for gate in gated(mine.program, awaited) if gate is not None]
            replayed = self._append(COMPUTE_LANE, mine.label, before, gated_by, failure, tokens)
            self._ran = replayed.event_id
            return replayed
        phases, cuts = run_phases(mine, sizes, (weights.tier, kv.tier), steps, awaited, mine.more_bytes(binding))
        work = self._clock.issue(COMPUTE_LANE, before, phases, failure, cuts)
        self._ran = work.number
        return ModelledEvent(work.number, COMPUTE_LANE, mine.label, work, tokens)

    def interrupt(self) -> None:
        """End the current run after its step at the modelled time; if there is none, limit the next run to one step.

        A replayed run cannot be cut: the recording already reflects its interruptions.
        """
        run = self._clock.head(COMPUTE_LANE)
        self._interrupted = run is None
        if run is not None:
            run.cut_short()

    def tokens(self, event: Event) -> I32:
        """Sampled tokens [steps done, R] of a finished run. Raises its failure, ValueError for any other event."""
        return drawn_by(event)

    def logits(self, event: Event, rows: Sequence[int]) -> F32:
        """Logits of the latest run, from the numerics device. Raises UnsupportedError without one."""
        return computing(self._numerics, self._spec.name, event).logits(event, self._ran, rows)

    def vectors(self, event: Event, rows: Sequence[int]) -> F32:
        """As `logits`."""
        return computing(self._numerics, self._spec.name, event).vectors(event, self._ran, rows)

    def inspect(self, exe: Executable, binding: Binding) -> Mapping[str, npt.NDArray[np.float32]]:
        """Every stored value of one step, computed by the numerics device. Raises UnsupportedError without one."""
        self._check_buffers(*binding.extents)
        mine = own_executable(exe, binding, binding.rows.sizes, (), 1)
        real, self._ran = computing(self._numerics, self._spec.name), None
        return real.device.inspect(numerics_of(mine), real.bind(binding))

    def synthetic(self) -> bool:
        """True unless a numerics device computes the tokens."""
        return self._numerics is None or self._numerics.device.synthetic()

    def changes_logits(self) -> bool:
        """As the numerics device; False without one."""
        return self._numerics is not None and self._numerics.device.changes_logits()

    def now(self) -> float:
        """Modelled seconds since the device was made."""
        return self._clock.now

    def done(self, event: Event) -> bool:
        """True when the event is done or failed. Does not advance the clock."""
        if not isinstance(event, ModelledEvent):
            raise foreign_event(event)
        return event.work.end_s is not None

    def failure(self, event: Event) -> Exception | None:
        """Why a finished event failed, or None. Raises ValueError if it is not finished."""
        return finished(event).failure

    def span(self, event: Event) -> Span:
        """Start and end of a finished event's work. Raises ValueError if it is not finished."""
        start_s, end_s = (work := finished(event)).start_s, work.end_s
        if start_s is None or end_s is None:
            raise RuntimeError(f"{event.label} is finished but has no times")
        return Span(start_s, end_s)

    def wait_any(self, events: Sequence[Event], until: float | None = None) -> None:
        """Advance the clock until an event is finished or the time is `until`. Raises ValueError given neither."""
        if not events and until is None:
            raise ValueError("no events and no moment to wait for")
        works = []
        for event in events:
            if not isinstance(event, ModelledEvent):
                raise foreign_event(event)
            works.append(event.work)
        if not self._clock.wait(works, until):
            raise RuntimeError(f"nothing is active but {events[0].label} is not finished")

    def usage(self) -> Mapping[str, Usage]:
        """Use of each resource (compute, tiers, links) so far; empty in a replay."""
        return {name: Usage(given.drawn, given.busy_s) for name, given in self._clock.usage.items()}

    def lane_busy_s(self) -> Mapping[str, float]:
        """Seconds for which finished work occupied each lane, including stalls at gates."""
        return dict(self._clock.lane_busy_s)

    def close(self) -> None:
        """Free all memory and close the numerics device. Idempotent."""
        if not self._closed and self._numerics is not None:
            self._numerics.device.close()
        self._closed = True
        self._slabs.clear()

    def _transfer(self, src: str, dst: str, size_bytes: int) -> tuple[str, str, list[Phase]]:
        """Lane, label and phases of a transfer; no phases in a replay."""
        if self._replay is None:
            return self._transfers.of(src, dst, size_bytes)
        route(self._spec, src, dst)
        return f"{src}->{dst}", f"copy {format_bytes(size_bytes)}", []

    def _issue(
        self,
        lane: str,
        label: str,
        after: Iterable[Event],
        phases: list[Phase],
        compute: Compute | None,
    ) -> Event:
        works = [as_own_event(event).work for event in after]
        return self._append(lane, label, works, phases, self._compute(label, works, compute))

    def _compute(self, label: str, causes: Iterable[Work], compute: Compute | None) -> Exception | None:
        """Execute on the numerics device now, unless a failure is injected or inherited; returns the failure.

        All dependencies were issued earlier, so their failures are known.
        """
        if self._fail is not None:
            injected = self._fail(label)
            if injected is not None:
                return injected
        for work in causes:
            if work.failure is not None:
                return work.failure
        return None if compute is None else compute()

    def _append(
        self,
        lane: str,
        label: str,
        after: list[Work],
        phases: list[Phase],
        failure: Exception | None,
        tokens: Callable[[], I32] | None = None,
    ) -> Event:
        if self._replay is not None:
            gates, recorded = (phase.gate for phase in phases), self._kit.phase(self._replay.next_s(lane))
            phases = [recorded, *(self._kit.phase(gate=gate) for gate in gates if gate is not None)]
        work = self._clock.issue(lane, after, phases, failure)
        return ModelledEvent(work.number, lane, label, work, tokens)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"device {self._spec.name} is closed")

    def _check_buffers(self, *buffers: Buffer) -> None:
        self._check_open()
        slabs, checked = self._slabs, self._checked
        for buffer in buffers:
            if checked.get(id(buffer)) is buffer:
                continue
            slab = slabs.get(buffer.slab_id)
            if slab is None or slab.tier != buffer.tier:
                raise ValueError(f"{buffer} is not of this device")
            offset, size_bytes = buffer.offset, buffer.size_bytes
            if offset < 0 or size_bytes < 0 or offset + size_bytes > slab.size_bytes:
                slab.view(offset, size_bytes)
            if len(checked) >= MAX_CHECKED:
                checked.clear()
            checked[id(buffer)] = buffer

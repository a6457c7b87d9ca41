"""Base class of the real devices: lanes whose events carry their state, programs encoded once, the host's clock.

Knows nothing about memory, kernels or how a step runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError
from coterie.core.shapes import Sizes
from coterie.core.values import value
from coterie.device import F32, I32, Event, Executable, Limits, Span
from coterie.devices.real.lanes import LaneEvent, Lanes, as_own_event
from coterie.devices.real.step import LoweredExecutable
from coterie.graph.program import Program, architecture_key
from coterie.spec.machine import MachineSpec

F32_BYTES = 4


@value
class Ran:
    """The latest run issued, and the sizes that determine where its values are in the workspace."""

    event: Event
    exe: LoweredExecutable
    sizes: Sizes
    rows: int
    steps: int

    @property
    def rows_at(self) -> tuple[int, int]:
        """Offset of the logits or vectors in the workspace, and bytes per row."""
        return self.exe.plan(self.sizes)[0][self.exe.row_values], F32_BYTES * self.exe.program.result_width


class RealDevice(ABC):
    """The hardware-independent part of a device. `name` identifies it in failures and executables."""

    def __init__(self, name: str, spec: MachineSpec) -> None:
        self._lanes = Lanes(name)
        self._spec = spec
        self._used_bytes = {tier.name: 0 for tier in spec.tiers}
        self._loaded: dict[object, LoweredExecutable] = {}
        self._ran: Ran | None = None
        self._closed = False

    def tokens(self, event: Event) -> I32:
        """Sampled tokens [steps done, R] of a finished run. Raises the event's failure, ValueError if unfinished."""
        state = self._lanes.finished(event).state
        if state.failure is not None:
            raise state.failure
        if not isinstance(state.result, np.ndarray):
            raise ValueError(f"event {event.event_id} ({event.label}) is not a run")
        return state.result

    def logits(self, event: Event, rows: Sequence[int]) -> F32:
        """Logits [rows, V] of the latest run. Raises its failure, ValueError for any other run."""
        return self._rows_of(event, rows, "logits")

    def vectors(self, event: Event, rows: Sequence[int]) -> F32:
        """Hidden states [rows, D] of the latest run. Raises its failure, ValueError for any other run."""
        return self._rows_of(event, rows, "vectors")

    def _rows_of(self, event: Event, rows: Sequence[int], what: str) -> F32:
        self._check_open()
        state, ran = self._lanes.finished(event).state, self._ran
        if state.failure is not None:
            raise state.failure
        if ran is None or ran.event is not event:
            raise ValueError(f"event {event.event_id} ({event.label}) is not the last run: its {what} are gone")
        if ran.steps != 1:
            fact = f"is of {ran.steps} steps; {what} are those of one step"
            raise ValueError(f"event {event.event_id} ({event.label}) {fact}")
        if (what == "logits") != bool(ran.exe.drawn):
            gives = "tokens and logits" if ran.exe.drawn else "vectors"
            raise ValueError(f"event {event.event_id} ({event.label}) has {gives}, and no {what}")
        if not all(0 <= row < ran.rows for row in rows):
            raise ValueError(f"rows are {list(rows)}, outside 0 to {ran.rows - 1}")
        return self._read_rows(ran, rows)

    @abstractmethod
    def _read_rows(self, ran: Ran, rows: Sequence[int]) -> F32:
        """Copy these rows of a run's logits or vectors out of the workspace."""

    def _room(self, tier: str, size_bytes: int, *levers: str) -> int:
        """`size_bytes` rounded up to whole blocks. Raises CapacityError if the tier does not have that many left."""
        size = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        free = self._spec.tier(tier).capacity_bytes - self._used_bytes[tier]
        if size > free:
            raise CapacityError(f"{self._spec.name}: {tier}", "a slab", size, free, levers)
        return size

    def expect(  # noqa: B027
        self, exe: Executable, limits: Limits, block_bytes: int, shared: Sequence[int] | None = None
    ) -> None:
        """Nothing to prepare by default."""

    def synthetic(self) -> bool:
        """False: values are computed."""
        return False

    def changes_logits(self) -> bool:
        """False by default: the sampler uses unmodified logits."""
        return False

    def now(self) -> float:
        """Seconds on the host's monotonic clock."""
        return perf_counter()

    def done(self, event: Event) -> bool:
        """True when the event is done or failed. Never blocks."""
        return self._lanes.done(event)

    def failure(self, event: Event) -> Exception | None:
        """Why a finished event failed, or None. Raises ValueError if it is not finished."""
        return self._lanes.finished(event).state.failure

    def span(self, event: Event) -> Span:
        """Start and end of a finished event's work. Raises ValueError if it is not finished."""
        return self._lanes.span(event)

    def wait_any(self, events: Sequence[Event], until: float | None = None) -> None:
        """Block until one of the events is finished or the clock reaches `until`. Raises ValueError without either."""
        if not events and until is None:
            raise ValueError("wait_any has neither events nor a time to wait for")
        self._lanes.wait_any(events, until)

    def _check_open(self) -> None:
        if self._closed:
            raise self._lanes.closed()

    def _once(self, program: Program, encode: Callable[[], LoweredExecutable]) -> LoweredExecutable:
        """The encoded program, cached per architecture key, rule set and buffer assignment."""
        self._check_open()
        plan = tuple(sorted(program.buffers.slot_of.items()))
        key = (architecture_key(program.graph), program.rule_set, plan)
        if key not in self._loaded:
            self._loaded[key] = encode()
        return self._loaded[key]

    def _own(self, exe: Executable) -> LoweredExecutable:
        """Narrow to an executable of this device. Raises ValueError for another device's."""
        if not isinstance(exe, LoweredExecutable) or exe.device != self._lanes.device:
            raise ValueError(f"{exe.program.graph.name} was loaded by another device")
        return exe


def waits_of(exe: LoweredExecutable, gates: Mapping[str, Event] | None) -> dict[int, LaneEvent]:
    """Gates keyed by the first row of their stage, instead of its name. Raises ValueError for an unknown stage."""
    gates = gates or {}
    unknown = gates.keys() - exe.first_rows.keys()
    if unknown:
        raise ValueError(f"gates for {', '.join(sorted(unknown))}, no stages of {exe.program.graph.name}")
    return {exe.first_rows[stage]: as_own_event(event) for stage, event in gates.items()}

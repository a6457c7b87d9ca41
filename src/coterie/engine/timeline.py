"""Timeline: a device whose `done` answers as of the last wait, so that a decision sees a single instant.

    real time    |-- run --|..host works..|          a fetch ends while the host works: the decision made
                           ^ as of here   ^ asked    here does not know it yet, however slow the host is

The decision log then depends on when work ended, not on how fast Python is, so the durations of a real run, replayed on
a modelled device, give the same log. `now` is the device's own: it serves reports, and no decision depends on it.
Knows nothing about schedules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.layout import FileRange
from coterie.device import F32, I32, Binding, Buffer, Device, Event, Executable, Limits, Span, copy_pieces
from coterie.engine.recording import Recording
from coterie.graph.program import Program
from coterie.spec.machine import MachineSpec


class Timeline(Device):
    """Wraps a device; everything but time passes through. The cache and the engine must share one instance.

    `recording`, if given, is told of all work.
    """

    def __init__(self, device: Device, recording: Recording | None = None) -> None:
        self._device, self._recording = device, recording
        self._as_of = device.now()
        self._last: Event | None = None  # the event last found done: several callers ask about the end of a run

    def now(self) -> float:
        """Delegates to the device."""
        return self._device.now()

    def tokens(self, event: Event) -> I32:
        """Delegates to the device."""
        return self._device.tokens(event)

    def logits(self, event: Event, rows: Sequence[int]) -> F32:
        """Delegates to the device."""
        return self._device.logits(event, rows)

    def vectors(self, event: Event, rows: Sequence[int]) -> F32:
        """Delegates to the device."""
        return self._device.vectors(event, rows)

    def failure(self, event: Event) -> Exception | None:
        """Delegates to the device."""
        return self._device.failure(event)

    def span(self, event: Event) -> Span:
        """Delegates to the device."""
        return self._device.span(event)

    def wait_any(self, events: Sequence[Event], until: float | None = None) -> None:
        """Wait as the device does; the instant is then the end of the first of the events to end, or `until`."""
        device = self._device
        device.wait_any(events, until)
        moment: float | None = None
        for event in events:
            if device.done(event):
                end_s = device.span(event).end_s
                if moment is None or end_s < moment:
                    moment, self._last = end_s, event
        if moment is None:
            moment = device.now() if until is None else until
        self._as_of = max(self._as_of, moment)

    def done(self, event: Event) -> bool:
        """True if the event had ended by the instant of the last wait."""
        if event is self._last:
            return True
        found = self._device.done(event) and self._device.span(event).end_s <= self._as_of
        if found:
            self._last = event
        return found

    def fetch(
        self, dst: Buffer, source: FileRange, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Delegates to the device."""
        after = tuple(after)
        event = self._device.fetch(dst, source, after, parts)
        if self._recording is not None:
            size_bytes = sum(size for _, size in parts) if parts else source.size_bytes
            self._recording.issued(self._device, event, after, self._as_of, source, size_bytes)
        return event

    def place(self, dst: Buffer, tensors: Sequence[tuple[int, int]]) -> None:
        """Delegates to the device."""
        self._device.place(dst, tensors)

    def copy(
        self, dst: Buffer, src: Buffer, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Delegates to the device."""
        if self._recording is None:
            return self._device.copy(dst, src, after, parts)
        after = tuple(after)
        event = self._device.copy(dst, src, after, parts)
        size_bytes = sum(size for _, size in parts) if parts else src.size_bytes
        self._recording.issued(self._device, event, after, self._as_of, size_bytes=size_bytes)
        return event

    def copy_all(self, dst: Buffer, src: Buffer, pieces: Sequence[tuple[int, int]], issued: list[Event]) -> None:
        """Delegates to the device."""
        if self._recording is None:
            self._device.copy_all(dst, src, pieces, issued)
        else:
            copy_pieces(self, dst, src, pieces, issued)

    def run(
        self,
        exe: Executable,
        binding: Binding,
        gates: Mapping[str, Event] | None = None,
        steps: int = 1,
        after: Iterable[Event] = (),
    ) -> Event:
        """Delegates to the device."""
        after = tuple(after)
        event = self._device.run(exe, binding, gates, steps, after)
        if self._recording is not None:
            self._recording.issued(self._device, event, after, self._as_of)
        return event

    def interrupt(self) -> None:
        """Delegates to the device."""
        self._device.interrupt()

    @property
    def spec(self) -> MachineSpec:
        """Delegates to the device."""
        return self._device.spec

    def reserve(self, tier: str, size_bytes: int, touched: bool = True) -> Buffer:
        """Delegates to the device."""
        return self._device.reserve(tier, size_bytes, touched)

    def give_back(self, buffer: Buffer) -> None:
        """Delegates to the device."""
        self._device.give_back(buffer)

    def load(self, program: Program) -> Executable:
        """Delegates to the device."""
        return self._device.load(program)

    def expect(self, exe: Executable, limits: Limits, block_bytes: int, shared: Sequence[int] | None = None) -> None:
        """Delegates to the device."""
        self._device.expect(exe, limits, block_bytes, shared)

    def inspect(self, exe: Executable, binding: Binding) -> Mapping[str, npt.NDArray[np.float32]]:
        """Delegates to the device."""
        return self._device.inspect(exe, binding)

    def changes_logits(self) -> bool:
        """Delegates to the device."""
        return self._device.changes_logits()

    def synthetic(self) -> bool:
        """Delegates to the device."""
        return self._device.synthetic()

    def close(self) -> None:
        """Delegates to the device."""
        self._device.close()

"""Numerics: the real device that computes a modelled device's values, one operation at a time, in order of issue.

    modelled   slab 0, slab 1 ..           copy, fetch, run: priced
    numerics   memory for each slab        the same operations, executed synchronously before they are priced

Knows nothing about prices or modelled time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coterie.checkpoint.layout import FileRange
from coterie.core.errors import UnsupportedError
from coterie.device import F32, I32, Binding, Buffer, Device, Event, Executable, wait_for
from coterie.devices.modelled.event import passed
from coterie.graph.compile import compile_graph
from coterie.graph.fuse import KERNEL_SETS
from coterie.graph.program import Program


@dataclass(slots=True)
class Drawn:
    """The tokens a run sampled, [steps done, R]; None before it ran, and if it failed."""

    tokens: I32 | None = None


class Numerics:
    """Executes a modelled device's operations on a real one. Copy, fetch and run return their failure, or None."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._slabs: dict[int, Buffer] = {}
        self._ran: Event | None = None

    def reserve(self, slab_id: int, size_bytes: int, touched: bool) -> None:
        """Memory for a slab of the modelled device. Raises CapacityError."""
        self._slabs[slab_id] = self.device.reserve(self.device.spec.run_tier, size_bytes, touched)

    def place(self, dst: Buffer, tensors: Sequence[tuple[int, int]]) -> None:
        """See Device.place."""
        self.device.place(self._view(dst), tensors)

    def load(self, program: Program) -> Executable:
        """Load the program, recompiled by the device's own rule set if need be; the order of weights is unchanged."""
        # No real device has kernels for whole sections.
        runs = program.rule_set in KERNEL_SETS
        return self.device.load(program if runs else compile_graph(program.graph, self.device.spec.rule_set))

    def copy(self, dst: Buffer, src: Buffer, parts: Sequence[tuple[int, int]]) -> Exception | None:
        """Copy, and wait for it."""
        return self._wait(self.device.copy(self._view(dst), self._view(src), (), parts))

    def fetch(self, dst: Buffer, source: FileRange, parts: Sequence[tuple[int, int]]) -> Exception | None:
        """Fetch, and wait for it."""
        return self._wait(self.device.fetch(self._view(dst), source, (), parts))

    def run(self, exe: Executable, binding: Binding, steps: int, drawn: Drawn) -> Exception | None:
        """Run, and wait for it; its tokens are stored in `drawn`."""
        event = self._ran = self.device.run(exe, self.bind(binding), steps=steps)
        failure = self._wait(event)
        if failure is None:
            drawn.tokens = self.device.tokens(event)
        return failure

    def logits(self, event: Event, last: int | None, rows: Sequence[int]) -> F32:
        """Logits of the modelled run `event`. Raises ValueError unless that is `last`, the latest run."""
        return self.device.logits(self._last(event, last, "logits"), rows)

    def vectors(self, event: Event, last: int | None, rows: Sequence[int]) -> F32:
        """Hidden states of the modelled run `event`; as `logits`."""
        return self.device.vectors(self._last(event, last, "vectors"), rows)

    def _last(self, event: Event, last: int | None, what: str) -> Event:
        if self._ran is None or event.event_id != last:
            raise ValueError(f"event {event.event_id} ({event.label}) is not the last run: its {what} are gone")
        return self._ran

    def bind(self, binding: Binding) -> Binding:
        """Translate a binding to the real device's buffers."""
        shared = binding.shared and replace(binding.shared, weights=self._view(binding.shared.weights))
        weights, kv, variants = self._view(binding.weights), self._view(binding.kv), binding.variants
        if variants is not None:
            variants = replace(variants, weights=tuple([self._view(weights) for weights in variants.weights]))
        return replace(binding, weights=weights, kv=kv, shared=shared, variants=variants)

    def _view(self, buffer: Buffer) -> Buffer:
        return self._slabs[buffer.slab_id].view(buffer.offset, buffer.size_bytes)

    def _wait(self, event: Event) -> Exception | None:
        wait_for(self.device, event)
        return self.device.failure(event)


def computing(numerics: Numerics | None, where: str, ran: Event | None = None) -> Numerics:
    """Narrow `numerics` to not None, else raise UnsupportedError; first raises the failure of the run `ran`, if any."""
    if ran is not None:
        passed(ran)
    if numerics is None:
        raise UnsupportedError(where, "a modelled device computes no numbers", "give it a real device")
    return numerics

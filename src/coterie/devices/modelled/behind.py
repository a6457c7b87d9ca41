"""Behind: a real device that computes what a modelled one is asked for, in the order of issue, one work at a time.

    modelled   slab 0, slab 1 ..           copy, fetch, run: priced
    behind     memory for each slab        the same works, done before they are priced

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
    """What a run drew [steps done, R]; None before it ran, and when it failed."""

    tokens: I32 | None = None


class Behind:
    """The works of a modelled device on a real one. Each returns how it failed, or None."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._slabs: dict[int, Buffer] = {}
        self._ran: Event | None = None

    def reserve(self, slab_id: int, size_bytes: int, touched: bool) -> None:
        """Memory for a slab of the modelled device. Raises CapacityError."""
        self._slabs[slab_id] = self.device.reserve(self.device.spec.run_tier, size_bytes, touched)

    def place(self, dst: Buffer, tensors: Sequence[tuple[int, int]]) -> None:
        """As the device does it."""
        self.device.place(self._view(dst), tensors)

    def load(self, program: Program) -> Executable:
        """The program, in kernels that the device has; weights keep their order."""
        # No real device has kernels for whole sections: it fuses by its own rules.
        runs = program.rule_set in KERNEL_SETS
        return self.device.load(program if runs else compile_graph(program.graph, self.device.spec.rule_set))

    def copy(self, dst: Buffer, src: Buffer, parts: Sequence[tuple[int, int]]) -> Exception | None:
        """Copy, and wait for it."""
        return self._wait(self.device.copy(self._view(dst), self._view(src), (), parts))

    def fetch(self, dst: Buffer, source: FileRange, parts: Sequence[tuple[int, int]]) -> Exception | None:
        """Fetch, and wait for it."""
        return self._wait(self.device.fetch(self._view(dst), source, (), parts))

    def run(self, exe: Executable, binding: Binding, steps: int, drawn: Drawn) -> Exception | None:
        """Run, and wait for it; what it drew is put into `drawn`."""
        event = self._ran = self.device.run(exe, self.bind(binding), steps=steps)
        failure = self._wait(event)
        if failure is None:
            drawn.tokens = self.device.tokens(event)
        return failure

    def logits(self, event: Event, last: int | None, rows: Sequence[int]) -> F32:
        """Of a run of the modelled device, whose `last` it must be. Raises ValueError."""
        return self.device.logits(self._last(event, last, "logits"), rows)

    def vectors(self, event: Event, last: int | None, rows: Sequence[int]) -> F32:
        """Of a run of the modelled device, whose `last` it must be. Raises ValueError."""
        return self.device.vectors(self._last(event, last, "vectors"), rows)

    def _last(self, event: Event, last: int | None, what: str) -> Event:
        if self._ran is None or event.event_id != last:
            raise ValueError(f"event {event.event_id} ({event.label}) is not the last run: its {what} are gone")
        return self._ran

    def bind(self, binding: Binding) -> Binding:
        """The binding in the device's own memory."""
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


def computing(behind: Behind | None, where: str, ran: Event | None = None) -> Behind:
    """The works behind a device. Raises the failure of what `ran`, UnsupportedError for a device without numerics."""
    if ran is not None:
        passed(ran)
    if behind is None:
        raise UnsupportedError(where, "a modelled device computes no numbers", "give it a real device")
    return behind

"""A quick estimate of a section's time without mapping it: microseconds each, so that thousands can be compared.

Knows nothing about placement; mapping.py has the final word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coterie.core.shapes import Sizes
from coterie.dataflow.chip import Chip
from coterie.dataflow.partition import members
from coterie.dataflow.stage import Unit
from coterie.dataflow.stage_rows import stages_of
from coterie.dataflow.walk import walk
from coterie.graph.cost import FLOPS, input_bytes
from coterie.graph.ir import Graph, Kind, Op
from coterie.graph.kv_cost import KV_READERS, kv_bytes
from coterie.graph.stored import value_bytes

SPILL_TILES = 8  # assumed number of times that weights which do not fit are read
EDGE_PMUS = 2  # PMUs of a FIFO of small tiles
ROUNDED = 0.9  # share of the peak that remains after rounding losses


class Estimate:
    """Estimates sections of `ops`, given as bit masks."""

    def __init__(self, graph: Graph, ops: Sequence[Op], sizes: Sizes, chip: Chip) -> None:
        self.chip, self.ops = chip, tuple(ops)
        self.flops = [FLOPS[op.kind](graph, op, sizes) for op in ops]
        walks = [walk(graph, (op,), sizes) for op in ops]
        stages = [stages_of(graph, w, sizes) for w in walks]
        self.pcus = [sum(s.unit in (Unit.SYSTOLIC, Unit.SIMD) for s in parts) for parts in stages]
        self.tiles = SPILL_TILES if max((s.rows for parts in stages for s in parts), default=1) >= SPILL_TILES else 1
        self.state = [self._kv(graph, op, sizes) for op in ops]
        self.weights: list[tuple[int, int]] = []
        self.moved: list[tuple[int, int, int, bool]] = []
        outside = {n for op in graph.ops if op.name not in {o.name for o in ops} for n in op.inputs}
        for name in dict.fromkeys(n for op in ops for n in (*op.inputs, *op.outputs) if n):
            value = graph.values[name]
            readers = self._mask(op for op in ops if name in op.inputs)
            if value.kind is Kind.WEIGHT:
                reading = tuple(op for op in ops if name in op.inputs)
                self.weights.append((input_bytes(graph, reading, value, sizes), readers))
            elif value.kind is not Kind.STATE:
                maker = self._mask(op for op in ops if name in op.outputs)
                leaves = name in outside or value.kind is Kind.OUTPUT or not readers
                self.moved.append((value_bytes(value, sizes), maker, readers, leaves))
        self.computed = [
            (self._mask(o for o in ops if access.by in o.outputs), 1 << at)
            for at, w in enumerate(walks)
            for access in w.nests[0].reads
            if access.by and graph.values[access.by].kind is Kind.TENSOR
        ]

    def __call__(self, mask: int) -> float | None:
        """Seconds; None if the section is illegal or has more stages than there are PCUs."""
        if any(maker & mask and reader & mask for maker, reader in self.computed):
            return None
        inside = members(mask)
        grid = self.chip.grid
        if sum(self.pcus[at] for at in inside) > grid.pcus:
            return None
        held = sum(size for size, readers in self.weights if readers & mask)
        moved = held + sum(self.state[at] for at in inside)
        for size, maker, readers, leaves in self.moved:
            if readers & mask and not maker & mask:
                moved += size
            if maker & mask and (leaves or readers & ~mask):
                moved += size
        room = (grid.pmus - EDGE_PMUS * len(inside)) * grid.pmu_bytes
        moved += max(0, held - room) * (self.tiles - 1)
        compute = sum(self.flops[at] for at in inside) / (self.chip.peak_flops_per_s * ROUNDED)
        return self.chip.launch_full_s + max(compute, moved / self.chip.memory_bytes_per_s)

    def _mask(self, ops: Iterable[Op]) -> int:
        names = {op.name for op in ops}
        return sum(1 << at for at, op in enumerate(self.ops) if op.name in names)

    @staticmethod
    def _kv(graph: Graph, op: Op, sizes: Sizes) -> int:
        return kv_bytes(graph, op, sizes) if op.kind in (*KV_READERS, "kv_append") else 0

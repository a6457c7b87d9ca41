"""The price of a mapped section, for pricing programs region by region.

Knows nothing about programs, launches or devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.core.shapes import Sizes
from coterie.dataflow.chip import Chip, chip_of
from coterie.dataflow.mapping import Mapped, map_section
from coterie.dataflow.sections import structure
from coterie.dataflow.stage import Unit
from coterie.graph.ir import Graph, Op
from coterie.graph.ops import COLLECTIVES
from coterie.spec.machine import MachineSpec


@dataclass(frozen=True, slots=True)
class SectionPrice:
    """Time of the slowest stage, fill and drain, off-chip bytes and exchanges, for one socket.

    The section takes `max(compute_s + fill_s, bytes / bandwidth, exchange_s)`, plus `waits_s` for stalls of its tile
    streams (L2 - L1): full FIFOs, shared bandwidth, order of transfers. `repeat_s`: its time when it repeats the
    section before it in a loop. `configured`: share of the PCUs that its program configures.
    """

    compute_s: float
    fill_s: float
    memory_bytes: int
    exchange_s: float
    waits_s: float
    repeat_s: float
    configured: float


MAX_PRICES = 1024
_PRICES: dict[object, SectionPrice | None] = {}


def section_price(spec: MachineSpec, graph: Graph, ops: Sequence[Op], sizes: Sizes) -> SectionPrice | None:
    """The price of ops as one section of one socket; None if they do not fit.

    Cached by structure, so that identical layers, and identical models, are mapped once per machine and sizes.
    Raises UsageError for a machine without a grid, UnsupportedError for an op without a normal form.
    """
    chip = chip_of(spec)
    key = (chip, structure(graph, ops), sizes)
    if key not in _PRICES:
        if len(_PRICES) >= MAX_PRICES:
            _PRICES.clear()
        _PRICES[key] = _price(chip, graph, ops, sizes)
    return _PRICES[key]


def _price(chip: Chip, graph: Graph, ops: Sequence[Op], sizes: Sizes) -> SectionPrice | None:
    ranks = max((op.integer("ranks") for op in ops if op.kind in COLLECTIVES), default=1)
    found = map_section(graph, ops, sizes, chip, ranks=ranks)
    if not isinstance(found, Mapped):
        return None
    busy = [sum(s) for s, stage in zip(found.service_s, found.stages, strict=True) if stage.unit is not Unit.LINK]
    slowest = max(busy, default=0.0)
    fill = max(0.0, found.pipe_s - slowest)
    waits_s = max(0.0, found.l2_s() - found.l1_s)
    configured = found.pcus / chip.grid.pcus
    return SectionPrice(slowest, fill, found.memory_bytes, found.link_s, waits_s, found.interval_s, configured)

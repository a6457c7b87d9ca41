"""What a section costs once it is laid out, for whoever prices programs region by region.

Knows nothing about programs, launches or devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.core.shapes import Sizes
from coterie.dataflow.chip import chip_of
from coterie.dataflow.mapping import Mapped, map_section
from coterie.dataflow.stage import Unit
from coterie.graph.ir import Graph, Op
from coterie.graph.ops import COLLECTIVES
from coterie.spec.machine import MachineSpec


@dataclass(frozen=True, slots=True)
class SectionPrice:
    """Seconds of the slowest stage and of fill and drain, off-chip bytes and exchanges of one socket.

    The section takes `max(compute_s + fill_s, bytes / bandwidth, exchange_s)`; `configured` is the share of the PCUs
    that its program sets up.
    """

    compute_s: float
    fill_s: float
    memory_bytes: int
    exchange_s: float
    configured: float


def section_price(spec: MachineSpec, graph: Graph, ops: Sequence[Op], sizes: Sizes) -> SectionPrice | None:
    """The price of ops as one section of one socket; None where they do not fit as one.

    Raises UsageError for a machine without a grid, UnsupportedError for an op without a normal form.
    """
    ranks = max((op.integer("ranks") for op in ops if op.kind in COLLECTIVES), default=1)
    found = map_section(graph, ops, sizes, chip_of(spec), ranks=ranks)
    if not isinstance(found, Mapped):
        return None
    busy = [sum(s) for s, stage in zip(found.service_s, found.stages, strict=True) if stage.unit is not Unit.LINK]
    slowest = max(busy, default=0.0)
    fill = max(0.0, found.pipe_s - slowest)
    return SectionPrice(
        slowest, fill, found.memory_bytes, found.link_s, found.pcus / spec.grid.pcus if spec.grid else 0.0
    )

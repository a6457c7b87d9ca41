"""Converts sections and mappings to plain values for tables and JSON, and tile runs to traces.

Knows nothing about terminals or files.
"""

from __future__ import annotations

from typing import Any

from coterie.core.trace import Slice, Trace
from coterie.core.units import format_bytes, format_seconds
from coterie.dataflow.deadlock import shallow
from coterie.dataflow.lifetime import Symbol
from coterie.dataflow.mapping import Mapped
from coterie.dataflow.place import Placed, place
from coterie.dataflow.sections import Sections
from coterie.dataflow.share import simulate_shared
from coterie.dataflow.spill import MemoryPlan


def plain_sections(plan: Sections) -> dict[str, Any]:
    """All sections and boundaries of a graph; identical sections once, with their number."""
    rows = []
    for which, mapped in enumerate(plan.mapped):
        first = plan.index.index(which)
        rows.append({"section": plan.names[first], "times": plan.index.count(which), **plain_mapping(mapped)})
    return {
        "graph": plan.graph,
        "how": plan.how,
        "launches": plan.launches,
        "calls_looped": len(plan.calls),
        "seconds": plan.seconds(),
        "seconds_looped": plan.seconds(looping=True),
        "sections": rows,
        "boundaries": [
            {"before": b.before, "after": b.after, "kind": b.kind, "reason": b.reason} for b in plan.boundaries
        ],
    }


SECTION_HEAD = ("section", "x", "stages", "tiles", "PCUs", "PMUs", "L0", "L1", "L2", "bound by", "off chip")


def section_rows(plan: Sections) -> list[tuple[str, ...]]:
    """Table rows (below SECTION_HEAD), one per distinct section; L2 is that of the placed section."""
    rows = []
    for which, mapped in enumerate(plan.mapped):
        grid = mapped.chip.grid
        cells = (
            plan.names[plan.index.index(which)],
            str(plan.index.count(which)),
            str(len(mapped.stages)),
            str(mapped.tiles),
            f"{mapped.pcus / grid.pcus:.0%}",
            f"{mapped.pmus / grid.pmus:.0%}",
            *(format_seconds(s) for s in (mapped.l0_s, mapped.l1_s, mapped.l2_s(place(mapped).wires))),
            mapped.bound.split("/")[-1],
            format_bytes(mapped.memory_bytes),
        )
        rows.append(cells)
    return rows


def shallow_fifos(plan: Sections) -> list[tuple[str, str]]:
    """(section, FIFO that may deadlock it) for each distinct section. Empty: no section can deadlock."""
    firsts = [(plan.names[plan.index.index(which)], mapped) for which, mapped in enumerate(plan.mapped)]
    return [(name, str(found)) for name, mapped in firsts for found in shallow(mapped.machine())]


def plain_mapping(mapped: Mapped, placed: Placed | None = None) -> dict[str, Any]:
    """One section: units used, times, bytes, and FIFOs that may deadlock it."""
    grid, wires = mapped.chip.grid, (placed or place(mapped)).wires
    return {
        "ops": [op.kind for op in mapped.ops],
        "stages": len(mapped.stages),
        "tiles": mapped.tiles,
        "pcus": mapped.pcus,
        "pcu_share": mapped.pcus / grid.pcus,
        "pmus": mapped.pmus,
        "pmu_share": mapped.pmus / grid.pmus,
        "sram_bytes": mapped.sram_bytes,
        "quantisation": mapped.balance.quantisation,
        "streamed": sorted(mapped.streamed),
        "flops": mapped.cost.flops,
        "memory_bytes": mapped.memory_bytes,
        "start_s": mapped.start_s,
        "l0_s": mapped.l0_s,
        "l1_s": mapped.l1_s,
        "l2_s": mapped.l2_s(wires),
        "bound": mapped.bound,
        "shallow_fifos": [str(found) for found in shallow(mapped.machine())],
    }


def plain_layout(mapped: Mapped, placed: Placed) -> dict[str, Any]:
    """One section in full: stages, buffers and edges, with their placement."""
    stages = [
        {
            "name": stage.name,
            "kind": stage.kind,
            "unit": stage.unit.value,
            "pcus": split.pcus,
            "split": {"rows": split.rows, "columns": split.columns, "reduction": split.reduction},
            "busy_s": sum(mapped.service_s[at]),
            "cells": [list(cell) for cell in placed.pcus[at]],
        }
        for at, (stage, split) in enumerate(zip(mapped.stages, mapped.splits, strict=True))
    ]
    buffers = [
        {
            "name": buffer.name,
            "kind": buffer.kind,
            "stage": buffer.stage,
            "bytes": buffer.size_bytes,
            "depth": buffer.depth,
            "cells": [list(cell) for cell in placed.pmus[at]],
        }
        for at, buffer in enumerate(mapped.buffers)
    ]
    edges = [
        {"value": f.value, "src": f.src, "dst": f.dst, "bytes": f.size_bytes, "way": f.kind.value} for f in mapped.flows
    ]
    links = {"mean_hops": placed.mean_hops, "worst_link": placed.worst_link, "die_share": placed.die_share}
    return {**plain_mapping(mapped, placed), "links": links, "stage": stages, "buffer": buffers, "edge": edges}


def plain_memory(plan: MemoryPlan) -> dict[str, Any]:
    """A memory plan: placement of symbols, savings by sharing, spilled symbols and their cost."""

    def row(symbol: Symbol) -> dict[str, Any]:
        where = "near" if symbol.name in plan.packed.offsets else "far"
        offset = plan.packed.offsets.get(symbol.name)
        life = {"first": symbol.first, "last": symbol.last, "moved_bytes": symbol.moved_bytes}
        return {
            "name": symbol.name,
            "kind": symbol.kind,
            "bytes": symbol.size_bytes,
            "where": where,
            "offset": offset,
        } | life

    return {
        "how": plan.how,
        "symbols": len(plan.near) + len(plan.far),
        "unshared_bytes": plan.unshared_bytes,
        "peak_bytes": plan.packed.peak_bytes,
        "bound_bytes": plan.packed.bound_bytes,
        "spilled": [row(symbol) for symbol in plan.far],
        "spilled_bytes_moved": plan.spilled_bytes,
        "spilled_s": plan.spilled_s,
        "largest": [row(symbol) for symbol in plan.top],
        "timeline_bytes": list(plan.timeline),
        "fetches": [{"step": f.step, "symbol": f.symbol, "bytes": f.size_bytes} for f in plan.fetches],
    }


def tile_trace(mapped: Mapped, placed: Placed | None = None) -> Trace:
    """The timeline of one pass, without kernel start: a lane per stage and transfer, a slice per tile."""
    network = mapped.machine((placed or place(mapped)).wires)
    run, _ = simulate_shared(network)
    stages = {stage.name: stage for stage in mapped.stages}
    slices = []
    for n, actor in enumerate(network.actors):
        for k, start_s in enumerate(run.start_s[n]):
            # Show work only, not the wait until the tile is handed over: a full FIFO appears as a gap.
            end_s = run.end_s[n][k] if actor.resource else start_s + actor.service(k)
            stage = stages.get(actor.name)
            first, last = stage.bounds(k, mapped.tiles) if stage else (k, k + 1)
            args: dict[str, int | float | str] = {"tile": k, "first_row": first, "rows": last - first}
            kind = stage.unit.value if stage else "transfer"
            if end_s > start_s:
                slices.append(Slice(actor.name, kind, f"{actor.name.split('/')[-1]} {k}", start_s, end_s, args))
    return Trace(slices, (), {"section": mapped.name, "tiles": mapped.tiles, "time": "modelled"})

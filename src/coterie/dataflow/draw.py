"""Draws a mapped section: the grid of units, the stage on each, the buffers, and the streams between them.

The left half of a cell is its PCU, the right half its PMU. Knows nothing about how the mapping was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie.core.units import format_bytes, format_seconds
from coterie.dataflow.mapping import Mapped
from coterie.dataflow.place import Cell, Placed
from coterie.dataflow.shapes import Box, Dot, Line, Picture, Shape, Text, grid_lines, hue
from coterie.dataflow.stage import Unit
from coterie.dataflow.walk import EdgeKind

CELL, LEFT, TOP, LEGEND = 20, 24, 74, 470
IDLE, GREY = "#eceff1", "#444444"
GOLDEN = 0.381966  # of a turn (the golden angle): hues of consecutive stages differ clearly
DARK, MIDDLE, PALE = 0.42, 0.62, 0.80


def picture(mapped: Mapped, placed: Placed, title: str) -> Picture:
    """Draw the whole picture."""
    width = LEFT * 2 + placed.columns * CELL + LEGEND
    height = max(TOP + placed.rows * CELL + 24, TOP + 34 + 19 * len(mapped.stages) + 60)
    pcu = {cell: stage for stage, cells in enumerate(placed.pcus) for cell in cells}
    pmu = {cell: buffer for buffer, cells in enumerate(placed.pmus) for cell in cells}
    shapes: list[Shape] = [
        Text((LEFT, 24), title, 16),
        *(Text((LEFT, 42 + 15 * n), line, color=GREY) for n, line in enumerate(_facts(mapped, placed))),
        Box(LEFT, TOP, placed.columns * CELL, placed.rows * CELL, IDLE),
        *_units(pcu, {s: _color(s) for s in range(len(mapped.stages))}, placed, 0.0),
        *_units(pmu, {b: _buffer_color(mapped, b) for b in range(len(mapped.buffers))}, placed, CELL / 2),
        *grid_lines((LEFT, TOP), (placed.columns, placed.rows), CELL, (placed.tile_columns, placed.tile_rows)),
        *_arrows(mapped, placed),
        *_legend(mapped, placed),
    ]
    return Picture(width, height, tuple(shapes))


def _facts(mapped: Mapped, placed: Placed) -> list[str]:
    grid = mapped.chip.grid
    rows = max((stage.rows for stage in mapped.stages), default=1)
    return [
        f"{len(mapped.ops)} ops in {len(mapped.stages)} stages, tiles: {mapped.tiles}, rows of each: "
        f"{rows // mapped.tiles}; {mapped.pcus} of {grid.pcus} PCUs ({mapped.pcus / grid.pcus:.0%}), "
        f"{mapped.pmus} of {grid.pmus} PMUs ({mapped.pmus / grid.pmus:.0%})",
        f"{format_seconds(mapped.l1_s)} a pass (roofline {format_seconds(mapped.l0_s)}), bound by {mapped.bound}; tile "
        f"by tile as placed {format_seconds(mapped.l2_s(placed.wires))}; {format_bytes(mapped.memory_bytes)} off chip",
    ]


def _color(stage: int, light: float = DARK) -> str:
    return hue(0.58 + stage * GOLDEN, light)


def _buffer_color(mapped: Mapped, buffer: int) -> str:
    found = mapped.buffers[buffer]
    return _color(found.stage, PALE if found.kind in ("weight", "kv") else MIDDLE)


def _units(owner: Mapping[Cell, int], colors: Mapping[int, str], placed: Placed, dx: float) -> list[Box]:
    """Boxes by colour; adjacent cells of a column with the same owner are merged, to keep files small."""
    found = []
    for x in range(placed.columns):
        y = 0
        while y < placed.rows:
            who = owner.get((x, y))
            end = y + 1
            while end < placed.rows and owner.get((x, end)) == who:
                end += 1
            if who is not None:
                found.append(Box(LEFT + x * CELL + dx, TOP + y * CELL, CELL / 2, (end - y) * CELL, colors[who]))
            y = end
    return sorted(found, key=lambda box: box.fill)


def _arrows(mapped: Mapped, placed: Placed) -> list[Shape]:
    """An arrow per edge, from the middle of one stage to that of the next; dashed if the reader needs all of it."""
    middle = [_middle(placed, mapped, stage) for stage in range(len(mapped.stages))]
    widest = max((flow.size_bytes for flow in mapped.flows), default=1) or 1
    found: list[Shape] = []
    for flow in mapped.flows:
        a, b = middle[flow.src], middle[flow.dst]
        if a is None or b is None:
            continue
        bend = (a[0] + b[0]) / 2 + (b[1] - a[1]) * 0.18, (a[1] + b[1]) / 2 - (b[0] - a[0]) * 0.18
        name = f"{mapped.stages[flow.src].name} to {mapped.stages[flow.dst].name}: {format_bytes(flow.size_bytes)}"
        width = 0.8 + 2.2 * flow.size_bytes / widest
        found.append(Line(a, b, "#333333", width, bend, arrow=True, dashed=flow.kind is EdgeKind.FULL, title=name))
    for stage, at in enumerate(middle):
        if at is not None:
            found += [Dot(at, 9, _color(stage)), Text((at[0], at[1] + 4), str(stage + 1), anchor="middle")]
    return found


def _middle(placed: Placed, mapped: Mapped, stage: int) -> tuple[float, float] | None:
    """The cell of a stage nearest to their mean, which itself may lie outside the stage if that turns a corner."""
    cells: Sequence[Cell] = placed.pcus[stage]
    if not cells:
        cells = [c for b, found in enumerate(placed.pmus) if mapped.buffers[b].stage == stage for c in found]
    if not cells:
        return None
    x, y = (sum(c[i] for c in cells) / len(cells) for i in (0, 1))
    near = min(cells, key=lambda c: (abs(c[0] - x) + abs(c[1] - y), c))
    return LEFT + (near[0] + 0.5) * CELL, TOP + (near[1] + 0.5) * CELL


def _legend(mapped: Mapped, placed: Placed) -> list[Shape]:
    left, top = LEFT * 2 + placed.columns * CELL, TOP + 8
    slowest = sum(mapped.service_s[mapped.slowest]) if mapped.stages else 1.0
    found: list[Shape] = [Text((left + 34, top), "stage", color=GREY)]
    columns = ((268, "PCUs"), (312, "PMUs"), (376, "busy"))
    found += [Text((left + x, top), name, color=GREY, anchor="end") for x, name in columns]
    for stage, what in enumerate(mapped.stages):
        y = top + 20 + 19 * stage
        pmus = sum(b.pmus for b in mapped.buffers if b.stage == stage)
        busy = sum(mapped.service_s[stage])
        bold = stage == mapped.slowest
        name = what.name.removeprefix(f"{mapped.ops[what.op].stage}/")
        use = {Unit.SYSTOLIC: "systolic", Unit.SIMD: "SIMD", Unit.MEMORY: "PMU", Unit.LINK: "links"}[what.unit]
        cells = (str(len(placed.pcus[stage]) or ""), str(pmus), format_seconds(busy))
        found += [
            Box(left, y - 10, 14, 12, _color(stage)),
            Box(left + 14, y - 10, 14, 12, _color(stage, PALE)),
            Text((left + 34, y), f"{stage + 1} {name} ({use})", bold=bold),
            *(Text((left + x, y), cell, anchor="end") for (x, _), cell in zip(columns, cells, strict=True)),
            Box(left + 384, y - 9, max(1.0, 74 * busy / max(slowest, 1e-30)), 10, _color(stage)),
        ]
    y = top + 34 + 19 * len(mapped.stages)
    notes = (
        "dark: PCUs; pale: PMUs with weights or keys and values; between: tiles on their way",
        "arrows: what streams where, wider for more bytes; dashed: awaited in full",
        f"bytes go {placed.mean_hops:.1f} links far; the busiest link is used {placed.worst_link:.0%}, "
        f"the way between dies {placed.die_share:.0%}",
    )
    return [*found, *(Text((left, y + 15 * n), note, color=GREY) for n, note in enumerate(notes))]

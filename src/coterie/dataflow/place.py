"""Where things are: stages along a snake through the tiles of a socket, buffers beside their readers, load of links.

    tile 0 | tile 3      two dies side by side, two tiles each; a tile is a mesh of PCU and PMU pairs.
    -------+-------      The pipeline runs down the columns of tile 0, then of tile 1, 2 and 3, to and fro,
    tile 1 | tile 2      so that neighbours in the pipeline are neighbours on the chip.

Numbers of rows and columns of a tile are not published: the most square ones are assumed. Links carry as much per cycle
as a PMU reads. Knows nothing about why stages have the units that they have.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from coterie.dataflow.mapping import Mapped
from coterie.dataflow.memory import Buffer
from coterie.dataflow.stage import Unit, blocks
from coterie.spec.machine import SpatialUnits

Cell: TypeAlias = tuple[int, int]  # column, row of the whole socket
SWAPS = 4000


@dataclass(frozen=True, slots=True)
class Placed:
    """Cells of each stage's PCUs and of each buffer's PMUs; loads are shares of a link's bytes per second."""

    columns: int
    rows: int
    tile_columns: int
    tile_rows: int
    pcus: tuple[tuple[Cell, ...], ...]
    pmus: tuple[tuple[Cell, ...], ...]
    mean_hops: float
    worst_link: float
    worst_at: tuple[Cell, Cell] | None
    die_share: float


def place(mapped: Mapped, swaps: int = SWAPS) -> Placed:
    """Place a mapped section; deterministic."""
    grid = mapped.chip.grid
    columns, rows, tile_columns, tile_rows, snake = _snake(grid)
    pcus, starts, at = [], [], 0
    for split in mapped.splits:
        starts.append(at)
        pcus.append(tuple(snake[at : at + split.pcus]))
        at += split.pcus
    order = sorted(range(len(mapped.buffers)), key=lambda b: mapped.buffers[b].stage)
    pmus = _beside(mapped.buffers, order, starts, snake)
    _swap(mapped, pcus, pmus, swaps)
    hops, loads, crossing = _loads(mapped, pcus, pmus, columns // 2 if grid.tiles > 1 else 0)
    worst = max(loads, key=lambda link: loads[link], default=None)
    interval_s = max(mapped.interval_s, 1e-12)
    link = grid.pmu_bytes_per_cycle * grid.clock_hz
    die = crossing / interval_s / grid.d2d_bytes_per_s if grid.d2d_bytes_per_s and grid.tiles > 1 else 0.0
    load = loads[worst] / interval_s / link if worst else 0.0
    return Placed(columns, rows, tile_columns, tile_rows, tuple(pcus), tuple(pmus), hops, load, worst, die)


def _snake(grid: SpatialUnits) -> tuple[int, int, int, int, list[Cell]]:
    """The whole grid's columns and rows, a tile's, and all cells in the order of the pipeline."""
    per_tile = max(1, max(grid.pcus, grid.pmus) // grid.tiles)
    tile_rows = next(n for n in range(math.isqrt(per_tile), 0, -1) if per_tile % n == 0)
    tile_columns = per_tile // tile_rows
    across = 2 if grid.tiles > 1 else 1
    down = -(-grid.tiles // across)
    cells: list[Cell] = []
    for tile in range(grid.tiles):
        die, step = divmod(tile, down)
        x0 = die * tile_columns
        y0 = (step if die % 2 == 0 else down - 1 - step) * tile_rows
        upward = die % 2 == 1
        order = range(tile_rows - 1, -1, -1) if upward else range(tile_rows)
        for n, y in enumerate(order):
            run = range(tile_columns) if n % 2 == 0 else range(tile_columns - 1, -1, -1)
            cells += [(x0 + x, y0 + y) for x in run]
    return across * tile_columns, down * tile_rows, tile_columns, tile_rows, cells


def _beside(
    buffers: Sequence[Buffer], order: Sequence[int], starts: Sequence[int], snake: Sequence[Cell]
) -> list[tuple[Cell, ...]]:
    """Buffers in the order of their readers, each as near to its reader's first PCU as those before it allow."""
    found: list[tuple[Cell, ...]] = [()] * len(buffers)
    left = sum(buffer.pmus for buffer in buffers)
    at = 0
    for b in order:
        at = max(at, min(starts[buffers[b].stage], len(snake) - left))
        found[b] = tuple(snake[at : at + buffers[b].pmus])
        at, left = at + buffers[b].pmus, left - buffers[b].pmus
    return found


def _center(cells: Sequence[Cell]) -> tuple[float, float]:
    return sum(x for x, _ in cells) / len(cells), sum(y for _, y in cells) / len(cells)


def _swap(mapped: Mapped, pcus: Sequence[Sequence[Cell]], pmus: list[tuple[Cell, ...]], swaps: int) -> None:
    """Exchange PMUs of two buffers where that brings bytes nearer to their readers."""
    owner = [(b, i) for b, cells in enumerate(pmus) for i in range(len(cells))]
    cells = [list(found) for found in pmus]
    center = [_center(cells) if cells else None for cells in pcus]
    for flow in mapped.flows:  # a stage without PCUs is near the first stage that reads from it
        center[flow.src] = center[flow.src] or center[flow.dst]
    goals = [
        [_center(_readers(pcus[b.stage], i, b.pmus)) if pcus[b.stage] else center[b.stage] for i in range(b.pmus)]
        for b in mapped.buffers
    ]
    weight = [_rate(mapped, b) / max(1, b.pmus) for b in mapped.buffers]
    dice = random.Random(len(owner))

    def far(b: int, i: int, cell: Cell) -> float:
        target = goals[b][i]
        return weight[b] * (abs(cell[0] - target[0]) + abs(cell[1] - target[1])) if target else 0.0

    for _ in range(swaps if len(owner) > 1 else 0):
        (a, i), (b, j) = dice.choice(owner), dice.choice(owner)
        here, there = cells[a][i], cells[b][j]
        if a != b and far(a, i, there) + far(b, j, here) < far(a, i, here) + far(b, j, there):
            cells[a][i], cells[b][j] = there, here
    pmus[:] = [tuple(found) for found in cells]


def _rate(mapped: Mapped, buffer: Buffer) -> float:
    """Bytes that leave a buffer in a pass: a systolic reader goes over an operand once per group of the other side."""
    stage, split = mapped.stages[buffer.stage], mapped.splits[buffer.stage]
    stream = next((s for s in mapped.streams if (s.value, s.stage) == (buffer.name, buffer.stage)), None)
    moved = next((f.size_bytes for f in mapped.flows if (f.value, f.dst) == (buffer.name, buffer.stage)), 0)
    if stream is not None:
        moved = stream.size_bytes * (1 if stream.by_tile else mapped.tiles)
    if stage.unit is not Unit.SYSTOLIC or not split.pcus:
        return float(moved)
    rows, columns, _ = blocks(stage.tile(0, max(1, stage.rows // mapped.tiles)), mapped.chip.grid)
    if buffer.kind == "kv" or (stream is not None and stream.columns):
        return float(moved) * -(-rows // split.rows)
    return float(moved) * -(-columns // split.columns)


def _loads(
    mapped: Mapped, pcus: Sequence[Sequence[Cell]], pmus: Sequence[Sequence[Cell]], middle: int
) -> tuple[float, dict[tuple[Cell, Cell], float], float]:
    """Mean hops of a byte, bytes per link in a pass, bytes from die to die.

    Routes follow one dimension, then the other: whichever of the two ways is less loaded. Each PMU of a buffer has its
    own part, which goes to the PCUs that need it, on a tree that shares links.
    """
    loads: dict[tuple[Cell, Cell], float] = defaultdict(float)
    hops = moved = crossing = 0.0
    for buffer, cells in zip(mapped.buffers, pmus, strict=True):
        targets = pcus[buffer.stage]
        if not targets or not cells:
            continue
        share = _rate(mapped, buffer) / len(cells)
        for i, cell in enumerate(cells):
            mine = _readers(targets, i, len(cells))
            trees = [{link for target in mine for link in _route(cell, target, x_first)} for x_first in (True, False)]
            tree = min(trees, key=lambda links: max((loads[link] for link in links), default=0.0))
            for link in tree:
                loads[link] += share
            hops += share * sum(abs(cell[0] - x) + abs(cell[1] - y) for x, y in mine) / len(mine)
            moved += share
            crossing += share * bool(middle and any((cell[0] < middle) != (x < middle) for x, _ in mine))
    return hops / moved if moved else 0.0, loads, crossing


def _readers(targets: Sequence[Cell], part: int, parts: int) -> Sequence[Cell]:
    """The PCUs that need a buffer's part: each PMU serves its share of the reader."""
    return targets[part * len(targets) // parts : -(-(part + 1) * len(targets) // parts)]


def _route(src: Cell, dst: Cell, x_first: bool) -> list[tuple[Cell, Cell]]:
    links = []
    at = list(src)
    for axis in (0, 1) if x_first else (1, 0):
        while at[axis] != dst[axis]:
            before = (at[0], at[1])
            at[axis] += 1 if dst[axis] > at[axis] else -1
            links.append((before, (at[0], at[1])))
    return links

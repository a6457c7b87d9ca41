"""Placement: stages along a serpentine path through the tiles of a socket, buffers near their readers, link loads.

    tile 0 | tile 3      Two dies side by side, two tiles each; a tile is a mesh of PCU and PMU pairs.
    -------+-------      The pipeline snakes through the rows of tile 0, then of tiles 1, 2 and 3,
    tile 1 | tile 2      so that neighbours in the pipeline are neighbours on the chip.

Buffers are placed in two ways: each PMU in the free cell nearest to the PCUs that it serves, or along the path next to
its reader; the placement whose busiest link has the lower load is used.
The dimensions of a tile are not published: the most square ones are assumed. A link carries as much per cycle as a PMU
reads. Knows nothing about how units were assigned to stages.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from coterie.dataflow.mapping import Mapped
from coterie.dataflow.memory import Buffer
from coterie.dataflow.network import Wire
from coterie.dataflow.stage import Unit, blocks
from coterie.spec.machine import SpatialUnits

Cell: TypeAlias = tuple[int, int]  # column, row of the whole socket
Link: TypeAlias = tuple[Cell, Cell]
SWAPS = 4000
ROUTINGS = 3  # rounds of rip-up and reroute


@dataclass(frozen=True, slots=True)
class Placed:
    """Cells of each stage's PCUs and each buffer's PMUs. `worst_link`, `die_share`: loads relative to bandwidth.

    `wires`: each stage's use of the busiest link.
    """

    columns: int
    rows: int
    tile_columns: int
    tile_rows: int
    pcus: tuple[tuple[Cell, ...], ...]
    pmus: tuple[tuple[Cell, ...], ...]
    mean_hops: float
    worst_link: float
    die_share: float
    wires: tuple[Wire, ...] = ()


def place(mapped: Mapped, swaps: int = SWAPS) -> Placed:
    """Place a mapped section. Deterministic."""
    grid = mapped.chip.grid
    columns, rows, tile_columns, tile_rows, snake = _snake(grid)
    pcus, starts, at = [], [], 0
    for split in mapped.splits:
        starts.append(at)
        pcus.append(tuple(snake[at : at + split.pcus]))
        at += split.pcus
    order = sorted(range(len(mapped.buffers)), key=lambda b: mapped.buffers[b].stage)
    goals = _goals(mapped, pcus)
    ways = []
    for pmus in (_beside(mapped.buffers, order, starts, snake), _among(mapped, goals, snake)):
        _swap(mapped, goals, pmus, swaps)
        ways.append((pmus, *_loads(mapped, pcus, pmus, columns // 2 if grid.tiles > 1 else 0)))
    pmus, hops, carried, crossing = min(ways, key=lambda way: _busiest(way[2]))
    loads = {link: sum(parts.values()) for link, parts in carried.items()}
    worst = max(loads, key=lambda link: loads[link], default=None)
    interval_s = max(mapped.interval_s, 1e-12)
    link = grid.pmu_bytes_per_cycle * grid.clock_hz
    die = crossing / interval_s / grid.d2d_bytes_per_s if grid.d2d_bytes_per_s and grid.tiles > 1 else 0.0
    load = loads[worst] / interval_s / link if worst else 0.0
    held = ((mapped.buffers[b], size) for b, size in carried[worst].items()) if worst else ()
    wires = tuple(Wire(buffer.name, buffer.stage, size / link) for buffer, size in held)
    return Placed(columns, rows, tile_columns, tile_rows, tuple(pcus), tuple(pmus), hops, load, die, wires)


def _busiest(carried: Mapping[Link, Mapping[int, float]]) -> float:
    return max((sum(parts.values()) for parts in carried.values()), default=0.0)


def _snake(grid: SpatialUnits) -> tuple[int, int, int, int, list[Cell]]:
    """Columns and rows of the whole grid and of a tile, and all cells in the order of the serpentine path."""
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
    """Buffers along the path in the order of their readers, each at its reader's first PCU or the next free cell."""
    found: list[tuple[Cell, ...]] = [()] * len(buffers)
    left = sum(buffer.pmus for buffer in buffers)
    at = 0
    for b in order:
        at = max(at, min(starts[buffers[b].stage], len(snake) - left))
        found[b] = tuple(snake[at : at + buffers[b].pmus])
        at, left = at + buffers[b].pmus, left - buffers[b].pmus
    return found


def _goals(mapped: Mapped, pcus: Sequence[Sequence[Cell]]) -> list[list[tuple[float, float] | None]]:
    """For each PMU of each buffer, the centre of the PCUs that it serves; None if it serves none."""
    center = [_center(cells) if cells else None for cells in pcus]
    for flow in mapped.flows:  # a stage without PCUs counts as located at its first reader
        center[flow.src] = center[flow.src] or center[flow.dst]
    return [
        [_center(_readers(pcus[b.stage], i, b.pmus)) if pcus[b.stage] else center[b.stage] for i in range(b.pmus)]
        for b in mapped.buffers
    ]


def _among(
    mapped: Mapped, goals: Sequence[Sequence[tuple[float, float] | None]], snake: Sequence[Cell]
) -> list[tuple[Cell, ...]]:
    """Each PMU in the free cell nearest to those it serves; PMUs with the most traffic choose first."""
    free, (right, low) = set(snake), (max(x for x, _ in snake), max(y for _, y in snake))
    ways = sorted(
        ((dx, dy) for dx in range(-right, right + 1) for dy in range(-low, low + 1)),
        key=lambda way: (abs(way[0]) + abs(way[1]), way),
    )
    found: list[list[Cell]] = [[snake[0]] * buffer.pmus for buffer in mapped.buffers]
    leaving = [_rate(mapped, buffer) / max(1, buffer.pmus) for buffer in mapped.buffers]
    for b in sorted(range(len(found)), key=lambda b: -leaving[b]):
        for i, goal in enumerate(goals[b]):
            x, y = (round(at) for at in goal or snake[len(snake) // 2])
            cell = next(near for dx, dy in ways if (near := (x + dx, y + dy)) in free)
            free.remove(cell)
            found[b][i] = cell
    return [tuple(cells) for cells in found]


def _center(cells: Sequence[Cell]) -> tuple[float, float]:
    return sum(x for x, _ in cells) / len(cells), sum(y for _, y in cells) / len(cells)


def _swap(
    mapped: Mapped, goals: Sequence[Sequence[tuple[float, float] | None]], pmus: list[tuple[Cell, ...]], swaps: int
) -> None:
    """Local search: swap random PMUs of two buffers if that reduces bytes times distance."""
    owner = [(b, i) for b, cells in enumerate(pmus) for i in range(len(cells))]
    cells = [list(found) for found in pmus]
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


def _rate(mapped: Mapped, buffer: Buffer, reader: int | None = None) -> float:
    """Bytes read from a buffer per pass: a systolic reader traverses an operand once per group of the other operand.

    An output's buffer is written and read once; that of a sum, once per tile.
    """
    at = buffer.stage if reader is None else reader
    stage, split = mapped.stages[at], mapped.splits[at]
    stream = next((s for s in mapped.streams if (s.value, s.stage) == (buffer.name, at)), None)
    moved = next((f.size_bytes for f in mapped.flows if (f.value, f.dst) == (buffer.name, at)), 0)
    if stream is not None and stream.kind in ("output", "kv_write"):
        return float(max(stream.size_bytes, 2 * stream.sum_bytes * mapped.tiles))
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
) -> tuple[float, dict[Link, dict[int, float]], float]:
    """Mean hops per byte, bytes per link and pass by buffer, and bytes that cross dies.

    Each PMU multicasts its part to the PCUs that need it, with dimension-ordered routes: x first or y first, whichever
    is less loaded. Routes are chosen in several rounds, since those chosen first saw no other traffic.
    """
    trees: list[tuple[int, float, tuple[frozenset[Link], ...]]] = []
    hops = moved = crossing = 0.0
    ways_out = [
        (at, buffer, reader, cells)
        for at, (buffer, cells) in enumerate(zip(mapped.buffers, pmus, strict=True))
        for reader in (buffer.stage, *buffer.also)
    ]
    for at, buffer, reader, cells in ways_out:
        targets = pcus[reader]
        share = _rate(mapped, buffer, reader) / len(cells) if targets and cells else 0.0
        for i, cell in enumerate(cells if share else ()):
            mine = _readers(targets, i, len(cells))
            ways = (frozenset(link for to in mine for link in _route(cell, to, x_first)) for x_first in (True, False))
            trees.append((at, share, tuple(ways)))
            hops += share * sum(abs(cell[0] - x) + abs(cell[1] - y) for x, y in mine) / len(mine)
            moved += share
            crossing += share * bool(middle and any((cell[0] < middle) != (x < middle) for x, _ in mine))
    loads: dict[Link, float] = defaultdict(float)
    chosen: list[frozenset[Link]] = [frozenset()] * len(trees)
    for n, (_, share, both) in [*enumerate(trees)] * ROUTINGS:
        for link in chosen[n]:
            loads[link] -= share
        chosen[n] = min(both, key=lambda links: max((loads[link] for link in links), default=0.0))
        for link in chosen[n]:
            loads[link] += share
    carried: dict[Link, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for (at, share, _), links in zip(trees, chosen, strict=True):
        for link in sorted(links):
            carried[link][at] += share
    return hops / moved if moved else 0.0, carried, crossing


def _readers(targets: Sequence[Cell], part: int, parts: int) -> Sequence[Cell]:
    """The PCUs served by one part of a buffer: an equal share of the reader's."""
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

"""Load balancing: assigns PCUs to stages to minimise the slowest stage, by exact bisection over cycles per tile.

A stage of b row blocks by c column blocks takes ceil(b / p) * ceil(c / q) * k cycles on p x q PCUs, so only certain PCU
counts make it faster; the loss relative to a fractional division is reported as `quantisation`.

Knows nothing about memory or placement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from coterie.dataflow.stage import Split, Stage, Unit, blocks, cycles, cycles_of, work_cycles
from coterie.spec.machine import SpatialUnits

MAX_REDUCTION = 16  # split further, a reduction would spend its time in the tree of partial sums


@dataclass(frozen=True, slots=True)
class Balance:
    """Splits per stage, cycles of the slowest, and the loss by rounding: 1 - (cycles without rounding / cycles)."""

    splits: tuple[Split, ...]
    slowest_cycles: int
    pcus: int
    quantisation: float


def fewest(tile: Stage, grid: SpatialUnits, limit: int) -> Split | None:
    """The split over the fewest PCUs that takes at most `limit` cycles per tile; None if there is none."""
    if tile.unit not in (Unit.SYSTOLIC, Unit.SIMD):
        return Split(1, 0, 0)
    return _fewest(tile, blocks(tile, grid), grid, limit)


def _fewest(tile: Stage, found: tuple[int, int, int], grid: SpatialUnits, limit: int) -> Split | None:
    rows, columns, each = found
    parts = 1
    while parts <= (MAX_REDUCTION if tile.unit is Unit.SYSTOLIC else 1):
        room = limit - (cycles_of(found, tile, Split(rows, columns, parts), grid) - -(-each // parts))
        per_block = -(-each // parts)
        if room >= per_block:
            return _divide(rows, columns, room // per_block, parts)
        parts *= 2
    return None


@lru_cache(maxsize=65536)
def _divide(rows: int, columns: int, fit: int, parts: int) -> Split | None:
    """The split over the fewest PCUs such that each processes at most `fit` blocks."""
    best: tuple[int, int, int] | None = None
    for p in _useful(rows):
        mine = -(-rows // p)
        if mine <= fit:
            q = -(-columns // (fit // mine))
            if best is None or p * q < best[0]:
                best = (p * q, p, q)
            elif p >= best[0]:
                break  # p alone is no fewer than the best total
    return Split(best[1], best[2], parts) if best else None


@lru_cache(maxsize=4096)
def _useful(count: int) -> tuple[int, ...]:
    """The part counts worth trying: for each possible size of the largest part, the smallest count."""
    found, size = [], count
    while size > 1:
        found.append(-(-count // size))
        size = min(size - 1, -(-count // (found[-1] + 1)))
    return tuple(dict.fromkeys([*found, count]))


def balance(tiles: Sequence[Stage], grid: SpatialUnits, pcus: int, floor_cycles: int = 1) -> Balance | None:
    """The exact optimum within `pcus`; None if there is not even one PCU per stage.

    `floor_cycles`: going below this gains nothing (memory is slower), so no PCUs are spent on it.
    """
    busy = [tile for tile in tiles if tile.unit in (Unit.SYSTOLIC, Unit.SIMD)]
    if not busy:
        return Balance(tuple(Split(1, 0, 0) for _ in tiles), floor_cycles, 0, 0.0)
    high = max(cycles(tile, Split(), grid) for tile in busy)
    if len(busy) > pcus:
        return None
    found = [(tile, blocks(tile, grid)) for tile in busy]
    low = min(high, max(1, floor_cycles, int(sum(work_cycles(tile, grid) for tile in busy) // pcus)))
    while low < high:
        middle = (low + high) // 2
        if _fits(found, grid, pcus, middle):
            high = middle
        else:
            low = middle + 1
    splits = tuple(fewest(tile, grid, high) or Split() for tile in tiles)
    used = sum(split.pcus for split in splits)
    smooth = sum(work_cycles(tile, grid) for tile in busy) / max(1, used)
    slowest = max(cycles(tile, split, grid) for tile, split in zip(tiles, splits, strict=True))
    return Balance(splits, slowest, used, max(0.0, 1.0 - smooth / max(1, slowest)))


def _fits(tiles: Sequence[tuple[Stage, tuple[int, int, int]]], grid: SpatialUnits, pcus: int, limit: int) -> bool:
    left = pcus
    for tile, found in tiles:
        split = _fewest(tile, found, grid, limit)
        if split is None or split.pcus > left:
            return False
        left -= split.pcus
    return True

"""A stage of a section: its work per tile, the kind of unit it runs on, and how the work can be split.

    systolic   blocks of lanes x stages outputs, k cycles each      linear, the two products of attention
    simd       vectors of `lanes` values, `passes` cycles each      norms, activations, the softmax between the products
    memory     no arithmetic: address generation in a PMU           gathers, appends to the KV cache
    link       a collective, over the links between sockets         all_reduce

Knows nothing about how ops become stages (stage_rows.py), nor how many units there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from coterie.spec.machine import SpatialUnits


class Unit(Enum):
    """The kind of unit that a stage runs on."""

    SYSTOLIC = "systolic"
    SIMD = "simd"
    MEMORY = "memory"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Seen:
    """How many keys the tokens of a step see, assuming equal sequences of `new` tokens after `past` cached ones.

    Causal, within `window` (0: unlimited). `scale` makes the total equal the step's actual number of pairs.
    """

    past: float
    new: int
    window: int
    scale: float

    def pairs(self, first: int, last: int) -> float:
        """Number of (token, key) pairs of tokens [first, last) of the step."""
        return self.scale * (self._until(last) - self._until(first))

    def keys(self, first: int, last: int) -> float:
        """Number of distinct keys that tokens [first, last) of the step see, over all their sequences."""
        total = 0.0
        for sequence in range(first // self.new, -(-last // self.new)):
            start = max(0, first - sequence * self.new)
            end = min(self.new, last - sequence * self.new)
            oldest = max(0.0, self.past + start + 1 - self.window) if self.window else 0.0
            total += self.past + end - oldest
        return total

    def _until(self, token: int) -> float:
        whole, rest = divmod(token, self.new)
        return whole * self._of_sequence(self.new) + self._of_sequence(rest)

    def _of_sequence(self, tokens: int) -> float:
        """Pairs of the first `tokens` tokens of one sequence."""
        if not self.window:
            return tokens * self.past + tokens * (tokens + 1) / 2
        free = min(tokens, max(0, math.floor(self.window - self.past)))
        return free * self.past + free * (free + 1) / 2 + (tokens - free) * self.window


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, with the sizes of the whole step. `rows`: the walked extent; `walks`: which of the sizes that is.

    Systolic: `batch` products of m x k by k x n. SIMD: m rows of n values. `seen`: replaces n or k by the visible keys.
    """

    name: str
    kind: str
    op: int
    unit: Unit
    rows: int
    phase: int
    flops: int
    batch: int = 1
    m: int = 1
    n: int = 1
    k: int = 1
    walks: str = "m"
    passes: int = 1
    reduces: bool = False
    seen: Seen | None = None

    def count_of(self, tiles: int) -> int:
        """Tiles of this stage if the section has `tiles`; a phase that walks fewer rows has fewer."""
        return max(1, min(tiles, self.rows))

    def bounds(self, tile: int, tiles: int) -> tuple[int, int]:
        """The half-open range of rows of a tile."""
        count = self.count_of(tiles)
        return self.rows * tile // count, self.rows * (tile + 1) // count

    def tile(self, first: int, last: int) -> Stage:
        """The stage reduced to rows [first, last)."""
        share = last - first
        if self.seen is not None:
            return self._tile_seen(self.seen, first, last)
        size = {"m": self.m, "n": self.n, "k": self.k, "batch": self.batch}[self.walks] if self.walks else 0
        if not size:
            return self
        changed = max(1, -(-size * share // self.rows))
        return _resized(self, self.walks, changed)

    def _tile_seen(self, seen: Seen, first: int, last: int) -> Stage:
        tokens = last - first
        together = min(tokens, seen.new)
        keys = max(1, math.ceil(seen.pairs(first, last) / tokens))
        m = max(1, self.m * together // self.rows)
        batch = self.batch * max(1, tokens // together)
        if self.kind == "softmax":
            return replace(self, m=max(1, self.m * tokens // self.rows), n=keys, seen=None)
        if self.kind == "scores":
            return replace(self, m=m, batch=batch, n=keys, seen=None)
        return replace(self, m=m, batch=batch, k=keys, seen=None)


def _resized(stage: Stage, walks: str, size: int) -> Stage:
    if walks == "m":
        return replace(stage, m=size)
    if walks == "n":
        return replace(stage, n=size)
    return replace(stage, k=size) if walks == "k" else replace(stage, batch=size)


@dataclass(frozen=True, slots=True)
class Split:
    """How a stage is split over PCUs: ways along its rows, its columns (and batch), its reduction."""

    rows: int = 1
    columns: int = 1
    reduction: int = 1

    @property
    def pcus(self) -> int:
        """PCUs in use."""
        return self.rows * self.columns * self.reduction


def blocks(tile: Stage, grid: SpatialUnits) -> tuple[int, int, int]:
    """(row blocks, column blocks, cycles per block), in the better orientation of the array; vectors for SIMD."""
    if tile.unit is Unit.SYSTOLIC:
        rows, columns = -(-tile.m // grid.lanes), tile.batch * -(-tile.n // grid.stages)
        turned = -(-tile.m // grid.stages), tile.batch * -(-tile.n // grid.lanes)
        return (rows, columns, tile.k) if rows * columns <= turned[0] * turned[1] else (*turned, tile.k)
    if tile.unit is Unit.SIMD:
        return tile.m * tile.batch, -(-tile.n // grid.lanes), tile.passes
    return 0, 0, 0


def cycles(tile: Stage, split: Split, grid: SpatialUnits) -> int:
    """Cycles of one tile: its blocks in sequence, the fill of the array, and the tree of a split reduction."""
    return cycles_of(blocks(tile, grid), tile, split, grid)


def cycles_of(found: tuple[int, int, int], tile: Stage, split: Split, grid: SpatialUnits) -> int:
    """As `cycles`, with the result of `blocks` given."""
    rows, columns, each = found
    if not rows:
        return 0
    fill = grid.lanes + grid.stages if tile.unit is Unit.SYSTOLIC else grid.stages
    joins = (split.reduction - 1).bit_length() + ((columns - 1).bit_length() if tile.reduces else 0)
    work = -(-rows // split.rows) * -(-columns // split.columns) * -(-each // split.reduction)
    return work + fill + joins * grid.stages


def work_cycles(tile: Stage, grid: SpatialUnits) -> float:
    """Cycles of one tile on a single PCU, without fill."""
    rows, columns, each = blocks(tile, grid)
    return float(rows * columns * each)

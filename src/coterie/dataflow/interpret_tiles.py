"""Tiles in flight: FIFOs and whole buffers between ops, slicing of arrays into tiles, and views of tiles.

Knows nothing about which op fires when, nor what it computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from coterie.dataflow.walk import Walk, dimension_of
from coterie.graph.ir import Graph
from coterie.graph.reference import run_op
from coterie.graph.step import KvState, Step

Array: TypeAlias = npt.NDArray[Any]


@dataclass(slots=True)
class Channel:
    """A FIFO of tiles between two ops, with counters: its maximal occupancy, and the tiles put and taken.

    `whole`: a buffer instead, whose reader starts once all `tokens` are there (a single one for a sum over tiles).
    """

    name: str
    src: int
    dst: int
    depth: int
    whole: bool
    tokens: int
    tiles: deque[Array] = field(default_factory=deque)
    peak: int = 0
    put: int = 0
    taken: int = 0

    @property
    def full(self) -> bool:
        """True if there is no room for another tile."""
        return len(self.tiles) >= self.depth

    @property
    def ready(self) -> bool:
        """True if the reader may fire, as far as this input is concerned."""
        return self.put == self.tokens if self.whole else bool(self.tiles)

    def give(self, tile: Array) -> None:
        """Put a tile."""
        self.tiles.append(tile)
        self.put += 1
        self.peak = max(self.peak, len(self.tiles))

    def take(self) -> Array:
        """Take the next tile."""
        self.taken += 1
        return self.tiles.popleft()

    def take_all(self) -> list[Array]:
        """Take all tiles, in order."""
        tiles = list(self.tiles)
        self.tiles.clear()
        self.taken += len(tiles)
        return tiles


def part(whole: Array, dimension: int | None, rows: tuple[int, int], size: int) -> Array:
    """The slice of an array that iterations [rows[0], rows[1]) of a loop of `size` see, walking along `dimension`.

    If several loops index that dimension, the walked one is the outermost.
    """
    if dimension is None:
        return whole
    stride = whole.shape[dimension] // size
    return np.take(whole, np.arange(rows[0] * stride, rows[1] * stride), axis=dimension)


class Views:
    """Resolves values through any number of views to the ops that produce them, for tiles or whole arrays."""

    def __init__(self, graph: Graph, walk: Walk) -> None:
        self.graph, self.walk = graph, walk
        self.makers = {access.value: at for at, nest in enumerate(walk.nests) for access in nest.writes}
        self.origins = {access.value: walk.origin(access.value) for nest in walk.nests for access in nest.reads}
        self.origins |= {name: walk.origin(name) for name in self.makers}

    def show(self, name: str, source: str, made: Array) -> Array:
        """Apply the views that lead from `source` to `name`, to a tile or a whole array."""
        if name == source:
            return made
        at = self.makers[name]
        op, loop = self.walk.nests[at].op, self.walk.loops[at]
        x = self.show(op.inputs[0], source, made)
        if op.kind == "swap" and (walked := {"o": "outer", "m": "middle", "i": "inner"}.get(loop)):
            whole = prod(each.size for each in self.walk.nests[at].loops)
            op = replace(op, attrs={**op.attrs, walked: op.integer(walked) * x.size // whole})  # the tile's own sizes
        step = Step(self.graph, {op.inputs[0]: x}, cast(KvState, None), ())
        run_op(step, op)
        return step.values[op.outputs[0]]

    def join(self, name: str, tiles: Sequence[Array]) -> Array:
        """Concatenate the tiles of a value along the dimension that its op walks; a sum is a single tile."""
        if len(tiles) == 1:
            return tiles[0]
        return np.concatenate(list(tiles), axis=self.dimension(name) or 0)

    def dimension(self, name: str) -> int | None:
        """The dimension of a value along which its producer (for an input: its first reader) walks. None: a sum."""
        at = self.makers.get(name, -1)
        if at < 0:
            at = next(n for n in self.walk.readers(name) if not self.walk.nests[n].is_view)
        nest = self.walk.nests[at]
        access = next(access for access in (*nest.writes, *nest.reads) if access.value == name)
        return dimension_of(access, self.walk.loops[at])

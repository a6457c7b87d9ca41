"""Counts the off-chip bytes of a functional run as they move: inputs, outputs, keys and values, spilled sums.

Counted from the arrays, independently of the cost model, which must agree. Knows nothing about which op fires when.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coterie.core.shapes import trailing
from coterie.dataflow.interpret_tiles import Array, Views
from coterie.dataflow.loops import Access
from coterie.dataflow.mapping import Mapped
from coterie.dataflow.traffic import SUM_BYTES
from coterie.dataflow.walk import dimension_of
from coterie.graph.ir import Graph, Kind, Op, Value, state_of
from coterie.graph.kv_cost import layer_bytes

KINDS = ("weight", "input", "output", "kv_read", "kv_write")


class Tally:
    """Bytes by kind (`moved`), and a record of what is on chip already."""

    def __init__(self, graph: Graph, mapped: Mapped, views: Views, values: Mapping[str, Array]) -> None:
        self.graph, self.mapped, self.walk, self.views, self.values = graph, mapped, mapped.walk, views, values
        self.by_tile = {stream.value: stream.by_tile for stream in mapped.streams}
        self.moved = dict.fromkeys(KINDS, 0)
        self.loaded: set[tuple[str, int]] = set()
        self.parts: dict[str, int] = {}
        self.keys: dict[tuple[str, int, int, int], int] = {}

    def enters(self, at: int, access: Access, rows: tuple[int, int], numbers: Array | None) -> None:
        """An op reads its part of an input, perhaps through views, or gathers rows of it by `numbers`.

        If several ops need the whole value, only the first one's read counts.
        """
        name, reader = access.value, at
        while name in self.views.makers:
            reader = self.views.makers[name]
            name = self.walk.nests[reader].op.inputs[0]
        readers = self.walk.readers(name)
        complete = [n for n in readers if not _takes_part(self.walk.nests[n].op, name)]
        value, whole = self.graph.values[name], self.values[name]
        kind = "weight" if value.kind is Kind.WEIGHT else "input"
        if complete and reader != complete[0]:
            return
        if not complete:
            size = self._part_size(reader, access, rows, numbers)
            before = self.parts.get(name, 0)
            self.parts[name] = min(_size(value, whole), before + size)
            self.moved[kind] += self.parts[name] - before
        elif reader == at and self.by_tile.get(name):
            self.moved[kind] += self._tile_size(at, access, rows)
        elif name in self.mapped.streamed or (name, reader) not in self.loaded:
            self.loaded.add((name, reader))
            self.moved[kind] += _size(value, whole)

    def _tile_size(self, at: int, access: Access, rows: tuple[int, int]) -> int:
        nest, loop = self.walk.nests[at], self.walk.loops[at]
        value, whole, size = self.graph.values[access.value], self.values[access.value], nest.loop(loop).size
        if value.density == 1.0:
            ends = [_size(value, whole) * row // size for row in rows]
            return ends[1] - ends[0]
        dimension = dimension_of(access, loop) or 0
        stride = whole.shape[dimension] // size
        mine = np.take(whole, np.arange(rows[0] * stride, rows[1] * stride), axis=dimension)
        ends = [-(-whole.size // 8) * row // size for row in rows]
        return int(np.count_nonzero(mine)) * value.dtype.size_bytes + ends[1] - ends[0]

    def _part_size(self, reader: int, access: Access, rows: tuple[int, int], numbers: Array | None) -> int:
        """Bytes of gathered rows, of what a view shows, or of the bitmap of a sparse matrix."""
        nest, loop = self.walk.nests[reader], self.walk.loops[reader]
        value = self.graph.values[access.value]
        if numbers is not None:
            width = value.dtype.row_bytes(trailing(value.shape))
            size = len(numbers) * width
            return size if dimension_of(access, loop) is None else size * (rows[1] - rows[0]) // nest.loop(loop).size
        name = nest.op.inputs[0] if nest.is_view else access.value
        if (name, reader) in self.loaded:
            return 0
        self.loaded.add((name, reader))
        if nest.is_view:
            shown = self.views.show(nest.op.outputs[0], name, self.values[name])
            return int(shown.size) * self.graph.values[name].dtype.size_bytes
        return -(-self.values[name].size // 8)

    def reads_keys(self, op: Op, sequence: int, begin: int, end: int, tile: int) -> None:
        """Count keys and values [begin, end): once per run, or once per tile if they are streamed."""
        once_a_tile = tile if f"{op.name}.kv" in self.mapped.streamed else -1
        key = (state_of(self.graph, op).name, op.integer("layer"), sequence, once_a_tile)
        seen = max(self.keys.get(key, begin), begin)
        self.keys[key] = max(seen, end)
        self.moved["kv_read"] += max(0, end - seen) * self._key_bytes(op)

    def appends(self, op: Op, tokens: int) -> None:
        """Count the keys and values of `tokens` tokens as written."""
        self.moved["kv_write"] += tokens * self._key_bytes(op)

    def leaves(self, name: str, shown: Array, pattern: Array | None) -> None:
        """Count a tile of an output, or all of it; for a sparse gradient only elements in its weight's `pattern`."""
        self.moved["output"] += _elements(shown, pattern) * self.graph.values[name].dtype.size_bytes

    def grows(self, name: str, summed: Array, pattern: Array | None, ends: tuple[bool, bool]) -> None:
        """A tile is added to a sum; if that is off chip, it is read (except first) and written back (except last)."""
        if name in self.mapped.streamed:
            self.moved["output"] += _elements(summed, pattern) * SUM_BYTES * (2 - sum(ends))

    def _key_bytes(self, op: Op) -> int:
        state = next(self.graph.values[n] for n in op.inputs if n and self.graph.values[n].kind is Kind.STATE)
        return layer_bytes(state)


def _elements(shown: Array, pattern: Array | None) -> int:
    return int(shown.size if pattern is None else np.count_nonzero(pattern))


def _takes_part(op: Op, name: str) -> bool:
    """Whether this kind of op reads only part of a value: a gather, a partial view, the pattern of a sparse matrix."""
    tables = {"embed": 1, "embed_part": 1, "add_positions": 2, "take_rows": 0}
    if op.kind in tables:
        return op.inputs[tables[op.kind]] == name
    return op.kind in ("take_heads", "drop_first") or (op.kind == "linear_dw" and op.inputs[2] == name)


def _size(value: Value, whole: Array) -> int:
    """Bytes of a whole value; for a sparse weight, its nonzero elements and a bitmap."""
    if value.density != 1.0:
        return int(np.count_nonzero(whole)) * value.dtype.size_bytes + -(-whole.size // 8)
    # For page tables the step's sizes give the number of sequences, but not of their pages.
    width = value.dtype.row_bytes(trailing(value.shape)) if len(value.shape) > 1 else value.dtype.size_bytes
    return width * len(whole)

"""The reference interpreter's state: values of a step by name, the KV pages, and sequences' recurrent state.

Knows nothing about what ops mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import DType, rounded_to
from coterie.core.shapes import fixed
from coterie.graph.delta_net.ops import STATES
from coterie.graph.ir import Graph, Kind, Op, state_of
from coterie.graph.sampling import Settings

Array: TypeAlias = npt.NDArray[Any]
F32: TypeAlias = npt.NDArray[np.float32]


class KvState:
    """KV pages of a graph: [blocks, L, 2, K, Z, C], stored as float32 but rounded to the KV type.

    Layers with other head shapes have pages of their own; `pages` are those of the first shape.

    A sequence's block table begins with `state_blocks` blocks of recurrent state, kept here under the first one's id.
    """

    def __init__(self, graph: Graph, num_blocks: int, tokens_per_block: int, state_blocks: int = 0) -> None:
        states = {value.name: value for value in graph.values.values() if value.kind is Kind.STATE}
        self._pages: dict[str, F32] = {}
        for state in (value for name, value in states.items() if name not in STATES):
            layers, two, heads, channels = fixed(state.shape)
            shape = (num_blocks, layers, two, heads, tokens_per_block, channels)
            self._pages[state.name] = np.zeros(shape, np.float32)
            self.dtype: DType = state.dtype
        self.pages, self._graph = next(iter(self._pages.values())), graph
        self.tokens_per_block, self.state_blocks = tokens_per_block, state_blocks
        kept = {name: value.shape for name, value in states.items() if name in STATES}
        self._shapes = {name: fixed(shape) for name, shape in kept.items()}
        self._kept: dict[tuple[str, int], F32] = {}

    def block(self, table: Array, position: int) -> int:
        """The block of a position in a sequence with this table."""
        return int(table[self.state_blocks + position // self.tokens_per_block])

    def recurrent(self, op: Op, table: Array, position: int) -> F32:
        """A sequence's slice of an op's recurrent state (its last operand), to read and write; zeroed at position 0."""
        key = op.inputs[-1], int(table[0])
        if key not in self._kept:
            self._kept[key] = np.zeros(self._shapes[op.inputs[-1]], np.float32)
        part: F32 = self._kept[key][op.integer("layer")]
        if position == 0:
            part[:] = 0
        return part

    def append(self, op: Op, which: int, table: Array, position: int, heads_KC: F32) -> None:
        """Store one token's K (`which` 0) or V (1) in the op's layer, rounded to nearest even."""
        pages, block = self._pages[state_of(self._graph, op).name], self.block(table, position)
        pages[block, op.integer("layer"), which, :, position % self.tokens_per_block] = rounded_to(heads_KC, self.dtype)

    def context(self, op: Op, which: int, table: Array, length: int) -> F32:
        """K or V of a sequence's first `length` tokens in the op's layer: [length, K, C]."""
        used = table[self.state_blocks :][: -(-length // self.tokens_per_block)]
        pages = self._pages[state_of(self._graph, op).name][used, op.integer("layer"), which]
        flat: F32 = pages.transpose(0, 2, 1, 3).reshape(-1, pages.shape[1], pages.shape[3])[:length]
        return flat


@dataclass(slots=True)
class Step:
    """Everything an op may read: values by name, the KV state, and the sampling settings of each row."""

    graph: Graph
    values: dict[str, Array]
    state: KvState
    sampling: Sequence[Settings] = field(default_factory=tuple)


Run: TypeAlias = Callable[[Step, Op, list[Any]], Array | None]
"""Computes an op: from its inputs, in order, to its output, or None if it stores its results itself.

An input is None if it is absent or if the op finds it in the step itself; hence `Any`.
"""

"""What the reference interpreter holds in a step: values by name, and the KV pages.

Knows nothing about what ops mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.graph.ir import Graph, Kind
from coterie.graph.sampling import Settings

Array: TypeAlias = npt.NDArray[Any]
F32: TypeAlias = npt.NDArray[np.float32]


class KvState:
    """KV pages of a graph: [blocks, L, 2, K, Z, C], in float32 but holding only numbers that the KV type can hold."""

    def __init__(self, graph: Graph, num_blocks: int, tokens_per_block: int) -> None:
        state = next(value for value in graph.values.values() if value.kind is Kind.STATE)
        layers, two, heads, channels = (int(dim) for dim in state.shape if isinstance(dim, int))
        self.dtype: DType = state.dtype
        self.tokens_per_block = tokens_per_block
        self.pages = np.zeros((num_blocks, layers, two, heads, tokens_per_block, channels), np.float32)

    def append(self, layer: int, which: int, position: int, block: int, heads_KC: F32) -> None:
        """Store one token's K (which 0) or V (1), rounded to nearest even."""
        rounded = to_f32(from_f32(heads_KC, self.dtype), self.dtype)
        self.pages[block, layer, which, :, position % self.tokens_per_block] = rounded

    def context(self, layer: int, which: int, blocks: Array, length: int) -> F32:
        """K or V of the first `length` tokens of a sequence: [length, K, C]."""
        used = blocks[: -(-length // self.tokens_per_block)]
        pages = self.pages[used, layer, which]
        flat: F32 = pages.transpose(0, 2, 1, 3).reshape(-1, pages.shape[1], pages.shape[3])[:length]
        return flat


@dataclass(slots=True)
class Step:
    """Everything an op may read: values by name, the KV state, and the sampling settings of each row."""

    graph: Graph
    values: dict[str, Array]
    state: KvState
    sampling: Sequence[Settings] = field(default_factory=tuple)

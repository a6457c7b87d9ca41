"""The frozen program: regions in execution order, each one kernel, with planned buffers. Symbolic in T, B and R.

Knows nothing about devices: a device binds it (kernels) or prices it (cost).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from coterie.core.dtypes import DType
from coterie.core.shapes import trailing
from coterie.graph.buffers import BufferPlan
from coterie.graph.delta_net.ops import STATES
from coterie.graph.ir import Graph, Kind, Op, Value, state_of
from coterie.graph.rows import is_bidirectional
from coterie.graph.vectors import row_values, samples_tokens


@dataclass(frozen=True, slots=True)
class Region:
    """The ops of one kernel. `inputs` and `outputs` cross its border; other values are never stored beyond a tile.

    `kernel` is the op kind of a single op, or the name of the fusion rule that made the region.
    """

    index: int
    name: str
    kernel: str
    stage: str
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KvLayers:
    """Layers whose KV entries have the same shape. `parts`: 2 for K and V, 1 for latent attention."""

    num_layers: int
    parts: int
    num_kv_heads: int
    head_dim: int

    def layer_bytes(self, dtype: DType) -> int:
        """Bytes of one token's entry in one of these layers."""
        return self.parts * self.num_kv_heads * dtype.row_bytes(self.head_dim)


@dataclass(frozen=True, slots=True)
class KvShape:
    """The shape of a sequence's state: K and V of every attention layer per token, and any recurrent state.

    A block (page) of Z tokens is laid out [layer][k or v][kv head][Z][head channel]. In latent attention one row serves
    as key and value (`parts` is 1) and is shared by all heads. A sequence of a recurrent architecture also has
    `state_units` units of `unit_bytes`, none of which straddles two blocks (delta_net/ops.py):

        block table   | state | state | tokens 0 .. Z-1 | tokens Z .. 2Z-1 | ...

    `other_layers`: groups of layers with other head shapes. They follow the first group, and each group starts at a
    multiple of its layer size, so that its offset is a whole number of such layers.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    state_units: int = 0
    unit_bytes: int = 0
    parts: int = 2
    other_layers: tuple[KvLayers, ...] = ()
    bytes_per_token: int = field(init=False, compare=False, repr=False)  # K and V of all layers

    def __post_init__(self) -> None:
        last = self.layers[-1]
        object.__setattr__(
            self, "bytes_per_token", (self.first_layers[-1] + last.num_layers) * last.layer_bytes(self.dtype)
        )

    @property
    def layers(self) -> tuple[KvLayers, ...]:
        """All layers, grouped by shape, in memory order."""
        return (KvLayers(self.num_layers, self.parts, self.num_kv_heads, self.head_dim), *self.other_layers)

    @property
    def first_layers(self) -> tuple[int, ...]:
        """For each group, the offset of its first layer, counted in layers of that group's size."""
        first, end = [], 0
        for found in self.layers:
            layer_bytes = found.layer_bytes(self.dtype)
            first.append(-(-end // max(1, layer_bytes)))
            end = (first[-1] + found.num_layers) * layer_bytes
        return tuple(first)

    @property
    def recurrent(self) -> bool:
        """Whether sequences have a state that summarises all their tokens: it can be neither shared nor rolled back."""
        return self.state_units > 0

    @property
    def state_bytes(self) -> int:
        """Bytes of recurrent state of one sequence, whatever its length."""
        return self.state_units * self.unit_bytes

    @property
    def min_block_bytes(self) -> int:
        """The smallest usable block size: room for one token, and for one unit of state."""
        return max(self.bytes_per_token, self.unit_bytes)

    def sequence_bytes(self, tokens: float) -> float:
        """Bytes of K, V and recurrent state of a sequence with this many tokens (a float, as it may be a mean)."""
        return tokens * self.bytes_per_token + self.state_bytes

    def tokens_per_block(self, block_bytes: int) -> int:
        """Tokens per block of `block_bytes` for this architecture (page size Z); 0 if the block is too small."""
        return block_bytes // self.bytes_per_token if block_bytes >= self.min_block_bytes else 0

    def state_blocks(self, block_bytes: int) -> int:
        """Number of blocks that hold a sequence's recurrent state, at the start of its block table."""
        return -(-self.state_units // (block_bytes // self.unit_bytes)) if self.state_units else 0

    def blocks_for(self, tokens: int, block_bytes: int) -> int:
        """Number of blocks of a sequence with this many tokens, those of its recurrent state included."""
        return self.state_blocks(block_bytes) - (-tokens // self.tokens_per_block(block_bytes))


@dataclass(frozen=True, slots=True)
class Program:
    """A graph cut into regions by a rule set. `weights`: in order of first use, as are the offsets in a Binding."""

    graph: Graph
    rule_set: str
    regions: tuple[Region, ...]
    buffers: BufferPlan
    weights: tuple[str, ...]
    kv: KvShape
    vocab_size: int

    @property
    def samples_tokens(self) -> bool:
        """Whether its steps sample tokens; otherwise they return vectors."""
        return samples_tokens(self.graph)

    @property
    def bidirectional(self) -> bool:
        """Whether attention is bidirectional, so that a step must hold all tokens of a sequence or none."""
        return is_bidirectional(self.graph)

    @property
    def result_width(self) -> int:
        """Length of a step's result per row: the vocabulary size, or the length of a vector."""
        name = row_values(self.graph)
        return trailing(self.graph.values[name].shape) if name else 0

    def page_layer(self, op: Op) -> int:
        """The offset of an op's layer within a block, counted in layers of its size."""
        states = [value.name for value in kv_states(self.graph)]
        return self.kv.first_layers[states.index(state_of(self.graph, op).name)] + op.integer("layer")


def kv_states(graph: Graph) -> tuple[Value, ...]:
    """The key/value states of a graph (no recurrent ones), in memory order."""
    return tuple(v for v in graph.values.values() if v.kind is Kind.STATE and v.name not in STATES)


def architecture_key(graph: Graph) -> str:
    """A digest of shapes, dtypes, constants and ops: experts with equal keys share programs."""
    digest = hashlib.sha256()
    for value in graph.values.values():
        digest.update(repr((value.name, value.shape, value.dtype.value, value.kind.value, value.data)).encode())
        digest.update(repr(value.density).encode() if value.density != 1.0 else b"")
    for op in graph.ops:
        digest.update(repr((op.kind, op.stage, op.inputs, op.outputs, sorted(op.attrs.items()))).encode())
    return digest.hexdigest()[:16]

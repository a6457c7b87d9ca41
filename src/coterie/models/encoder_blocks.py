"""The blocks of an encoder as ops, where they differ from a decoder's.

    x = norm(words[tokens] + positions[positions] + types[types])    without a table of positions: rope
    x = norm(x + attention(x)), x = norm(x + feed_forward(x))        in each layer: norms follow the sums (post-norm)
    vectors = x[rows]

The resulting graph is made bidirectional afterwards (graph/rows.py).
Knows nothing about config files, checkpoints or devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.core.dtypes import DType
from coterie.core.shapes import Symbol
from coterie.graph.ir import Graph, Kind
from coterie.graph.ops import TYPES
from coterie.models.blocks import Decoder
from coterie.models.distance import alibi_slopes, distance_buckets
from coterie.models.encoder import Encoder

R = Symbol.R


@dataclass(frozen=True, slots=True)
class EncoderBlocks(Decoder):
    """Builds the graph of a config with `encoder`."""

    @property
    def _own(self) -> Encoder:
        if self.config.encoder is None:
            raise ValueError(f"{self.config.family} is no encoder")
        return self.config.encoder

    def build(self, images: str = "", image_token: int = 0) -> Graph:
        """The whole step, from tokens to the vectors of its rows [R, D]."""
        if images:
            raise ValueError(f"{self.config.family} reads no images")
        return Decoder.build(self)

    def _declare(self) -> None:
        b = self.builder
        self._declare_rows(*((TYPES,) if self._own.type_rows else ()))
        if self.config.alibi:
            heads = self.config.num_heads
            b.value("slopes", (1, heads), DType.F32, Kind.CONSTANT, alibi_slopes(heads))
        elif not self.config.names.positions:
            frequencies = self.config.rope.inv_freq
            b.value("inv_freq", (len(frequencies),), DType.F32, Kind.CONSTANT, frequencies)
        if self._own.buckets:
            numbers = tuple([float(bucket) for bucket in distance_buckets(self._own.buckets)])
            b.value("buckets", (len(numbers),), DType.F32, Kind.CONSTANT, numbers)
        self._declare_kv(DType.F32)

    def _embed(self) -> str:
        c, names = self.config, self.config.names
        self.builder.stage = "embed"
        x = self._looked_up("words", "tokens", names.embed, c.vocab_size)
        if names.positions:
            places = self._looked_up("places", "positions", names.positions, c.max_context)
            x = self._op("add", "x", (x, places))
        if self._own.type_rows:
            x = self._op("add", "typed", (x, self._looked_up("kinds", TYPES, names.types, self._own.type_rows)))
        return self._norm("norm", x, names.embed_norm)

    def _by_distance(self) -> tuple[str, ...]:
        rows = self._own.buckets
        if self.config.alibi:
            return "slopes", ""
        return (self._weight(self.config.names.distances, (rows, self.config.num_heads)), "buckets") if rows else ()

    def _looked_up(self, name: str, row: str, table: str, rows: int) -> str:
        return self._op("embed", name, (row, self._weight(table, (rows, self.config.hidden_size))))

    def _layer(self, x: str, layer: int) -> str:
        self.builder.stage = f"layers.{layer}"
        names, prefix = self.config.names, self.config.names.layer.format(layer)
        x = self._op("add", "attention_out", (x, self._attention(x, layer, prefix)))
        x = self._norm("attention_norm", x, prefix + names.attention_out_norm)
        x = self._op("add", "out", (x, self._feed_forward(x, prefix)))
        return self._norm("out_norm", x, prefix + names.feed_forward_out_norm)

    def _head(self, x: str) -> None:
        self.builder.stage = "head"
        vectors = self.builder.value("vectors", (R, self.config.hidden_size), self.activations, Kind.OUTPUT)
        self.builder.op("take_rows", "rows", (x, "rows"), (vectors,))

"""A decoder whose layers differ from one another (Gemma 4), where it deviates from blocks.py.

    inputs      embed(tokens), from one table for all layers, + norm(W x); each layer takes its part
    layer       attention; plain block parallel to branches; out + norm(W (gelu(gate(out)) * input)); times a scalar
    keys        layers without a window have heads of another size; some layers read those of an earlier one

Knows nothing about config files, checkpoints or devices.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from coterie.core.dtypes import DType
from coterie.core.shapes import Shape, Symbol
from coterie.graph.ir import Kind
from coterie.graph.layer.ops import MUL_ONE, MUL_PART, PART
from coterie.graph.ops import CAP, KV_ROWS
from coterie.models.blocks import Decoder
from coterie.models.layered import Layered

T = Symbol.T
_INPUTS = "embed/inputs"
_HALVES = 0.5**0.5  # factor of the sum of the two terms of an input


@dataclass(frozen=True, slots=True)
class LayeredDecoder(Decoder):
    """Builds the graph of a config with `layered`."""

    @property
    def _own(self) -> Layered:
        if self.config.layered is None:
            raise ValueError(f"{self.config.family} has no layers that differ")
        return self.config.layered

    def _heads(self, layer: int) -> tuple[int, int]:
        """A layer's key/value heads, and their channels."""
        c, own = self.config, self._own
        return (c.num_kv_heads, c.head_dim) if c.windows[layer] else (own.full_heads, own.full_dim)

    def _states(self) -> dict[tuple[int, int], list[int]]:
        """Layers with their own keys and values, grouped by head shape; the largest first, so as to avoid padding."""
        found: dict[tuple[int, int], list[int]] = defaultdict(list)
        for layer in self.config.attending_layers:
            found[self._heads(layer)].append(layer)
        return dict(sorted(found.items(), key=lambda one: (-one[0][0] * one[0][1], one[0])))

    def _state(self, heads: int, channels: int) -> str:
        """The name of the KV state for a head shape; the first is "kv", as in models with only one."""
        first = next(iter(self._states())) == (heads, channels)
        return "kv" if first else f"kv_{heads}x{channels}"

    def _declare_kv(self, dtype: DType) -> None:
        for (heads, channels), layers in self._states().items():
            self.builder.value(self._state(heads, channels), (len(layers), 2, heads, channels), dtype, Kind.STATE)

    def _embed(self) -> str:
        c, own, names = self.config, self._own, self._own.names
        x = Decoder._embed(self)
        if not own.inputs:
            return x
        shape: Shape = (T, c.num_layers, own.inputs)
        table = self._weight(names.input_table, (own.input_rows, c.num_layers * own.inputs))
        scale = self._rounded(own.inputs**0.5, names.input_table)
        looked_up = self._op("embed", "looked_up", ("tokens", table), shape, scale=scale)
        projected = self._linear("projected", x, names.input_projection, shape, False, c.hidden_size**-0.5)
        self._op("add", "inputs", (looked_up, self._norm("input_norm", projected, names.input_norm)), shape)
        return x

    def _layer(self, x: str, layer: int) -> str:
        x = Decoder._layer(self, x, layer)
        prefix, names = self.config.names.layer.format(layer), self._own.names
        if self._own.inputs:
            x = self._with_input(x, layer, prefix)
        return self._op(MUL_ONE, "scaled", (x, self._weight(prefix + names.scalar, (1,))))

    def _with_input(self, x: str, layer: int, prefix: str) -> str:
        """Add the layer's own input, gated by the layer's output."""
        c, names, inner = self.config, self._own.names, (T, self._own.inputs)
        gate = self._linear("input_gate", x, prefix + names.gate, inner, False)
        gate = self._op("gelu", "input_open", (gate,), inner, form=c.feed_forward.gelu_form)
        part = self._op(MUL_PART, "own_input", (gate, _INPUTS), inner, **{PART: layer})
        y = self._linear("input_out", part, prefix + names.out, (T, c.hidden_size), False, _HALVES)
        return self._op("add", "with_input", (x, self._norm("input_out_norm", y, prefix + names.out_norm)))

    def _feed_forward_or_branches(self, x: str, h: str, layer: int, prefix: str) -> str:
        """The plain block and, in parallel, branches, which read the residual through norms of their own."""
        c, names = self.config, self._own.names
        width = self._own.shared_width if layer >= self._own.first_shared else c.intermediate_size
        wide = self._feed_forward(h, prefix, width)
        if c.branches is None:
            return wide
        wide = self._norm("block_norm", wide, prefix + names.block_norm)
        inputs = (x, self._weight(prefix + names.chooser_scale, (c.hidden_size,)))
        seen = self._op("rms_norm", "chooser_norm", inputs, eps=c.norm_eps)
        read = self._norm("branches_norm", x, prefix + names.branches_norm)
        y = self._branches(read, prefix, c.branches, seen=seen)
        return self._op("add", "beside", (wide, self._norm("branches_out_norm", y, prefix + names.branches_out_norm)))

    def _attention(self, h: str, layer: int, prefix: str) -> str:
        """Values are normed too, without a weight; the scale of scores is part of the query norm's weight."""
        c, names, source = self.config, self.config.names, self._own.kv_source_layer(layer, self.config.windows)
        heads, channels = self._heads(layer)
        state, kept = self._state(heads, channels), self._states()[heads, channels].index(source)
        shape: Shape = (T, c.num_heads, channels)
        q = self._linear("q", h, prefix + names.q, shape, c.qkv_bias)
        k, v = self._keys_and_values(h, layer, prefix) if source == layer else ("", "")
        q = self._head_norm("q", q, prefix)
        k = self._head_norm("k", k, prefix) if k else ""
        q = self._rope("q", q, layer)
        if k:
            k = self._rope("k", k, layer)
            self.builder.op("kv_append", "kv_append", (k, v, *KV_ROWS, state), (state,), layer=kept)
        scale = channels**-0.5 if c.attention_scale is None else c.attention_scale
        read = (q, *KV_ROWS, state)
        cap = {CAP: c.attention_cap} if c.attention_cap else {}
        y = self._op("attention", "attention", read, shape, layer=kept, scale=scale, window=c.windows[layer], **cap)
        return self._linear("o", y, prefix + names.o, (T, c.hidden_size), c.o_bias, c.residual_scale)

    def _keys_and_values(self, h: str, layer: int, prefix: str) -> tuple[str, str]:
        """Keys before norm and rope, and normed values, which may come from the same projection."""
        c, names, (heads, channels) = self.config, self.config.names, self._heads(layer)
        shape: Shape = (T, heads, channels)
        k = self._linear("k", h, prefix + names.k, shape, c.qkv_bias)
        is_key = self._own.keys_are_values and not c.windows[layer]
        v = k if is_key else self._linear("v", h, prefix + names.v, shape, c.qkv_bias)
        ones = self.builder.value(f"ones_{channels}", (channels,), DType.F32, Kind.CONSTANT, (1.0,) * channels)
        return k, self._op("rms_norm", "v_norm", (v, ones), shape, eps=c.norm_eps)

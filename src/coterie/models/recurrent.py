"""Blocks in the place of attention that keep a state of one size: gated delta nets, and short convolutions.

Knows nothing about the blocks beside them (blocks.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.core.dtypes import DType
from coterie.core.shapes import Shape, Symbol
from coterie.graph.delta_ops import CONV, CONV_STATE, DELTA, DELTA_STATE, KEY_HEADS, PARTS, PLAIN
from coterie.graph.ir import Kind
from coterie.graph.ops import KV_ROWS
from coterie.models.appending import Appending
from coterie.models.delta_net import DeltaNets
from coterie.models.short_conv import ShortConvs

T = Symbol.T


@dataclass(frozen=True, slots=True)
class RecurrentBlocks(Appending):
    """Appends the ops of such blocks."""

    def _declare_states(self) -> None:
        """What a sequence keeps in the layers that have no keys and values."""
        state = self.builder.value
        if nets := self.config.delta_nets:
            matrices: Shape = (len(nets.layers), nets.value_heads, nets.key_dim, nets.value_dim)
            state(CONV_STATE, (len(nets.layers), nets.taps - 1, nets.channels), DType.F32, Kind.STATE)
            state(DELTA_STATE, matrices, DType.F32, Kind.STATE)
        if convs := self.config.short_convs:
            shape: Shape = (len(convs.layers), convs.taps - 1, self.config.hidden_size)
            state(CONV_STATE, shape, DType.F32, Kind.STATE)

    def _recurrent(self, h: str, layer: int, prefix: str) -> str:
        """What such a layer gives; empty for one that attends."""
        nets, convs = self.config.delta_nets, self.config.short_convs
        if nets and layer in nets.layers:
            return self._delta_net(h, layer, prefix, nets)
        return self._short_conv(h, layer, prefix, convs) if convs and layer in convs.layers else ""

    def _delta_net(self, h: str, layer: int, prefix: str, nets: DeltaNets) -> str:
        """A gated delta net in the place of attention; its norm has weights as they are."""
        names, kept = nets.names, nets.layers.index(layer)
        heads: Shape = (T, nets.value_heads, nets.value_dim)
        x, z, *gates = self._net_parts(h, prefix, nets) if nets.by_key_heads else self._net_inputs(h, prefix, nets)
        taps = self._weight(prefix + names.conv, (nets.channels, 1, nets.taps))
        x = self._op(CONV, "conv", (x, taps, *KV_ROWS, CONV_STATE), (T, nets.channels), layer=kept)
        weights = tuple(self._weight(prefix + name, (nets.value_heads,)) for name in (names.a_log, names.dt_bias))
        read = (x, *gates, *weights, *KV_ROWS, DELTA_STATE)
        y = self._op(DELTA, "delta", read, heads, layer=kept, **{KEY_HEADS: nets.key_heads})
        y = self._norm("delta_norm", y, prefix + names.norm, offset=0.0)
        y = self._op("mul", "gated", (y, self._op("silu", "opened", (z,), heads)), heads)
        return self._linear("o", y, prefix + names.out, (T, self.config.hidden_size), False, self.config.residual_scale)

    def _net_inputs(self, h: str, prefix: str, nets: DeltaNets) -> tuple[str, ...]:
        """q, k and v, then z, a and b: a projection each."""
        names, gates = nets.names, (T, nets.value_heads)
        heads: Shape = (T, nets.value_heads, nets.value_dim)
        x = self._linear("qkv", h, prefix + names.qkv, (T, nets.channels), bias=False)
        z = self._linear("z", h, prefix + names.z, heads, bias=False)
        return x, z, *(self._linear(n, h, prefix + getattr(names, n), gates, bias=False) for n in "ab")

    def _net_parts(self, h: str, prefix: str, nets: DeltaNets) -> tuple[str, ...]:
        """The same of two projections, taken apart."""
        heads, dim, b = nets.value_heads, nets.value_dim, self.builder
        wide: Shape = (T, nets.channels + heads * dim)
        read = (
            self._linear("qkvz", h, prefix + nets.names.qkvz, wide, bias=False),
            self._linear("ba", h, prefix + nets.names.ba, (T, 2 * heads), bias=False),
        )
        shapes = {"qkv": (T, nets.channels), "z": (T, heads, dim), "a": (T, heads), "b": (T, heads)}
        made = tuple(
            b.value(f"{b.stage}/{name}", shape, self.activations, Kind.TENSOR) for name, shape in shapes.items()
        )
        b.op(PARTS, "parts", read, made, **{KEY_HEADS: nets.key_heads})
        return made

    def _short_conv(self, h: str, layer: int, prefix: str, convs: ShortConvs) -> str:
        """A convolution of few taps between two gates, which are products alone."""
        names, D = convs.names, self.config.hidden_size
        before, after, x = (
            self._linear(name, h, prefix + place, (T, D), bias=False)
            for name, place in (("before", names.before), ("after", names.after), ("x", names.x))
        )
        opened = self._op("mul", "opened", (before, x))
        taps = self._weight(prefix + names.conv, (D, 1, convs.taps))
        read = (opened, taps, *KV_ROWS, CONV_STATE)
        mixed = self._op(CONV, "conv", read, (T, D), layer=convs.layers.index(layer), **{PLAIN: 1})
        y = self._op("mul", "gated", (after, mixed))
        return self._linear("o", y, prefix + names.out, (T, D), False, self.config.residual_scale)

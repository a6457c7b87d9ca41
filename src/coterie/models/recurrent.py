"""Blocks with a recurrent state of fixed size: gated delta nets, short convolutions and selective state spaces.

Knows nothing about the other blocks of a layer (blocks.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coterie.core.dtypes import DType
from coterie.core.shapes import Shape, Symbol
from coterie.graph.delta_net.ops import CONV, CONV_STATE, DELTA, DELTA_STATE, KEY_HEADS, PARTS, PLAIN
from coterie.graph.ir import Attr, Kind
from coterie.graph.ops import KV_ROWS
from coterie.graph.scan.ops import GROUP_NORM, GROUPS, MAX_STEP, MIN_STEP, MUL_ROW, SCAN
from coterie.models.appending import Appending
from coterie.models.delta_net import DeltaNets
from coterie.models.short_conv import ShortConvs
from coterie.models.state_space import StateSpaces

T = Symbol.T


@dataclass(frozen=True, slots=True)
class RecurrentBlocks(Appending):
    """Appends the ops of recurrent blocks."""

    def _declare_states(self) -> None:
        """Declare the recurrent states of a sequence."""
        state = self.builder.value
        if nets := self.config.delta_nets:
            matrices: Shape = (len(nets.layers), nets.value_heads, nets.key_dim, nets.value_dim)
            state(CONV_STATE, (len(nets.layers), nets.taps - 1, nets.channels), DType.F32, Kind.STATE)
            state(DELTA_STATE, matrices, DType.F32, Kind.STATE)
        if convs := self.config.short_convs:
            shape: Shape = (len(convs.layers), convs.taps - 1, self.config.hidden_size)
            state(CONV_STATE, shape, DType.F32, Kind.STATE)
        if spaces := self.config.state_spaces:
            layers = len(spaces.layers)
            matrices = (layers, spaces.heads, spaces.state, spaces.head_dim)
            state(CONV_STATE, (layers, spaces.taps - 1, spaces.channels), DType.F32, Kind.STATE)
            state(DELTA_STATE, matrices, DType.F32, Kind.STATE)

    def _recurrent(self, h: str, layer: int, prefix: str) -> str:
        """The output of a layer's recurrent block; empty if it has none."""
        nets, convs = self.config.delta_nets, self.config.short_convs
        if nets and layer in nets.layers:
            return self._delta_net(h, layer, prefix, nets)
        if (spaces := self.config.state_spaces) and layer in spaces.layers:
            return self._state_space(h, layer, prefix, spaces)
        return self._short_conv(h, layer, prefix, convs) if convs and layer in convs.layers else ""

    def _delta_net(self, h: str, layer: int, prefix: str, nets: DeltaNets) -> str:
        """A gated delta net instead of attention; its norm has no weight offset."""
        names, kept = nets.names, nets.layers.index(layer)
        heads: Shape = (T, nets.value_heads, nets.value_dim)
        x, z, *gates = self._net_parts(h, prefix, nets) if nets.by_key_heads else self._net_inputs(h, prefix, nets)
        taps = self._weight(prefix + names.conv, (nets.channels, 1, nets.taps))
        x = self._op(CONV, "conv", (x, taps, "", *KV_ROWS, CONV_STATE), (T, nets.channels), layer=kept)
        weights = tuple(self._weight(prefix + name, (nets.value_heads,)) for name in (names.a_log, names.dt_bias))
        read = (x, *gates, *weights, *KV_ROWS, DELTA_STATE)
        y = self._op(DELTA, "delta", read, heads, layer=kept, **{KEY_HEADS: nets.key_heads})
        y = self._norm("delta_norm", y, prefix + names.norm, offset=0.0)
        y = self._op("mul", "gated", (y, self._op("silu", "opened", (z,), heads)), heads)
        return self._linear("o", y, prefix + names.out, (T, self.config.hidden_size), False, self.config.residual_scale)

    def _net_inputs(self, h: str, prefix: str, nets: DeltaNets) -> tuple[str, ...]:
        """qkv, z, a and b, from a projection each."""
        names, gates = nets.names, (T, nets.value_heads)
        heads: Shape = (T, nets.value_heads, nets.value_dim)
        x = self._linear("qkv", h, prefix + names.qkv, (T, nets.channels), bias=False)
        z = self._linear("z", h, prefix + names.z, heads, bias=False)
        return x, z, *(self._linear(n, h, prefix + getattr(names, n), gates, bias=False) for n in "ab")

    def _net_parts(self, h: str, prefix: str, nets: DeltaNets) -> tuple[str, ...]:
        """The same from two projections, grouped by key head and split."""
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

    def _state_space(self, h: str, layer: int, prefix: str, spaces: StateSpaces) -> str:
        """A selective state space; its norm is over groups of heads, after or before the gate."""
        names, kept, place = spaces.names, spaces.layers.index(layer), prefix + spaces.names.place
        heads: Shape = (T, spaces.heads, spaces.head_dim)
        z, x, dt = (
            self._linear(name, h, place + part, shape, spaces.bias)
            for name, part, shape in (
                *(("z", names.z, heads), ("xbc", names.x, (T, spaces.channels)), ("dt", names.dt, (T, spaces.heads))),
            )
        )
        if set(spaces.factors) != {1.0}:
            x = self._op(MUL_ROW, "xbc_scaled", (x, self._channel_factors(spaces)), (T, spaces.channels))
        taps = self._weight(f"{place}{names.conv}.weight", (spaces.channels, 1, spaces.taps))
        bias = self._weight(f"{place}{names.conv}.bias", (spaces.channels,)) if spaces.conv_bias else ""
        x = self._op(CONV, "conv", (x, taps, bias, *KV_ROWS, CONV_STATE), (T, spaces.channels), layer=kept)
        weights = (self._weight(place + name, (spaces.heads,)) for name in (names.a_log, names.dt_bias, names.skip))
        bounds: dict[str, Attr] = {MIN_STEP: spaces.min_step} if spaces.min_step else {}
        bounds |= {MAX_STEP: spaces.max_step} if spaces.max_step < math.inf else {}
        read = (x, dt, *weights, *KV_ROWS, DELTA_STATE)
        y = self._op(SCAN, "scan", read, heads, layer=kept, **{GROUPS: spaces.groups}, **bounds)
        if spaces.norms and spaces.norm_first:
            y = self._norm_groups(y, place + names.norm, spaces)
        y = self._op("mul", "gated", (y, self._op("silu", "opened", (z,), heads)), heads)
        if spaces.norms and not spaces.norm_first:
            y = self._norm_groups(y, place + names.norm, spaces)
        shape: Shape = (T, self.config.hidden_size)
        return self._linear("scan_o", y, place + names.out, shape, spaces.bias, self.config.residual_scale)

    def _channel_factors(self, spaces: StateSpaces) -> str:
        """A constant with a factor for each channel of the convolution: those of heads, write and read."""
        counts = (spaces.inner, spaces.groups * spaces.state, spaces.groups * spaces.state)
        row = tuple(factor for factor, count in zip(spaces.factors, counts, strict=True) for _ in range(count))
        return self.builder.value("xbc_factors", (spaces.channels,), DType.F32, Kind.CONSTANT, row)

    def _norm_groups(self, y: str, name: str, spaces: StateSpaces) -> str:
        """The norm of a state space, with a weight per channel."""
        read, shape = (y, self._weight(f"{name}.weight", (spaces.inner,))), self._shape(y)
        if spaces.groups == 1:
            return self._op("rms_norm", "scan_norm", read, shape, eps=self.config.norm_eps)
        return self._op(GROUP_NORM, "scan_norm", read, shape, eps=self.config.norm_eps, **{GROUPS: spaces.groups})

    def _short_conv(self, h: str, layer: int, prefix: str, convs: ShortConvs) -> str:
        """A short convolution between two multiplicative gates, without activations."""
        names, D = convs.names, self.config.hidden_size
        before, after, x = (
            self._linear(name, h, prefix + place, (T, D), bias=False)
            for name, place in (("before", names.before), ("after", names.after), ("x", names.x))
        )
        opened = self._op("mul", "opened", (before, x))
        taps = self._weight(prefix + names.conv, (D, 1, convs.taps))
        read = (opened, taps, "", *KV_ROWS, CONV_STATE)
        mixed = self._op(CONV, "conv", read, (T, D), layer=convs.layers.index(layer), **{PLAIN: 1})
        y = self._op("mul", "gated", (after, mixed))
        return self._linear("o", y, prefix + names.out, (T, D), False, self.config.residual_scale)

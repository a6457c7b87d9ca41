"""Recurrences in float64, and three sequences' states in blocks, for tests of kernels.

A gated delta net and a selective state space: what each is given, its operands, and what a token makes of its state.
Knows nothing about whose kernels they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from tests.device import native
from tests.device.native import empty, ints, random

SEQUENCES = 3
CONV = "causal_conv"


@dataclass
class Kept:
    """A slab with the state of three sequences in two layers, and the rows of steps."""

    shape: tuple
    memory: np.ndarray
    tables: np.ndarray
    block_bytes: int
    unit_bytes: int

    @classmethod
    def make(cls, rng, shape, units_a_block=3, apart=6, place=lambda memory: memory):
        """Blocks have `apart` bytes more than units; `place` puts memory where it must be."""
        _, heads, K, C, taps = shape
        unit_bytes = 4 * K * C
        each = K * C // (taps - 1)
        units = 2 * (heads - (-cls.channels_of(shape) // each))
        block_bytes = units_a_block * unit_bytes + apart
        width = -(-units // units_a_block)
        tables = rng.permutation(3 * width + 2)[: 3 * width].reshape(3, width)
        memory = np.full((3 * width + 2) * block_bytes, 0xFF, np.uint8)  # not a number, until a sequence begins
        return cls(shape, place(memory), ints(tables), block_bytes, unit_bytes)

    @staticmethod
    def channels_of(shape):
        key_heads, heads, K, C, _ = shape
        return 2 * key_heads * K + heads * C

    def operands(self, positions, sequence, first):
        """Of layer 1."""
        _, heads, K, C, taps = self.shape
        a_layer = heads - (-self.channels_of(self.shape) // (K * C // (taps - 1)))
        rows = {"positions": positions, "sequence": sequence, "state_tables": self.tables}
        where = {"table_width": self.tables.shape[1], "kv": self.memory, "block_bytes": self.block_bytes}
        return rows | where | {"unit_bytes": self.unit_bytes, "first_unit": a_layer + first}


def rows_of(step, lengths):
    """Positions and owners of tokens of a step, (sequence, how many) of each; `lengths` grow."""
    positions, sequence = [], []
    for name, count in step:
        positions += range(lengths[name], lengths[name] + count)
        sequence += [name] * count
        lengths[name] += count
    return ints(positions), ints(sequence)


def stepped(layer, kept, kernel, given, positions, sequence, call):
    """What a kernel makes of a step; `call(kernel, **operands)` runs it."""
    _, heads, _, C, _ = layer.shape
    T, N = given["x"].shape
    y, first = (empty(T, N), heads) if kernel == CONV else (empty(T, heads, C), 0)
    at = kept.operands(positions, sequence, first)
    call(kernel, y=y, **layer.operands(kernel, given), **at, T=T, B=SEQUENCES)
    return y


def convolved(x, taps, past, position, bias=0.0):
    """The sum of a token's taps, and the inputs that the next one meets."""
    past = np.zeros((taps.values.shape[1] - 1, x.shape[-1])) if position == 0 else past
    window = np.concatenate([past, x[None]])
    return (window * taps.values.T).sum(axis=0) + bias, window[1:]


def unit(x):
    """Of length 1, or nearly so."""
    return x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + 1e-6)


@dataclass
class Net:
    """Weights of a gated delta net, and what float64 says that it computes. `shape`: key heads, heads, K, C, taps."""

    KERNELS: ClassVar = (CONV, "gated_delta", "gated_delta_norm")
    shape: tuple
    taps: native.Weight
    a_log: native.Weight
    dt_bias: native.Weight
    norm: native.Weight
    offset: float = 0.0

    @classmethod
    def make(cls, rng, shape, dtype, weight=native.weight, offset=0.0):
        _, heads, _, C, taps = shape
        sizes = ((Kept.channels_of(shape), taps), (heads,), (heads,), (C,))
        return cls(shape, *(weight(rng, size, dtype, scale=0.5) for size in sizes), offset)

    @staticmethod
    def inputs(rng, shape, T):
        """What goes into the convolution, the two gates of heads, and that behind them."""
        heads, C = shape[1], shape[3]
        sizes = {"x": (Kept.channels_of(shape),), "a": (heads,), "b": (heads,), "z": (heads, C)}
        return {name: random(rng, T, *size) for name, size in sizes.items()}

    def operands(self, kernel, given):
        """Of one of the kernels; all but where states are, and what is put out."""
        key_heads, heads, K, C, taps = self.shape
        if kernel == CONV:
            return {"x": given["x"], "N": given["x"].shape[1], "taps": taps} | self.taps.operand("weight")
        own = {name: given[name] for name in ("x", "a", "b")} | self.a_log.operand("a_log")
        own |= self.dt_bias.operand("dt_bias") | {"key_heads": key_heads, "H": heads, "K": K, "C": C}
        norm = {"z": given["z"], "eps": 1e-6, "offset": self.offset, **self.norm.operand("norm")}
        return own | norm if kernel == "gated_delta_norm" else own

    def convolve(self, x, past, position):
        total, past = convolved(x, self.taps, past, position)
        return native.silu(total), past

    def step(self, token, matrix, position):
        """What one token puts out, and the state that it leaves."""
        key_heads, heads, K, C, _ = self.shape
        matrix = np.zeros((heads, K, C)) if position == 0 else matrix
        q, k, v = np.split(token["x"].astype(np.float64), [key_heads * K, 2 * key_heads * K])
        q, k = (np.repeat(unit(part.reshape(key_heads, K)), heads // key_heads, axis=0) for part in (q, k))
        decay = np.exp(-np.exp(self.a_log.values) * np.logaddexp(0, token["a"] + self.dt_bias.values))
        matrix = matrix * decay[:, None, None]
        beta = 1 / (1 + np.exp(-token["b"].astype(np.float64)))
        change = (v.reshape(heads, C) - np.einsum("hk,hkc->hc", k, matrix)) * beta[:, None]
        matrix = matrix + k[:, :, None] * change[:, None]
        return np.einsum("hk,hkc->hc", q, matrix) / K**0.5, matrix

    def gate(self, y, z):
        return native.rms_norm(y, self.norm.values, 1e-6, self.offset) * native.silu(z)


@dataclass
class Space:
    """Weights of a selective state space, and what float64 says that it computes. `shape`: groups, heads, K, C, taps.

    `bounds` of a step: from 0 to infinite for none.
    """

    KERNELS: ClassVar = (CONV, "selective_scan", "selective_scan_gate")
    shape: tuple
    taps: native.Weight
    conv_bias: native.Weight
    a_log: native.Weight
    dt_bias: native.Weight
    skip: native.Weight
    bounds: tuple = (0.0, np.inf)

    @classmethod
    def make(cls, rng, shape, dtype, weight=native.weight, bounds=(0.0, np.inf)):
        _, heads, _, _, taps = shape
        channels = Kept.channels_of(shape)
        sizes = ((channels, taps), (channels,), (heads,), (heads,), (heads,))
        return cls(shape, *(weight(rng, size, dtype, scale=0.5) for size in sizes), bounds)

    @staticmethod
    def inputs(rng, shape, T):
        """What goes into the convolution, the heads' steps, and their gates."""
        heads, C = shape[1], shape[3]
        sizes = {"x": (Kept.channels_of(shape),), "dt": (heads,), "z": (heads, C)}
        return {name: random(rng, T, *size) for name, size in sizes.items()}

    def operands(self, kernel, given):
        """Of one of the kernels; all but where states are, and what is put out."""
        groups, heads, K, C, taps = self.shape
        if kernel == CONV:
            own = {"x": given["x"], "N": given["x"].shape[1], "taps": taps} | self.taps.operand("weight")
            return own | self.conv_bias.operand("bias")
        own = {"x": given["x"], "dt": given["dt"]} | self.skip.operand("skip")
        own |= self.a_log.operand("a_log") | self.dt_bias.operand("dt_bias")
        own |= {"groups": groups, "H": heads, "K": K, "C": C, "least": self.bounds[0], "most": self.bounds[1]}
        return own | {"z": given["z"]} if kernel == "selective_scan_gate" else own

    def convolve(self, x, past, position):
        total, past = convolved(x, self.taps, past, position, self.conv_bias.values)
        return native.silu(total), past

    def step(self, token, matrix, position):
        """What one token puts out, and the state that it leaves."""
        groups, heads, K, C, _ = self.shape
        matrix = np.zeros((heads, K, C)) if position == 0 else matrix
        own, write, read = np.split(token["x"].astype(np.float64), [heads * C, heads * C + groups * K])
        write, read = (np.repeat(part.reshape(groups, K), heads // groups, axis=0) for part in (write, read))
        own = own.reshape(heads, C)
        step = np.clip(np.logaddexp(0, token["dt"] + self.dt_bias.values), *self.bounds)
        matrix = matrix * np.exp(-np.exp(self.a_log.values) * step)[:, None, None]
        matrix = matrix + write[:, :, None] * (own * step[:, None])[:, None]
        return np.einsum("hk,hkc->hc", read, matrix) + own * self.skip.values[:, None], matrix

    def gate(self, y, z):
        return y * native.silu(z)

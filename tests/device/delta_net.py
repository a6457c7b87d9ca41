"""A gated delta net in float64, and three sequences' states in blocks, for tests of kernels.

Knows nothing about whose kernels they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tests.device import native
from tests.device.native import ints, random


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


def unit(x):
    """Of length 1, or nearly so."""
    return x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + 1e-6)


@dataclass
class Net:
    """A layer's weights, and what float64 says that it computes."""

    shape: tuple
    taps: native.Weight
    a_log: native.Weight
    dt_bias: native.Weight
    norm: native.Weight

    @classmethod
    def make(cls, rng, shape, dtype, weight=native.weight):
        _, heads, _, C, taps = shape
        sizes = ((Kept.channels_of(shape), taps), (heads,), (heads,), (C,))
        return cls(shape, *(weight(rng, size, dtype, scale=0.5) for size in sizes))

    def convolve(self, x, past, position, plain=False):
        past = np.zeros((self.shape[4] - 1, x.shape[-1])) if position == 0 else past
        window = np.concatenate([past, x[None]])
        total = (window * self.taps.values.T).sum(axis=0)
        return total if plain else native.silu(total), window[1:]

    def step(self, x, a, b, matrix, position):
        key_heads, heads, K, C, _ = self.shape
        matrix = np.zeros((heads, K, C)) if position == 0 else matrix
        q, k, v = np.split(x.astype(np.float64), [key_heads * K, 2 * key_heads * K])
        q, k = (np.repeat(unit(part.reshape(key_heads, K)), heads // key_heads, axis=0) for part in (q, k))
        matrix = matrix * np.exp(-np.exp(self.a_log.values) * np.logaddexp(0, a + self.dt_bias.values))[:, None, None]
        beta = 1 / (1 + np.exp(-b.astype(np.float64)))
        change = (v.reshape(heads, C) - np.einsum("hk,hkc->hc", k, matrix)) * beta[:, None]
        matrix = matrix + k[:, :, None] * change[:, None]
        return np.einsum("hk,hkc->hc", q, matrix) / K**0.5, matrix


def inputs(rng, shape, T):
    """x, a and b."""
    return random(rng, T, Kept.channels_of(shape)), *(random(rng, T, shape[1]) for _ in range(2))

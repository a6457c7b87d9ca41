"""Kernels of latent attention against NumPy: each instruction set, odd shapes, rows in pages; the bits never change.

Knows nothing about devices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from tests.device import native
from tests.device.native import WEIGHT_DTYPES, call, empty, ints, random, weight

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.kernels import cpu as kernels

EDGES = (1, 31, 33, 255, 256, 257, 513, 1100)  # contexts around the ends of spans and pages
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# Heads, rows of a head for keys and for values, latent numbers, rotated ones.
HEADS = [(1, 1, 1, 1, 2), (2, 8, 12, 32, 4), (3, 9, 7, 37, 6), (16, 16, 16, 64, 8), (5, 33, 3, 20, 10)]
ROWS = [(1, 1, 2), (5, 20, 6), (16, 64, 16), (20, 37, 4), (130, 24, 8), (16, 512, 64)]  # heads, latent, rotated


@pytest.fixture(params=kernels.ISAS, scope="module")
def isa(request):
    return request.param


@dataclass
class Rows:
    """Latent rows of C numbers in scattered blocks [layer][Z][C], `apart` bytes behind one another."""

    C: int
    Z: int
    dtype: DType
    tables: np.ndarray
    memory: np.ndarray
    apart: int
    layers: int

    @classmethod
    def make(cls, rng, sequences, context, C, Z=5, dtype=DType.BF16, layers=2):
        width = -(-context // Z)
        blocks = rng.permutation(sequences * width + 2)[: sequences * width].reshape(sequences, width)
        apart = layers * Z * C * dtype.size_bytes + 6
        return cls(C, Z, dtype, ints(blocks), np.zeros((sequences * width + 2) * apart, np.uint8), apart, layers)

    def operands(self, positions, sequence, layer):
        return {
            **{"positions": ints(positions), "sequence": ints(sequence), "block_tables": self.tables},
            **{"table_width": self.tables.shape[1], "kv": self.memory, "block_bytes": self.apart, "Z": self.Z},
            **{"kv_dtype": kernels.dtype_number(self.dtype), "layer": layer, "K": 1, "C": self.C},
        }

    def of(self, sequence, position):
        """The bits of a row in every layer [layers, C]."""
        start = int(self.tables[sequence, position // self.Z]) * self.apart
        size = self.layers * self.Z * self.C * self.dtype.size_bytes
        block = self.memory[start : start + size].view(self.dtype.numpy).reshape(self.layers, self.Z, self.C)
        return block[:, position % self.Z]

    def read(self, layer, sequence, length):
        """Rows [length, C] as float32."""
        return to_f32(np.stack([self.of(sequence, p)[layer] for p in range(length)]), self.dtype)


def filled(rng, lengths, C, Z=5, dtype=DType.BF16):
    """Rows of sequences of these lengths; what lies beyond them is NaN, so that reading it shows."""
    rows = Rows.make(rng, len(lengths), max(lengths), C, Z, dtype, layers=1)
    for s, length in enumerate(lengths):
        for position in range(rows.tables.shape[1] * Z):
            numbers = random(rng, 1, C) if position < length else np.full((1, C), np.nan, np.float32)
            rows.of(s, position)[:] = from_f32(numbers, dtype)
    return rows


def attend(team, rows, q, positions, sequence, latent):
    T, H, _ = q.shape
    y = empty(T, H, latent)
    sizes = {"T": T, "B": len(rows.tables), "H": H, "latent": latent, "scale": 0.3, "window": 0}
    none = {"cap": 0.0, "growth": 0.0, "every": 1, **native.absent("sinks")}
    call(team, "latent_attention", q=q, y=y, **rows.operands(positions, sequence, 0), **sizes, **none)
    return y


def attended(rows, q, positions, sequence, latent, layer=0, scale=0.3):
    """The same in float64, a token at a time."""
    y = np.zeros((*q.shape[:2], latent))
    for t, (position, s) in enumerate(zip(positions, sequence, strict=True)):
        seen = rows.read(layer, s, position + 1).astype(np.float64)
        scores = scale * q[t] @ seen.T
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y[t] = (p / p.sum(axis=-1, keepdims=True)) @ seen[:, :latent]
    return y


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(("latent", "rotated", "interleaved"), [(1, 2, 0), (20, 6, 1), (64, 16, 0), (37, 4, 1)])
def test_append(isa, rng, latent, rotated, interleaved, dtype):
    lengths, C = (3, 30), latent + rotated
    rows = Rows.make(rng, 2, 30, C, dtype=dtype)
    positions, sequence = [*range(3), *range(7, 30)], [0] * 3 + [1] * 23
    x, norm, inv_freq = random(rng, 26, C), weight(rng, (latent,), dtype, 1.0, 0.2), random(rng, rotated // 2) ** 2
    how = {"inv_freq": inv_freq, "scale": 1.25, "interleaved": interleaved, "eps": 1e-6, "T": 26, "latent": latent}
    how |= norm.operand("norm") | rows.operands(positions, sequence, 1)
    call(kernels.Team(2, isa), "latent_append", x=x, **how)
    normed = native.rms_norm(x[:, :latent], norm.values, 1e-6)
    turned = native.rope(x[:, None, latent:], ints(positions), inv_freq, 1.25, interleaved)[:, 0]
    wanted = np.concatenate([normed, turned], axis=1)
    rounding = {DType.F32: 1e-5, DType.F16: 1e-3, DType.BF16: 8e-3}[dtype]
    for t, (position, s) in enumerate(zip(positions, sequence, strict=True)):
        found = to_f32(rows.of(s, position).copy(), dtype)
        np.testing.assert_allclose(found[1], wanted[t], rtol=rounding, atol=rounding)
        assert not found[0].any()
    untouched = [rows.of(s, p) for s, first in ((0, 3), (1, 0)) for p in range(first, (lengths[s], 7)[s])]
    assert not any(row.any() for row in untouched)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("T", [0, 1, 3, 4, 7, 65])
@pytest.mark.parametrize("shape", HEADS)
def test_queries_and_values(isa, rng, shape, T, dtype):
    (H, N, V, R, P), team = shape, kernels.Team(2, isa)
    x, up, inv_freq = random(rng, T, H, N + P), weight(rng, (H * (N + V), R), dtype), random(rng, P // 2) ** 2
    positions = ints(rng.integers(0, 900, T))
    by_head = up.values.reshape(H, N + V, R).astype(np.float64)
    sizes = {"H": H, "N": N, "V": V, "latent": R, **up.operand("weight")}

    def queries(x, positions):
        y = empty(len(x), H, R + P)
        turns = {"positions": positions, "inv_freq": inv_freq, "scale": 0.75, "interleaved": 1, "rotated": P}
        call(team, "latent_queries", x=x, y=y, T=len(x), **turns, **sizes)
        return y

    def values(x):
        y = empty(len(x), H, V)
        call(team, "latent_values", x=x, y=y, T=len(x), **sizes)
        return y

    q = queries(x, positions)
    np.testing.assert_allclose(q[..., :R], np.einsum("thn,hnr->thr", x[..., :N], by_head[:, :N]), **CLOSE)
    np.testing.assert_allclose(q[..., R:], native.rope(x[..., N:], positions, inv_freq, 0.75, True), **CLOSE)
    rows = np.ascontiguousarray(q[..., :R])
    v = values(rows)
    np.testing.assert_allclose(v, np.einsum("thr,hvr->thv", rows, by_head[:, N:]), **CLOSE)
    for t in range(T):
        np.testing.assert_array_equal(queries(x[t : t + 1], positions[t : t + 1])[0], q[t])
        np.testing.assert_array_equal(values(rows[t : t + 1])[0], v[t])


@pytest.mark.parametrize(("H", "latent", "rotated"), ROWS)
def test_one_token_each_at_the_edges_of_spans_and_pages(isa, rng, H, latent, rotated):
    rows = filled(rng, EDGES, latent + rotated, Z=7)
    positions, sequence = [n - 1 for n in EDGES], list(range(len(EDGES)))
    q = random(rng, len(EDGES), H, latent + rotated)
    found = attend(kernels.Team(2, isa), rows, q, positions, sequence, latent)
    np.testing.assert_allclose(found, attended(rows, q, positions, sequence, latent), **CLOSE)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize(("H", "latent", "rotated"), [(3, 20, 6), (16, 64, 16)])
def test_types_of_pages(isa, rng, H, latent, rotated, dtype):
    rows = filled(rng, (300, 40), latent + rotated, dtype=dtype)
    positions, sequence = [*range(230, 300), 39], [0] * 70 + [1]
    q = random(rng, 71, H, latent + rotated)
    found = attend(kernels.Team(3, isa), rows, q, positions, sequence, latent)
    np.testing.assert_allclose(found, attended(rows, q, positions, sequence, latent), **CLOSE)


@pytest.mark.parametrize(("H", "latent", "rotated"), [(1, 37, 4), (5, 20, 6), (16, 64, 16), (130, 24, 8)])
def test_bits_do_not_depend_on_threads_batch_or_chunks(isa, rng, H, latent, rotated):
    rows = filled(rng, (800, 600, 10, 257), latent + rotated, Z=16)
    positions, sequence = [799, *range(500, 600), 9, *range(250, 257)], [0] + [1] * 100 + [2] + [3] * 7
    q = random(rng, len(positions), H, latent + rotated)
    whole = attend(kernels.Team(1, isa), rows, q, positions, sequence, latent)
    assert np.isfinite(whole).all()
    for threads in (2, 3, 8):
        again = attend(kernels.Team(threads, isa), rows, q, positions, sequence, latent)
        np.testing.assert_array_equal(again, whole)
    for size in (1, 5, 64):
        for first in range(0, len(positions), size):
            part = slice(first, first + size)
            alone = attend(kernels.Team(2, isa), rows, q[part].copy(), positions[part], sequence[part], latent)
            np.testing.assert_array_equal(alone, whole[part])


def test_no_tokens(isa, rng):
    rows = filled(rng, (5,), 12)
    assert attend(kernels.Team(2, isa), rows, empty(0, 2, 12), [], [], 8).shape == (0, 2, 8)

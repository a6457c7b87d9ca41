"""Kernels of latent attention for GPUs beside float64: cases as those of triton_cases.py.

Knows nothing about programs.
"""

from __future__ import annotations

import numpy as np
from tests.device import native
from tests.device.interpreted import Bucket, aligned, call
from tests.device.native import empty, ints, random
from tests.device.test_kernels_latent import Rows, attended
from tests.device.triton_attention_cases import bound_of, last_of, words_of
from tests.device.triton_cases import BF16, EXACT, F16, F32, FLOATS, Case, bound, tokens, weight

from coterie.core.dtypes import DType, from_f32

NONE = {"window": 0, "cap": 0.0, "growth": 0.0, "every": 1, **native.absent("sinks")}


def rows_of(rng, lengths, C, Z, dtype, layers=2):
    """Rows of sequences of these lengths in layer 1, where a GPU would have them; all else is NaN."""
    rows = Rows.make(rng, len(lengths), max(lengths), C, Z, dtype, layers)
    rows.memory = aligned(rows.memory)
    rows.tables = aligned(rows.tables)
    for s, length in enumerate(lengths):
        for position in range(rows.tables.shape[1] * Z):
            rows.of(s, position)[:] = from_f32(np.full((layers, C), np.nan, np.float32), dtype)
            if position < length:
                rows.of(s, position)[1] = from_f32(random(rng, C), dtype)
    return rows


def append(dtype, T, latent, rotated, interleaved):
    """Of one sequence that has 7 tokens, and another that has none."""

    def run(rng):
        C, counts = latent + rotated, (T - T // 2, T // 2)
        rows = rows_of(rng, (7 + T, max(T, 1)), C, 5, dtype)
        positions = [*range(7, 7 + counts[0]), *range(counts[1])]
        sequence = [0] * counts[0] + [1] * counts[1]
        x, norm, inv_freq = random(rng, T, C), weight(rng, (latent,), dtype, 1.0, 0.2), random(rng, rotated // 2) ** 2
        how = {"inv_freq": inv_freq, "scale": 1.25, "interleaved": interleaved, "eps": 1e-6, "T": T, "latent": latent}
        how |= norm.operand("norm") | rows.operands(positions, sequence, 1)
        call("latent_append", Bucket(T + 1, 2, 1, 16), x=x, **how)
        normed = native.rms_norm(x[:, :latent], norm.values, 1e-6)
        turned = native.rope(x[:, None, latent:], ints(positions), inv_freq, 1.25, interleaved)[:, 0]
        read = [rows.read(1, s, 7 + T if s == 0 else max(T, 1)) for s in (0, 1)]
        found = np.stack([read[s][p] for p, s in zip(positions, sequence, strict=True)]) if T else empty(0, C)
        return [(found, np.concatenate([normed, turned], axis=1))]

    worst = {F32: EXACT, F16: 2.0**-11, BF16: 2.0**-8}[dtype]
    shape = f"T {T}, {latent} latent, {rotated} rotated" + ", interleaved" * interleaved
    return Case("latent_append", dtype.value, shape, worst, run)


def heads(kernel, dtype, T, H, N, V, latent, rotated=2):
    """Of queries, or of values."""

    def run(rng):
        up = weight(rng, (H * (N + V), latent), dtype)
        by_head = up.values.reshape(H, N + V, latent).astype(np.float64)
        sizes = {"T": T, "H": H, "N": N, "V": V, "latent": latent, **up.operand("weight")}
        if kernel == "latent_values":
            x, y = random(rng, T, H, latent), empty(T, H, V)
            call(kernel, tokens(T), x=x, y=y, **sizes)
            return [(y, np.einsum("thr,hvr->thv", x, by_head[:, N:]))]
        x, y, positions = random(rng, T, H, N + rotated), empty(T, H, latent + rotated), ints(rng.integers(0, 900, T))
        inv_freq = random(rng, rotated // 2) ** 2
        turns = {"positions": positions, "inv_freq": inv_freq, "scale": 0.75, "interleaved": 1, "rotated": rotated}
        call(kernel, tokens(T), x=x, y=y, **turns, **sizes)
        return [
            (y[..., :latent], np.einsum("thn,hnr->thr", x[..., :N], by_head[:, :N])),
            (y[..., latent:], native.rope(x[..., N:], positions, inv_freq, 0.75, True)),
        ]

    shape = f"T {T}, H {H}, N {N}, V {V}, {latent} latent" + f", {rotated} rotated" * (kernel == "latent_queries")
    return Case(kernel, dtype.value, shape, bound(dtype, T), run)


def attention(dtype, H, latent, rotated, Z, lengths, chunks, context=None):
    """Of each sequence the last `chunk` tokens; none of a chunk of 0."""

    def run(rng):
        rows = rows_of(rng, lengths, latent + rotated, Z, dtype)
        positions, sequence = last_of(lengths, chunks)
        T = len(positions)
        q, y = random(rng, T, H, latent + rotated), empty(T, H, latent)
        most = Bucket(T, len(lengths), T, context or max(lengths))
        scale = (latent + rotated) ** -0.5
        sizes = {"T": T, "B": len(lengths), "H": H, "latent": latent, "scale": scale, **NONE}
        call("latent_attention", most, q=q, y=y, **rows.operands(positions, sequence, 1), **sizes)
        return [(y, attended(rows, q, positions, sequence, latent, 1, scale))]

    shape = f"H {H}, {latent} latent, {rotated} rotated, Z {Z}, {words_of(lengths, chunks)}"
    return Case("latent_attention", dtype.value, shape, bound_of(dtype, chunks), run)


SIZES = ((1, 1, 1, 1, 1), (3, 2, 8, 12, 32), (4, 3, 9, 7, 37), (70, 2, 33, 20, 70))  # T, H, N, V, latent numbers
QUICK = [
    *(append(t, *sizes) for t, sizes in zip(FLOATS, ((0, 1, 2, 0), (1, 20, 6, 1), (9, 64, 16, 0)), strict=True)),
    append(BF16, 5, 37, 4, 1),
    *(heads(kernel, t, *SIZES[i]) for kernel in ("latent_queries", "latent_values") for t in FLOATS for i in (1, 3)),
    *(heads(kernel, BF16, *sizes) for kernel in ("latent_queries", "latent_values") for sizes in SIZES[:3:2]),
    heads("latent_queries", BF16, 17, 3, 300, 5, 20, 10),
    *(attention(t, 3, 20, 6, 5, (1, 7, 150), (1, 0, 1)) for t in FLOATS),
    attention(BF16, 1, 37, 4, 7, (40,), (1,), context=900),
    *(attention(t, 5, 20, 6, 5, (12, 3, 90, 1), (12, 1, 9, 0)) for t in FLOATS),
    attention(BF16, 40, 64, 16, 16, (70, 5), (3, 5)),
]
LONG = [
    *(append(t, 33, 512, 64, i) for i, t in enumerate((F16, BF16))),
    *(heads(kernel, BF16, T, 2, 128, 128, 512, 64) for kernel in ("latent_queries", "latent_values") for T in (4, 70)),
    *(attention(t, 16, 512, 64, 16, (300, 129, 64), c) for t in FLOATS for c in ((1, 1, 1), (9, 1, 3))),
    attention(DType.BF16, 20, 512, 64, 16, (300, 1), (1, 1)),
    attention(DType.BF16, 130, 24, 8, 16, (200,), (5,)),
]

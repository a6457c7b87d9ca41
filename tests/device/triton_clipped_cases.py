"""Cases of what layers with sinks, clipped gates and biases of branches have: see triton_cases.py.

Knows nothing about programs.
"""

from __future__ import annotations

import numpy as np
from tests.device import native
from tests.device.interpreted import Bucket, call
from tests.device.native import chosen, empty, ints, random
from tests.device.triton_branch_cases import alike, pairs_of, shape_of_branches
from tests.device.triton_cases import (
    BF16,
    EXACT,
    F16,
    F32,
    FLOATS,
    ROUNDED,
    TYPES,
    Case,
    bound,
    pages_of,
    table_of,
    tokens,
    weight,
)

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels

ALPHA, LIMIT = 1.702, 2.0  # low enough that much is clipped


def attention_with_sinks(dtype, of_sinks, H, K, C, Z, lengths, chunks, window=0):
    """Of each sequence the last `chunk` tokens. Sinks of 3 in the mean: some outweigh all that a token sees."""

    def run(rng):
        pages = pages_of(rng, lengths, K, C, Z, dtype)
        positions = [n - c + i for n, c in zip(lengths, chunks, strict=True) for i in range(c)]
        sequence = [s for s, c in enumerate(chunks) for _ in range(c)]
        T = len(positions)
        q, y, sinks = random(rng, T, H, C), empty(T, H, C), weight(rng, (H,), of_sinks, 1.0, 3.0)
        sizes = {"T": T, "B": len(lengths), "H": H, "K": K, "C": C, "scale": C**-0.5, "window": window, "every": 1}
        most = Bucket(T, len(lengths), T, max(lengths))
        at = pages.operands(ints(positions), ints(sequence), 1)
        call("attention", most, q=q, **at, y=y, **sizes, cap=0.0, growth=0.0, **sinks.operand("sinks"))
        return [(y, native.attention(q, pages, positions, sequence, 1, C**-0.5, window, sinks=sinks.values))]

    alone = all(c <= 1 for c in chunks)
    worst = {F32: EXACT, F16: EXACT, BF16: 2.0**-15}[dtype] if alone else ROUNDED[dtype]
    tokens_of = "decode" if alone else "chunks " + " ".join(map(str, chunks))
    of = f", sinks {of_sinks.value}" + f", window {window}" * bool(window)
    shape = f"H {H}, K {K}, C {C}, Z {Z}, contexts {' '.join(map(str, lengths))}, {tokens_of}{of}"
    return Case("attention", dtype.value, shape, worst, run)


def clipped(dtype, T, E, taken, D, F, choice=chosen, of_biases=(BF16, F32)):
    def run(rng):
        x, weights, y = random(rng, T, D), choice(rng, T, E, taken), empty(T, taken, F)
        both = [weight(rng, (F, D), dtype) for _ in range(2 * E)]
        biases = [weight(rng, (E, F), t, scale=0.5) for t in of_biases]
        sizes = {"T": T, "E": E, "taken": taken, "D": D, "F": F, "dtype": kernels.dtype_number(dtype)}
        more = {"alpha": ALPHA, "limit": LIMIT, **biases[0].operand("gate_bias"), **biases[1].operand("up_bias")}
        call("branch_gate_up_clipped", tokens(T), x=x, weights=weights, branches=table_of(both), y=y, **sizes, **more)
        expected = np.zeros((T, taken, F))
        for t, place, e in pairs_of(weights):
            gate, up = (x[t].astype(np.float64) @ both[i].values.T for i in (e, E + e))
            met = gate + biases[0].values[e], up + biases[1].values[e]
            expected[t, place] = native.clipped(*met, ALPHA, LIMIT)
        return [(y, expected)]

    shape = f"{shape_of_branches(T, E, taken, D, F, choice)}, biases {', '.join(t.value for t in of_biases)}"
    return Case("branch_gate_up_clipped", dtype.value, shape, bound(dtype, T), run)


def add_branch_bias(dtype, T, E, taken, D):
    def run(rng):
        x, weights, bias, y = random(rng, T, D), chosen(rng, T, E, taken), weight(rng, (E, D), dtype), empty(T, D)
        ends = {"x": x, "weights": weights, **bias.operand("bias"), "y": y}
        call("add_branch_bias", tokens(T), **ends, T=T, E=E, D=D)
        return [(y, x + weights.astype(np.float64) @ bias.values)]

    return Case("add_branch_bias", dtype.value, f"T {T}, E {E}, {taken} taken, D {D}", EXACT, run)


QUICK = [
    *(attention_with_sinks(t, BF16, 4, 2, 32, 5, (1, 7, 70), (1, 0, 1)) for t in FLOATS),
    attention_with_sinks(BF16, F32, 8, 1, 64, 16, (90, 30), (1, 1), window=20),
    *(attention_with_sinks(t, F32, 4, 2, 32, 5, (12, 3, 30), (12, 1, 9)) for t in FLOATS),
    attention_with_sinks(BF16, F16, 9, 3, 20, 16, (20, 75), (3, 6), window=7),
    *(clipped(t, T, 5, 2, 70, 21) for t in TYPES for T in (1, 6)),
    clipped(BF16, 3, 5, 2, 70, 21, of_biases=(F16, BF16)),
    *(add_branch_bias(t, T, E, A, D) for t, T, E, A, D in ((F32, 0, 3, 2, 5), (BF16, 1, 5, 2, 70), (F16, 4, 9, 9, 33))),
]
LONG = [
    *(
        attention_with_sinks(t, BF16, 8, 2, 64, 16, (700, 257, 256), c)
        for t in FLOATS
        for c in ((1, 1, 1), (140, 1, 33))
    ),
    *(attention_with_sinks(BF16, BF16, 8, 1, 64, 16, (700, 257), c, window=128) for c in ((1, 1), (40, 1))),
    *(clipped(t, T, 9, 2, 257, 130, alike) for t in TYPES for T in (4, 70)),
    *(clipped(DType.BF16, T, 6, 4, 130, 70) for T in (2, 45)),
    add_branch_bias(BF16, 7, 128, 4, 2880),
]

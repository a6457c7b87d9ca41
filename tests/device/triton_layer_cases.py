"""Cases of what layers have of their own, and of branches with gelu and factors: see triton_cases.py.

Knows nothing about programs.
"""

from __future__ import annotations

import numpy as np
from tests.device import native
from tests.device.interpreted import call
from tests.device.native import chosen, empty, random
from tests.device.triton_branch_cases import alike, pairs_of, shape_of_branches
from tests.device.triton_cases import BF16, EXACT, F16, F32, TYPES, Case, attention, bound, table_of, tokens, weight
from tests.device.triton_clipped_cases import attention_with_sinks

from coterie.kernels import cpu as kernels


def mul_part(T, parts, N, part):
    def run(rng):
        a, b, y = random(rng, T, N), random(rng, T, parts, N), empty(T, N)
        call("mul_part", tokens(T), a=a, b=b, y=y, T=T, N=N, b_first=part * N, b_step=parts * N)
        return [(y, a * b[:, part])]

    return Case("mul_part", "F32", f"T {T}, part {part} of {parts}, N {N}", EXACT, run)


def mul_one(dtype, T, N):
    def run(rng):
        x, factor, y = random(rng, T, N), weight(rng, (1,), dtype, 1.0, 0.3), empty(T, N)
        call("mul_one", tokens(T), x=x, **factor.operand("weight"), y=y, T=T, N=N)
        return [(y, x * factor.values)]

    return Case("mul_one", dtype.value, f"T {T}, N {N}", EXACT, run)


def norm_add(dtype, T, D):
    """With a factor of the sum."""

    def run(rng):
        x, residual, y, norm = random(rng, T, D), random(rng, T, D), empty(T, D), weight(rng, (D,), dtype, 1.0, 0.3)
        factor = weight(rng, (1,), dtype, 1.0, 0.3)
        given = {"x": x, "residual": residual, **norm.operand("norm"), **factor.operand("factor")}
        call("norm_add", tokens(T), **given, eps=1e-5, y=y, T=T, D=D)
        return [(y, (residual + native.rms_norm(x.astype(np.float64), norm.values, 1e-5)) * factor.values)]

    return Case("norm_add", dtype.value, f"T {T}, D {D}, times a number", EXACT, run)


def choose_branches(dtype, T, E, top_k):
    """With a factor of each branch; some are below 0."""

    def run(rng):
        logits, factors, y = 2 * random(rng, T, E), weight(rng, (E,), dtype, 0.5, 1.0), empty(T, E)
        given = {"logits": logits, **factors.operand("factors"), "top_k": top_k, "normalise": 1, "scale": 1.0}
        call("choose_branches", tokens(T), **given, y=y, T=T, E=E)
        expected = np.zeros((T, E))
        for t, row in enumerate(logits.astype(np.float64)):
            best = np.argsort(-row, kind="stable")[:top_k]
            share = np.exp(row[best] - row.max())
            expected[t, best] = share / share.sum() * factors.values[best]
        return [(y, expected)]

    return Case("choose_branches", dtype.value, f"T {T}, E {E}, {top_k} taken, normalised, factors", EXACT, run)


def branch_gate_up_gelu(dtype, T, E, taken, D, F, form="tanh", choice=chosen):
    def run(rng):
        x, weights, y = random(rng, T, D), choice(rng, T, E, taken), empty(T, taken, F)
        both = [weight(rng, (F, D), dtype) for _ in range(2 * E)]
        sizes = {"T": T, "E": E, "taken": taken, "D": D, "F": F, "dtype": kernels.dtype_number(dtype)}
        sizes["form"] = kernels.GELU_FORMS.index(form)
        call("branch_gate_up_gelu", tokens(T), x=x, weights=weights, branches=table_of(both), y=y, **sizes)
        expected = np.zeros((T, taken, F))
        for t, place, e in pairs_of(weights):
            gate, up = (x[t].astype(np.float64) @ both[i].values.T for i in (e, E + e))
            expected[t, place] = native.gelu(gate, form) * up
        return [(y, expected)]

    shape = f"{shape_of_branches(T, E, taken, D, F, choice)}, {form}"
    return Case("branch_gate_up_gelu", dtype.value, shape, bound(dtype, T), run)


QUICK = [
    *(mul_part(T, parts, N, part) for T, parts, N, part in ((0, 2, 3, 1), (1, 1, 1, 0), (5, 3, 70, 2), (2, 4, 256, 1))),
    *(mul_one(t, T, N) for t, T, N in ((F32, 0, 3), (BF16, 1, 1), (F16, 3, 1100))),
    *(norm_add(t, T, D) for t, T, D in ((BF16, 1, 133), (F32, 3, 70))),
    *(choose_branches(t, T, E, k) for t, T, E, k in ((F32, 1, 1, 1), (BF16, 5, 12, 3), (F16, 3, 61, 8))),
    *(branch_gate_up_gelu(t, T, 5, 2, 70, 21) for t in TYPES for T in (1, 6)),
    attention(BF16, 2, 1, 512, 16, (40, 150), (1, 1)),
    *(attention(t, 2, 1, 512, 16, (20, 40), (3, 6), W) for t, W in ((BF16, 0), (F32, 7))),
    *(attention(t, 6, 2, 300, 5, (1, 7, 150), c) for t in (F32, F16) for c in ((1, 0, 1), (1, 1, 9))),
    *(attention(F32, 3, 1, 300, 7, (33, 150), c, 40, 600, cap=1.5) for c in ((1, 1), (9, 33))),
    *(attention(F32, 3, 1, 300, 5, (12, 75), c, growth=0.4, every=6) for c in ((12, 9), (1, 1))),
    *(attention_with_sinks(BF16, F32, 4, 2, 300, 5, (12, 70), c) for c in ((1, 1), (12, 20))),
    branch_gate_up_gelu(BF16, 3, 4, 4, 33, 9, "erf", alike),
    branch_gate_up_gelu(BF16, 19, 4, 4, 33, 9, "erf", alike),
]
LONG = [
    *(branch_gate_up_gelu(t, T, 9, 2, 257, 130, "tanh", alike) for t in TYPES for T in (4, 70)),
    choose_branches(BF16, 7, 128, 8),
    mul_part(3, 35, 256, 34),
]

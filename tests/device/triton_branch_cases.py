"""Cases of branches of a layer, and of what chooses them. See triton_cases.py.

Knows nothing about programs.
"""

from __future__ import annotations

import numpy as np
from tests.device import native
from tests.device.interpreted import call
from tests.device.native import choice, chosen, empty, optional, random
from tests.device.triton_cases import BF16, EXACT, F16, F32, Q4, TYPES, Case, bound, table_of, tokens, weight

from coterie.kernels import cpu as kernels

ALPHA, LIMIT = 1.702, 2.0  # low enough that much is clipped
BIASES = (BF16, F32)


def choose_branches(T, E, top_k, normalise, logits=None, bias=None, factors=None, scale=0.7, **how):
    """`logits`: how they are made, as words and a function (rng, T, E); `bias` and `factors`: of this type."""
    words, made = logits or ("", lambda rng, T, E: 2 * random(rng, T, E))

    def run(rng):
        x, y = made(rng, T, E), empty(T, E)
        rule = {"top_k": top_k, "normalise": normalise, "scale": scale, **how}
        added = weight(rng, (E,), bias) if bias else None
        times = weight(rng, (E,), factors, 0.5, 1.0) if factors else None  # some are below 0
        ends = {"logits": x, **optional("bias", added), **optional("factors", times), "y": y}
        call("choose_branches", tokens(T), **ends, T=T, E=E, **rule)
        expected = choice(x, **rule, bias=added and added.values) * (times.values if times else 1.0)
        return [(y, expected), ((y != 0).astype(np.float64), (expected != 0).astype(np.float64))]

    extra = ", normalised" * normalise + ", by sigmoids" * how.get("sigmoid", 0)
    extra += f", bias {bias.value}" if bias else ""
    if "groups" in how:
        extra += f", {how['taken_groups']} of {how['groups']} groups by {how['group_best']}"
    extra += f", {words}" * bool(words) + ", factors" * bool(factors)
    dtype = factors or bias or F32
    return Case("choose_branches", dtype.value, f"T {T}, E {E}, {top_k} taken{extra}", EXACT, run)


def alike(rng, T, E, taken):
    """All tokens take the same branches, the last ones."""
    y = np.zeros((T, E), np.float32)
    y[:, E - taken :] = rng.uniform(0.01, 1.0, (T, taken))
    return y


def branch_gate_up(dtype, T, E, taken, D, F, choice=chosen, gelu="", clipped=()):
    """Of silu; of the form of `gelu`; or `clipped`, with biases of gate and up of these types."""
    kernel = "branch_gate_up" + "_gelu" * bool(gelu) + "_clipped" * bool(clipped)

    def run(rng):
        x, weights, y = random(rng, T, D), choice(rng, T, E, taken), empty(T, taken, F)
        both = [weight(rng, (F, D), dtype) for _ in range(2 * E)]
        biases = [weight(rng, (E, F), kind, scale=0.5) for kind in clipped]
        how = {"form": kernels.GELU_FORMS.index(gelu)} if gelu else {}
        if clipped:
            how = {"alpha": ALPHA, "limit": LIMIT, **biases[0].operand("gate_bias"), **biases[1].operand("up_bias")}
        sizes = {"T": T, "E": E, "taken": taken, "D": D, "F": F, "dtype": kernels.dtype_number(dtype)}
        call(kernel, tokens(T), x=x, weights=weights, branches=table_of(both), y=y, **sizes, **how)
        expected = np.zeros((T, taken, F))
        for t, place, e in pairs_of(weights):
            gate, up = (x[t].astype(np.float64) @ both[i].values.T for i in (e, E + e))
            if clipped:
                met = gate + biases[0].values[e], up + biases[1].values[e]
                expected[t, place] = native.clipped(*met, ALPHA, LIMIT)
            else:
                expected[t, place] = (native.gelu(gate, gelu) if gelu else native.silu(gate)) * up
        return [(y, expected)]

    shape = shape_of_branches(T, E, taken, D, F, choice) + f", {gelu}" * bool(gelu)
    shape += f", biases {', '.join(t.value for t in clipped)}" * bool(clipped)
    return Case(kernel, dtype.value, shape, bound(dtype, T), run)


def branch_down(kernel, dtype, T, E, taken, D, F, choice=chosen):
    def run(rng):
        x, weights, y, residual = random(rng, T, taken, F), choice(rng, T, E, taken), empty(T, D), random(rng, T, D)
        downs = [weight(rng, (D, F), dtype) for _ in range(E)]
        sizes = {"T": T, "E": E, "taken": taken, "D": D, "F": F, "dtype": kernels.dtype_number(dtype)}
        last = {"residual": residual} if kernel == "branch_down_add" else {}
        call(kernel, tokens(T), x=x, weights=weights, branches=table_of(downs), y=y, **sizes, **last)
        expected = residual.astype(np.float64) if last else np.zeros((T, D))
        for t, place, e in pairs_of(weights):
            expected[t] += weights[t, e] * (x[t, place].astype(np.float64) @ downs[e].values.T)
        return [(y, expected)]

    return Case(kernel, dtype.value, shape_of_branches(T, E, taken, D, F, choice), bound(dtype, T), run)


def add_branch_bias(dtype, T, E, taken, D):
    def run(rng):
        x, weights, bias, y = random(rng, T, D), chosen(rng, T, E, taken), weight(rng, (E, D), dtype), empty(T, D)
        ends = {"x": x, "weights": weights, **bias.operand("bias"), "y": y}
        call("add_branch_bias", tokens(T), **ends, T=T, E=E, D=D)
        return [(y, x + weights.astype(np.float64) @ bias.values)]

    return Case("add_branch_bias", dtype.value, f"T {T}, E {E}, {taken} taken, D {D}", EXACT, run)


def pairs_of(weights):
    return [(t, place, e) for t, row in enumerate(weights) for place, e in enumerate(np.flatnonzero(row))]


def shape_of_branches(T, E, taken, D, F, choice):
    return f"T {T}, E {E}, {taken} taken, D {D}, F {F}{', all alike' * (choice is alike)}"


QUICK = [
    *(choose_branches(T, E, k, n) for T, E, k, n in ((0, 3, 2, 0), (1, 1, 1, 1), (3, 8, 8, 0), (9, 61, 8, 1))),
    choose_branches(3, 36, 7, 1, bias=F32, sigmoid=1, groups=4, taken_groups=2, group_best=2),
    choose_branches(5, 9, 3, 1, sigmoid=1, added_sum=0.25),
    choose_branches(2, 10, 3, 0, bias=BF16, least_sum=0.0),
    choose_branches(3, 12, 4, 0, bias=F16, groups=6, taken_groups=3, group_best=1),
    choose_branches(4, 6, 3, 0, ("ties", lambda rng, T, E: rng.choice(np.array([0.0, -0.0, 1.0], np.float32), (T, E)))),
    *(branch_gate_up(t, T, 5, 2, 70, 21) for t in TYPES for T in (1, 6)),
    *(branch_gate_up(t, 3, 5, 2, 70, 21) for t in (BF16, Q4)),
    *(branch_gate_up(BF16, T, 4, 4, 33, 9, alike) for T in (0, 1, 4, 19)),
    *(branch_down("branch_down", t, T, 5, 2, 21, 70) for t in TYPES for T in (1, 6)),
    *(branch_down("branch_down_add", t, T, 5, 2, 33, 45) for t in TYPES for T in (3, 6)),
    *(branch_down("branch_down_add", BF16, T, 7, 1, 33, 9, alike) for T in (0, 1, 4, 19)),
    *(branch_gate_up(t, T, 5, 2, 70, 21, clipped=BIASES) for t in TYPES for T in (1, 6)),
    branch_gate_up(BF16, 3, 5, 2, 70, 21, clipped=(F16, BF16)),
    *(add_branch_bias(t, T, E, A, D) for t, T, E, A, D in ((F32, 0, 3, 2, 5), (BF16, 1, 5, 2, 70), (F16, 4, 9, 9, 33))),
    *(
        choose_branches(T, E, k, 1, factors=t, scale=1.0)
        for t, T, E, k in ((F32, 1, 1, 1), (BF16, 5, 12, 3), (F16, 3, 61, 8))
    ),
    *(branch_gate_up(t, T, 5, 2, 70, 21, gelu="tanh") for t in TYPES for T in (1, 6)),
    *(branch_gate_up(BF16, T, 4, 4, 33, 9, alike, "erf") for T in (3, 19)),
]
LONG = [
    *(branch_gate_up(t, T, E, A, 130, 70) for t in TYPES for T, E, A in ((2, 9, 9), (45, 6, 6), (140, 3, 2))),
    *(branch_gate_up(t, T, 9, 2, 257, 130, alike) for t in TYPES for T in (1, 4, 70)),
    *(branch_down("branch_down_add", t, T, E, A, 130, 70) for t in TYPES for T, E, A in ((2, 9, 9), (45, 6, 6))),
    *(branch_down("branch_down_add", t, 140, 3, 2, 130, 257) for t in TYPES),
    *(branch_down("branch_down", t, T, 9, 2, 70, 1100, alike) for t in TYPES for T in (1, 4, 70)),
    *(choose_branches(T, E, k, 1) for T, E, k in ((70, 128, 8), (2, 1000, 40), (3, 4096, 2))),
    *(branch_gate_up(t, T, 9, 2, 257, 130, alike, clipped=BIASES) for t in TYPES for T in (4, 70)),
    *(branch_gate_up(BF16, T, 6, 4, 130, 70, clipped=BIASES) for T in (2, 45)),
    add_branch_bias(BF16, 7, 128, 4, 2880),
    *(branch_gate_up(t, T, 9, 2, 257, 130, alike, "tanh") for t in TYPES for T in (4, 70)),
    choose_branches(7, 128, 8, 1, factors=BF16, scale=1.0),
]

"""Weights of bfloat16 that meet activations rounded to it: kernels against NumPy, on each instruction set.

Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.native import Pages, Weight, absent, call, chosen, empty, ints, linear, optional, random, weight
from tests.device.test_kernels_packed import placed

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.kernels import cpu as kernels

SIZES = [(0, 3, 5), (1, 1, 1), (1, 130, 33), (2, 33, 7), (3, 31, 64), (7, 5, 97), (16, 67, 576), (17, 4, 577),
         (23, 35, 1300), (133, 39, 96), (6, 1, 9793), (29, 45, 1700), (19, 6, 2100),
         (1, 1057, 33), (5, 1031, 33)]  # fmt: skip


class Halves(Weight):
    """A weight that meets activations of bfloat16."""

    def operand(self, name, most=None):
        return {name: self.address, f"{name}_dtype": kernels.dtype_number(self.dtype, rounded=True)}


def halves(rng, shape):
    """The last byte is the last one that may be read."""
    bits = from_f32((rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32), DType.BF16)
    w = placed(bits, DType.BF16, to_f32(bits, DType.BF16))
    return Halves(w.values, w.dtype, w.memory)


def rounded(x):
    return to_f32(from_f32(x, DType.BF16), DType.BF16)


def of_lanes(x_TK, w_NK):
    """csrc/bf16_products.h with AVX-512: a product of two bfloat16 is exact in float32, so its sum is rounded once."""
    T, N, K = len(x_TK), len(w_NK), x_TK.shape[1]
    steps = -(-K // 32)
    x, w = (np.pad(m, ((0, 0), (0, 32 * steps - K))).reshape(len(m), steps, 16, 2) for m in (x_TK, w_NK))
    lanes = np.zeros((T, N, 16), np.float32)
    for step in range(steps):
        for column in (1, 0):
            lanes += x[:, None, step, :, column] * w[None, :, step, :, column]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


@pytest.mark.parametrize(("T", "N", "K"), SIZES)
def test_linear_multiplies_activations_of_bfloat16(team, rng, T, N, K):
    x, w, b = random(rng, T, K), halves(rng, (N, K)), weight(rng, (N,), DType.F32)
    y = linear(team, x, w, b)
    expected = rounded(x).astype(np.float64) @ w.values.T + b.values
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    if T > 0 and K > 7:
        assert not np.allclose(expected, x.astype(np.float64) @ w.values.T + b.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("T", "N", "K"), SIZES)
def test_the_order_of_sums_is_the_one_that_is_said(team, rng, T, N, K):
    """AVX-512: that of bf16_products.h, with AVX512-BF16 or without; else that of weights that round nothing."""
    x, w = random(rng, T, K), halves(rng, (N, K))
    plain = Weight(w.values, w.dtype, w.memory)
    wanted = of_lanes(rounded(x), w.values) if team.isa == "avx512" else linear(team, rounded(x), plain)
    np.testing.assert_array_equal(linear(team, x, w), wanted)


@pytest.mark.parametrize(("N", "K"), [(7, 64), (40, 33), (130, 576), (37, 1200), (1, 9793)])
def test_a_token_has_the_same_bits_alone_among_others_and_for_any_team(rng, N, K):
    x, w = random(rng, 141, K), halves(rng, (N, K))
    for isa in kernels.ISAS:
        together = linear(kernels.Team(1, isa), x, w)
        for threads in (2, 3, 8):
            np.testing.assert_array_equal(linear(kernels.Team(threads, isa), x, w), together)
        team = kernels.Team(2, isa)
        for first, last in [(0, 1), (1, 3), (3, 6), (6, 10), (10, 26), (26, 43), (43, 141)]:
            part = linear(team, np.ascontiguousarray(x[first:last]), w)
            np.testing.assert_array_equal(part, together[first:last])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
@pytest.mark.parametrize("T", [3, 21])
def test_what_is_no_number_reaches_the_result(team, rng, bad, T):
    """Nor is what bfloat16 has no number for: 3.4e38 is rounded to infinity."""
    x, w = random(rng, T, 300), halves(rng, (5, 300))
    x[1, 290] = bad
    y = linear(team, x, w)
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(np.delete(y, 1, axis=0)).all()


def norm(team, x, w):
    y = empty(*x.shape)
    call(team, "rms_norm", x=x, **w.operand("weight"), y=y, T=len(x), per_token=1, C=x.shape[1], eps=1e-5)
    return y


@pytest.mark.parametrize("T", [0, 1, 2, 5, 16, 19, 140])
@pytest.mark.parametrize("other", [True, False], ids=["both", "gate alone"])
def test_fused_products_are_their_parts(team, rng, T, other):
    """The bits of a norm, then linear; a weight beside that meets activations as they are does so still."""
    D, F = 77, 67
    x, scale, residual = random(rng, T, D), weight(rng, (D,), DType.F32, center=1.0), random(rng, T, F)
    gate, up = halves(rng, (F, D)), halves(rng, (F, D)) if other else weight(rng, (F, D), DType.BF16)
    n, y, gated = norm(team, x, scale), empty(T, F), empty(T, F)
    sizes, first = {"T": T, "D": D, "eps": 1e-5}, {"x": x, "y": y, **scale.operand("norm")}
    weights = {**gate.operand("gate"), **up.operand("up"), **absent("gate_bias"), **absent("up_bias")}
    call(team, "norm_gate_up_silu_mul", **first, **sizes, F=F, **weights)
    g, u = linear(team, n, gate), linear(team, n, up)
    call(team, "silu", x=g, y=gated, T=T, N=F)
    np.testing.assert_array_equal(y, gated * u)
    alone = {**gate.operand("weight"), **absent("bias"), "N": F}
    call(team, "norm_linear_gelu", **first, **sizes, **alone, form=0)
    call(team, "gelu", x=g, y=gated, T=T, N=F, form=0)
    np.testing.assert_array_equal(y, gated)
    call(team, "take_norm_linear", **first, **alone, rows=ints(np.arange(T)[::-1]), eps=1e-5, R=T, D=D)
    np.testing.assert_array_equal(y, g[::-1])
    call(team, "linear_add", x=n, y=y, **alone, T=T, K=D, residual=residual)
    np.testing.assert_array_equal(y, residual + g)


@pytest.mark.parametrize("T", [1, 3, 19])
def test_norm_qkv_rope_append_is_its_parts(team, rng, T):
    D, H, K, C = 77, 4, 2, 10
    x, scale = random(rng, T, D), weight(rng, (D,), DType.F32, center=1.0)
    wq, wk, wv = halves(rng, (H * C, D)), halves(rng, (K * C, D)), weight(rng, (K * C, D), DType.BF16)
    positions, sequence = ints(np.arange(T)), ints(np.zeros(T))
    fused, parts = (Pages.make(np.random.default_rng(1), 1, T, K=K, C=C) for _ in range(2))
    inv_freq = np.array([1.0, 0.3, 0.1, 0.03, 0.01], np.float32)
    q, turned, k = empty(T, H, C), empty(T, H, C), empty(T, K, C)
    weights = {**wq.operand("wq"), **wk.operand("wk"), **wv.operand("wv"), **optional("q_norm", None), "q_eps": 0.0}
    weights |= optional("k_norm", None) | {"k_eps": 0.0} | absent("bq") | absent("bk") | absent("bv")
    sizes, where = {"T": T, "C": C}, {"positions": positions, "inv_freq": inv_freq, "scale": 1.0}
    pages = fused.operands(positions, sequence, 1)
    weights |= {**scale.operand("norm"), "eps": 1e-5, "D": D, "H": H, "K": K}
    call(team, "norm_qkv_rope_append", x=x, q=q, **weights, **sizes | where | pages)
    n = norm(team, x, scale)
    flat_q, flat_k, v = linear(team, n, wq), linear(team, n, wk), linear(team, n, wv)
    call(team, "rope", x=flat_q, y=turned, H=H, **sizes, **where)
    call(team, "rope", x=flat_k, y=k, H=K, **sizes, **where)
    call(team, "kv_append", k=k, v=v, K=K, **sizes, **parts.operands(positions, sequence, 1))
    np.testing.assert_array_equal(q, turned)
    np.testing.assert_array_equal(fused.memory, parts.memory)


@pytest.mark.parametrize(
    "shape", [(0, 3, 2, 5, 7), (1, 8, 2, 33, 50), (3, 4, 2, 16, 9), (45, 6, 6, 33, 37), (150, 4, 3, 24, 600)]
)
def test_branches_multiply_activations_of_bfloat16(team, rng, shape):
    T, E, taken, D, F = shape
    x, weights, residual = random(rng, T, D), chosen(rng, T, E, taken), random(rng, T, D)
    gates, ups, downs = ([halves(rng, size) for _ in range(E)] for size in ((F, D), (F, D), (D, F)))
    inner, y, added = empty(T, taken, F), empty(T, D), empty(T, D)
    up, down = (np.array([w.address for w in table], np.int64) for table in (gates + ups, downs))
    sizes = {"T": T, "E": E, "taken": taken, "D": D, "F": F, "weights": weights}
    sizes["dtype"] = kernels.dtype_number(DType.BF16, rounded=True)
    call(team, "branch_gate_up", x=x, branches=up, y=inner, **sizes)
    call(team, "branch_down", x=inner, branches=down, y=y, **sizes)
    call(team, "branch_down_add", x=inner, branches=down, y=added, residual=residual, **sizes)
    np.testing.assert_array_equal(added, residual + y)
    for t, row in enumerate(weights):
        summed = np.zeros((1, D), np.float32)
        for place, e in enumerate(np.flatnonzero(row)):
            g, u, gated = linear(team, x[t : t + 1], gates[e]), linear(team, x[t : t + 1], ups[e]), empty(1, F)
            call(team, "silu", x=g, y=gated, T=1, N=F)
            np.testing.assert_array_equal(inner[t, place], (gated * u)[0])
            summed += row[e] * linear(team, inner[t, place : place + 1].copy(), downs[e])
        np.testing.assert_array_equal(y[t], summed[0])


@pytest.mark.parametrize("cuts", [(0, 1), (0, 1, 3, 20), (0, 5, 5, 40)])
def test_shares_have_the_bits_of_their_own_step(team, rng, cuts):
    """Shares of one token and of many share a thread's memory."""
    T, N, K = cuts[-1], 39, 77
    x, weights, y, residual = random(rng, T, K), [halves(rng, (N, K)) for _ in cuts[1:]], empty(T, N), random(rng, T, N)
    each = np.array([w.address for w in weights], np.int64)
    operands = {**weights[0].operand("weight"), **absent("bias"), "T": T, "N": N, "K": K, "shares": len(weights)}
    parts = [linear(team, x[a:b], w) for a, b, w in zip(cuts, cuts[1:], weights, strict=False)]
    call(team, "linear_each", x=x, y=y, each=each, first=ints(cuts), **operands)
    np.testing.assert_array_equal(y, np.concatenate(parts))
    call(team, "linear_add_each", x=x, y=y, each=each, first=ints(cuts), residual=residual, **operands)
    np.testing.assert_array_equal(y, residual + np.concatenate(parts))

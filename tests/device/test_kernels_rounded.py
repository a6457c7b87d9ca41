"""Packed weights and activations rounded to int8: kernels against core.packed on odd shapes, on each instruction set.

Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device.native import absent, call, empty, ints, optional, random, rms_norm, silu, weight
from tests.device.test_kernels_packed import both, placed

from coterie.core.dtypes import PACKED, DType
from coterie.core.packed import pack, rounded, unpack
from coterie.kernels import cpu as kernels

TYPES = tuple(PACKED)
SIZES = [(0, 3, 5), (1, 1, 1), (1, 50, 33), (2, 33, 7), (3, 31, 64), (5, 70, 160), (7, 5, 97), (16, 6, 576),
         (19, 37, 129), (1, 9, 1024), (4, 5, 1100), (33, 5, 16), (23, 35, 1300), (140, 3, 96)]  # fmt: skip


@pytest.fixture(params=kernels.ISAS, scope="module")
def team(request):
    return kernels.Team(2, request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def meets_rounded(w, name):
    """A weight that rounds what it is multiplied with."""
    return {name: w.address, f"{name}_dtype": kernels.dtype_number(w.dtype, rounded=w.dtype.is_packed)}


def linear(team, x, w, bias=None):
    y = empty(len(x), len(w.values))
    operands = {"x": x, **meets_rounded(w, "weight"), **optional("bias", bias), "y": y}
    call(team, "linear", **operands, T=len(x), N=len(w.values), K=w.values.shape[1])
    return y


def close(y, expected):
    np.testing.assert_allclose(y, expected, rtol=3e-6, atol=6e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("T", "N", "K"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_linear_multiplies_rounded_activations(team, rng, dtype, T, N, K, biased):
    x, (w, _) = random(rng, T, K), both(rng, (N, K), dtype)
    b = weight(rng, (N,), DType.BF16, scale=1.0) if biased else None
    expected = rounded(x, dtype).astype(np.float64) @ w.values.T + (b.values if b else 0)
    close(linear(team, x, w, b), expected)
    if T > 0 and K > 1:  # one number is 127 steps of its own
        assert not np.allclose(expected, x.astype(np.float64) @ w.values.T + (b.values if b else 0), rtol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("N", "K"), [(7, 64), (40, 33), (37, 576), (37, 1200)])
def test_a_token_has_the_same_bits_alone_among_others_and_for_any_team(rng, dtype, N, K):
    x, (w, _) = random(rng, 41, K), both(rng, (N, K), dtype)
    for isa in kernels.ISAS:
        together = linear(kernels.Team(1, isa), x, w)
        for threads in (2, 3, 8):
            np.testing.assert_array_equal(linear(kernels.Team(threads, isa), x, w), together)
        team = kernels.Team(2, isa)
        for first, last in [(0, 1), (1, 3), (3, 6), (6, 10), (10, 26), (26, 41)]:
            part = linear(team, np.ascontiguousarray(x[first:last]), w)
            np.testing.assert_array_equal(part, together[first:last])


@pytest.mark.parametrize("dtype", TYPES)
def test_extremes_of_weights_and_activations_do_not_overflow(team, dtype):
    """All weights and activations as large as they can be, of either sign, and groups of zeros."""
    K, high, low = 320, 1.0, -1.0
    rows = np.stack([np.full(K, high), np.full(K, low), np.tile([high, low], K // 2), np.zeros(K)]).astype(np.float32)
    w, _ = both_of(rows, dtype)
    x = np.ascontiguousarray(rows * np.float32(3e20))
    close(linear(team, x, w) / 1e20, rounded(x, dtype).astype(np.float64) @ w.values.T / 1e20)


def both_of(values, dtype):
    bits = pack(values, dtype)
    return placed(bits, dtype, unpack(bits, dtype, values.shape[1])), bits


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_reaches_the_result(team, rng, dtype, bad):
    x, (w, _) = random(rng, 3, 300), both(rng, (5, 300), dtype)
    x[1, 290] = bad
    y = linear(team, x, w)
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


def test_tiny_activations_round_to_nothing(team, rng):
    w, _ = both(rng, (5, 64), DType.Q4)
    x = np.full((2, 64), 1e-42, np.float32)
    np.testing.assert_array_equal(linear(team, x, w), np.zeros((2, 5), np.float32))


@pytest.mark.parametrize("T", [1, 3, 19])
@pytest.mark.parametrize(("gate_type", "up_type"), [(DType.Q8, DType.Q8), (DType.Q4, DType.Q4), (DType.Q4, DType.Q8)])
def test_fused_regions_are_their_parts(team, rng, T, gate_type, up_type):
    """The normed tile is rounded for each type of weight; a fused region gives the bits of norm, then linear."""
    D, F = 100, 37
    x, norm = random(rng, T, D), weight(rng, (D,), DType.BF16, center=1.0, scale=0.1)
    (gate, _), (up, _) = both(rng, (F, D), gate_type), both(rng, (F, D), up_type)
    normed, y, taken = empty(T, D), empty(T, F), empty(T, F)
    call(team, "rms_norm", x=x, **norm.operand("weight"), y=normed, T=T, per_token=1, C=D, eps=1e-5)
    np.testing.assert_allclose(normed, rms_norm(x, norm.values, 1e-5), rtol=1e-5, atol=1e-5)
    weights, biases = meets_rounded(gate, "gate") | meets_rounded(up, "up"), absent("gate_bias") | absent("up_bias")
    operands = norm.operand("norm") | weights | biases
    call(team, "norm_gate_up_silu_mul", x=x, eps=1e-5, y=y, T=T, D=D, F=F, **operands)
    expected = silu(linear(team, normed, gate)) * linear(team, normed, up)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    rows = ints(np.arange(T)[::-1])
    operands = {**norm.operand("norm"), **meets_rounded(gate, "weight"), **absent("bias")}
    call(team, "take_norm_linear", x=x, rows=rows, eps=1e-5, y=taken, R=T, D=D, N=F, **operands)
    np.testing.assert_array_equal(taken, linear(team, np.ascontiguousarray(normed[::-1]), gate))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_weight_that_is_not_packed_is_not_rounded(team, rng, dtype):
    T, D, F = 5, 64, 9
    x, norm = random(rng, T, D), weight(rng, (D,), DType.F32, center=1.0, scale=0.1)
    (gate, _), up = both(rng, (F, D), dtype), weight(rng, (F, D), DType.BF16)
    y = empty(T, F)
    weights, biases = meets_rounded(gate, "gate") | up.operand("up"), absent("gate_bias") | absent("up_bias")
    call(team, "norm_gate_up_silu_mul", x=x, eps=1e-5, y=y, T=T, D=D, F=F, **norm.operand("norm"), **weights, **biases)
    n = empty(T, D)
    call(team, "rms_norm", x=x, **norm.operand("weight"), y=n, T=T, per_token=1, C=D, eps=1e-5)
    ups = empty(T, F)
    call(team, "linear", x=n, **up.operand("weight"), **absent("bias"), y=ups, T=T, N=F, K=D)
    np.testing.assert_allclose(y, silu(linear(team, n, gate)) * ups, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 300), st.integers(0, 2**32 - 1), st.sampled_from(TYPES), st.integers(-30, 30))
def test_rounding_loses_half_a_step_at_most(T, K, seed, dtype, exponent):
    x = (np.random.default_rng(seed).standard_normal((T, K)) * 2.0**exponent).astype(np.float32)
    group = PACKED[dtype][1]
    back = rounded(x, dtype)
    for first in range(0, K, group):
        part = slice(first, first + group)
        step = np.abs(x[:, part]).max(axis=1, keepdims=True) / 127
        assert (np.abs(back[:, part] - x[:, part]) <= step * 0.5001).all()
    np.testing.assert_array_equal(rounded(back, dtype)[:, :1] == 0, back[:, :1] == 0)

"""Packed weights and activations rounded to whole numbers: kernels against core.packed, on each instruction set.

Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.device.native import absent, call, empty, ints, linear, random, rms_norm, silu, weight
from tests.device.test_kernels_packed import both, placed, two_bits

from coterie.core.dtypes import BLOCK_Q6, PACKED, DType
from coterie.core.packed import MAX_ACTIVATION_Q6, MAX_INT8, MAX_INT16, MAX_SHARED, SHARED, pack, rounded, unpack
from coterie.core.six_bits import join_six
from coterie.kernels import cpu as kernels

TYPES = tuple(PACKED)
BITS = pytest.mark.parametrize("most", [MAX_INT16, MAX_INT8], ids=["int16", "int8"])
SIZES = [(0, 3, 5), (1, 1, 1), (1, 50, 33), (2, 33, 7), (3, 31, 64), (5, 70, 160), (7, 5, 97), (16, 6, 576),
         (19, 37, 129), (1, 9, 1024), (4, 5, 1100), (33, 5, 16), (23, 35, 1300), (140, 3, 96), (6, 7, 544),
         (17, 1, 9793), (29, 45, 1700), (1, 1057, 33), (5, 1031, 33)]  # fmt: skip


def exact(x, w, most):
    return rounded(x, w.dtype, most).astype(np.float64) @ w.values.T.astype(np.float64)


def steps_of(dtype, most):
    """The largest whole number of a group, and how many of these steps are lost at most."""
    if dtype is DType.Q6:
        return MAX_ACTIVATION_Q6, 0.5
    return (MAX_SHARED, 8.5) if most == MAX_INT16 and dtype in SHARED else (most, 0.5)


def close(y, expected):
    np.testing.assert_allclose(y, expected, rtol=3e-6, atol=6e-6)


def both_of(values, dtype):
    bits = pack(values, dtype)
    return placed(bits, dtype, unpack(bits, dtype, values.shape[1])), bits


@BITS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("T", "N", "K"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_linear_multiplies_rounded_activations(team, rng, dtype, most, T, N, K, biased):
    x, (w, _) = random(rng, T, K), both(rng, (N, K), dtype)
    b = weight(rng, (N,), DType.BF16, scale=1.0) if biased else None
    expected = exact(x, w, most) + (b.values if b else 0)
    close(linear(team, x, w, b, most), expected)
    if T > 0 and K > 1 and most == MAX_INT8:  # one number is 127 steps of its own
        assert not np.allclose(expected, x.astype(np.float64) @ w.values.T + (b.values if b else 0), rtol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("K", [64, 160, 576, 2048])
@pytest.mark.parametrize("center", [0.0, 3.0])
def test_sixteen_bits_lose_half_a_step_of_each_activation_at_most(team, rng, dtype, K, center):
    """Beside activations as they are: 2^-16 of the largest of a group, where bfloat16 loses up to 2^-9 of each.

    Of weights that share bytes 12 bits are left of 16, so 8 steps and a half.
    """
    most, lost_steps = steps_of(dtype, MAX_INT16)
    x, (w, _) = random(rng, 5, K) + np.float32(center), both(rng, (37, K), dtype)
    group = PACKED[dtype][1]
    padded = np.zeros((5, -(-K // group) * group))
    padded[:, :K] = np.abs(x)
    steps = np.repeat(padded.reshape(5, -1, group).max(axis=2) / most, group, axis=1)[:, :K]
    bound = ((lost_steps + 0.001) * steps) @ np.abs(w.values).T.astype(np.float64)
    lost = np.abs(linear(team, x, w) - x.astype(np.float64) @ w.values.T.astype(np.float64))
    products = np.abs(x).astype(np.float64) @ np.abs(w.values).T.astype(np.float64)
    np.testing.assert_array_less(lost, bound + K / 8 * 2.0**-24 * products)
    bfloat16 = (x.view(np.uint32) + 0x8000 & 0xFFFF0000).astype(np.uint32).view(np.float32)
    assert lost.mean() < np.abs((bfloat16 - x).astype(np.float64) @ w.values.T).mean() / (2 if dtype in SHARED else 10)


@BITS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("N", "K"), [(7, 64), (40, 33), (37, 576), (37, 1200), (70, 1700)])
def test_a_token_has_the_same_bits_alone_among_others_and_for_any_team(rng, dtype, most, N, K):
    x, (w, _) = random(rng, 41, K), both(rng, (N, K), dtype)
    for isa in kernels.ISAS:
        together = linear(kernels.Team(1, isa), x, w, most=most)
        for threads in (2, 3, 8):
            np.testing.assert_array_equal(linear(kernels.Team(threads, isa), x, w, most=most), together)
        team = kernels.Team(2, isa)
        for first, last in [(0, 1), (1, 3), (3, 6), (6, 10), (10, 26), (26, 41)]:
            part = linear(team, np.ascontiguousarray(x[first:last]), w, most=most)
            np.testing.assert_array_equal(part, together[first:last])


@BITS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("K", [160, 576])
def test_a_row_has_the_same_bits_wherever_it_lies(team, rng, dtype, most, K):
    """Four rows at once, two, or the last ones alone."""
    x, (w, _) = random(rng, 6, K), both(rng, (71, K), dtype)
    bits = w.memory.reshape(71, -1)
    for T in (1, 6):
        whole = linear(team, x[:T], w, most=most)
        for first in (1, 33, 67, 70):
            part = placed(np.ascontiguousarray(bits[first:]), dtype, w.values[first:])
            np.testing.assert_array_equal(linear(team, x[:T], part, most=most), whole[:, first:])


@BITS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("K", [320, 300])
@pytest.mark.parametrize("times", [2, 6])
def test_extremes_of_weights_and_activations_do_not_overflow(team, dtype, most, K, times):
    """All weights and activations as large as they can be, of either sign, and groups of zeros."""
    high, low = 1.0, -1.0
    rows = np.stack([np.full(K, high), np.full(K, low), np.tile([high, low], K // 2), np.zeros(K)]).astype(np.float32)
    w, _ = both_of(rows, dtype)
    x = np.ascontiguousarray(np.tile(rows, (times, 1)) * np.float32(3e20))
    close(linear(team, x, w, most=most) / 1e20, exact(x, w, most) / 1e20)


@BITS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("T", [1, 5, 19])
def test_every_whole_number_is_met_where_it_lies(team, dtype, most, T):
    """A row for each column, with all its weight there: the product of two whole numbers and two scales."""
    K = 256
    x = np.tile(np.ldexp(np.float32(1), np.arange(K) % 16 - 8), (T, 1))
    bits = pack(np.ones((K, K), np.float32), dtype)
    if dtype.has_zeros:
        bits[:, -K // 16 :] = np.full(K // 32, 0x4100, "<u2").view(np.uint8)  # all 8, so that q is what the loop says
    nothing = (0, -8) if dtype is DType.MX4 else (0,)  # codes 8 and 0, which are its zeros
    others = np.where(np.arange(K) % 32 < 16, 1, -1)  # of Q2, which has no 0; they cancel each other
    for value in {DType.Q8: range(-127, 128), DType.Q6: range(-32, 32), DType.Q2: (-3, -1, 1, 3)}.get(
        dtype, range(-8, 8)
    ):
        q = np.where(np.eye(K, dtype=bool), value, others if dtype is DType.Q2 else 0)
        if dtype is DType.Q8:
            bits[:, :K] = q.astype(np.int8).view(np.uint8)
        elif dtype is DType.Q6:
            bits = join_six(q, np.full((K, K // 16), 127), np.ones((K, 1), np.float32))
        elif dtype is DType.Q2:
            bits[:, : K // 4] = two_bits(q)
        else:
            halves = (q + 8).astype(np.uint8).reshape(K, -1, 2, 16)
            bits[:, : K // 2] = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(K, -1)
        w = placed(bits, dtype, unpack(bits, dtype, K))
        assert np.count_nonzero(w.values) == (K * K if dtype is DType.Q2 else K if value not in nothing else 0)
        np.testing.assert_allclose(linear(team, x, w, most=most), exact(x, w, most), rtol=2e-7, atol=0)


def spoil(bits, dtype, K, fault):
    """One small fault in every row of K columns."""
    one, scales = {DType.Q8: (1, K), DType.Q2: (0x40, K // 4)}.get(dtype, (0x10, K // 2))
    weight = scales - 1
    if dtype is DType.Q6:  # its first weight, and the scales of its first block
        one, weight, scales = 1, 0, min(-(-K // 64) * 48, 192)
    if fault == "last bit of a scale":
        bits[:, scales] ^= 1
    elif fault == "last bit of a weight":
        bits[:, weight] ^= one
    elif fault == "zeros exchanged":
        bits[:, -4:] = bits[:, [-2, -1, -4, -3]]
    elif fault == "scales exchanged":
        bits[:, scales : scales + 4] = bits[:, [scales + 2, scales + 3, scales, scales + 1]]
    else:
        bits[:, scales - 4 : scales] = 0 if dtype is DType.Q8 else 0x88


FAULTS = ["last bit of a scale", "last bit of a weight", "scales exchanged", "tail of zeros"]


@pytest.mark.parametrize("K", [160, 576, 1120])
@pytest.mark.parametrize(
    ("dtype", "fault"), [(dtype, fault) for dtype in TYPES for fault in FAULTS] + [(DType.Q4Z, "zeros exchanged")]
)
def test_a_small_fault_is_further_off_than_the_tolerance(team, rng, dtype, fault, K):
    x, (w, _) = random(rng, 1, K), both(rng, (40, K), dtype)
    if dtype is DType.MX4:  # its scales are powers of two, so that neighbours' are often equal
        w, _ = both_of(random(rng, 40, K) * np.where(np.arange(K) // 32 % 2, 4, 1).astype(np.float32), dtype)
    bits = w.memory.reshape(40, -1).copy()
    spoil(bits, dtype, K, fault)
    wrong, right = linear(team, x, placed(bits, dtype, w.values)), exact(x, w, MAX_INT16)
    assert (np.abs(wrong - right) > 6e-6 + 3e-6 * np.abs(right)).mean() > 0.5


@BITS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("T", [3, 21])
def test_what_is_no_number_reaches_the_result(team, rng, dtype, most, bad, T):
    x, (w, _) = random(rng, T, 300), both(rng, (5, 300), dtype)
    x[1, 290] = bad
    y = linear(team, x, w, most=most)
    assert np.isnan(y[1]).all()
    assert np.isfinite(np.delete(y, 1, axis=0)).all()


@BITS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("T", [1, 18])
def test_a_scale_that_is_no_number_stays_in_its_row(team, rng, dtype, most, T):
    x, (w, _) = random(rng, T, 160), both(rng, (9, 160), dtype)
    bits = w.memory.reshape(9, -1).copy()
    bits[3, -2:] = 0xFF
    y = linear(team, x, placed(bits, dtype, w.values), most=most)
    assert np.isnan(y[:, 3]).all()
    assert np.isfinite(np.delete(y, 3, axis=1)).all()


@BITS
@pytest.mark.parametrize("dtype", [DType.Q4, DType.Q4Z, DType.Q2])
def test_tiny_activations_round_to_nothing(team, rng, dtype, most):
    w, _ = both(rng, (5, 64), dtype)
    x = np.full((2, 64), 1e-42, np.float32)
    np.testing.assert_array_equal(linear(team, x, w, most=most), np.zeros((2, 5), np.float32))


@BITS
@pytest.mark.parametrize("T", [1, 3, 19])
@pytest.mark.parametrize(
    ("gate_type", "up_type"), [("Q8", "Q8"), ("Q4", "Q4"), ("Q4", "Q8"), ("F32", "Q4"), ("Q4Z", "Q4"), ("Q2", "Q4Z")]
)
def test_fused_regions_are_their_parts(team, rng, most, T, gate_type, up_type):
    """The normed tile is rounded for each type of weight; a fused region gives the bits of norm, then linear."""
    D, F = 100, 37
    x, norm = random(rng, T, D), weight(rng, (D,), DType.BF16, center=1.0, scale=0.1)
    gate, up = (
        weight(rng, (F, D), DType.F32) if t == "F32" else both(rng, (F, D), DType[t])[0] for t in (gate_type, up_type)
    )
    normed, y, taken = empty(T, D), empty(T, F), empty(T, F)
    call(team, "rms_norm", x=x, **norm.operand("weight"), y=normed, T=T, per_token=1, C=D, eps=1e-5)
    np.testing.assert_allclose(normed, rms_norm(x, norm.values, 1e-5), rtol=1e-5, atol=1e-5)
    weights, biases = gate.operand("gate", most) | up.operand("up", most), absent("gate_bias") | absent("up_bias")
    operands = norm.operand("norm") | weights | biases
    call(team, "norm_gate_up_silu_mul", x=x, eps=1e-5, y=y, T=T, D=D, F=F, **operands)
    expected = silu(linear(team, normed, gate, most=most)) * linear(team, normed, up, most=most)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    rows = ints(np.arange(T)[::-1])
    operands = {**norm.operand("norm"), **up.operand("weight", most), **absent("bias")}
    call(team, "take_norm_linear", x=x, rows=rows, eps=1e-5, y=taken, R=T, D=D, N=F, **operands)
    np.testing.assert_array_equal(taken, linear(team, np.ascontiguousarray(normed[::-1]), up, most=most))


@BITS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("T", [1, 5, 19])
def test_a_weight_that_is_not_packed_is_not_rounded(team, rng, dtype, most, T):
    D, F = 64, 9
    x, norm = random(rng, T, D), weight(rng, (D,), DType.F32, center=1.0, scale=0.1)
    (gate, _), up = both(rng, (F, D), dtype), weight(rng, (F, D), DType.BF16)
    y = empty(T, F)
    weights, biases = gate.operand("gate", most) | up.operand("up"), absent("gate_bias") | absent("up_bias")
    call(team, "norm_gate_up_silu_mul", x=x, eps=1e-5, y=y, T=T, D=D, F=F, **norm.operand("norm"), **weights, **biases)
    n = empty(T, D)
    call(team, "rms_norm", x=x, **norm.operand("weight"), y=n, T=T, per_token=1, C=D, eps=1e-5)
    ups = empty(T, F)
    call(team, "linear", x=n, **up.operand("weight"), **absent("bias"), y=ups, T=T, N=F, K=D)
    np.testing.assert_allclose(y, silu(linear(team, n, gate, most=most)) * ups, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
    st.sampled_from(TYPES),
    st.sampled_from((MAX_INT8, MAX_INT16)),
    st.integers(-30, 30),
)
def test_rounding_loses_half_a_step_at_most(T, K, seed, dtype, most, exponent):
    x = (np.random.default_rng(seed).standard_normal((T, K)) * 2.0**exponent).astype(np.float32)
    group = BLOCK_Q6 if dtype is DType.Q6 else PACKED[dtype][1]
    back = rounded(x, dtype, most)
    largest, lost_steps = steps_of(dtype, most)
    most_lost = (
        lost_steps + largest * 5 * 2.0**-24
    )  # steps: both factors, both products and this are rounded to float32
    for first in range(0, K, group):
        part = slice(first, first + group)
        step = np.abs(x[:, part]).max(axis=1, keepdims=True) / largest
        assert (np.abs(back[:, part] - x[:, part]) <= step * most_lost).all()
    if largest == most:
        np.testing.assert_array_equal(rounded(back, dtype, most)[:, :1] == 0, back[:, :1] == 0)


@BITS
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("T", "N", "K"),
    [(1, 5, 128), (8, 7, 320), (13, 6, 1100), (19, 3, 96), (31, 1, 64), (40, 33, 576), (25, 16, 224), (134, 47, 1800)],
)
def test_wider_vectors_have_the_bits_of_avx2(rng, dtype, most, T, N, K):
    """Rows by two, or 32 in a panel, where the CPU has products of whole numbers: each lane has the same sums."""
    if not {"avx2", "avx512"} <= set(kernels.ISAS):
        pytest.skip("this CPU has no AVX-512")
    x, (w, _) = random(rng, T, K), both(rng, (N, K), dtype)
    narrow, wide = (linear(kernels.Team(1, isa), x, w, most=most) for isa in ("avx2", "avx512"))
    np.testing.assert_array_equal(narrow.view(np.int32), wide.view(np.int32))

"""Kernels with weights where they change their way: few and many tokens, one and several blocks of columns.

Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device import native
from tests.device.native import WEIGHT_DTYPES, call, empty, ints, linear, optional, random, weight
from tests.device.test_kernels_packed import both

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels

FEW = (2, 3, 4, 5, 6, 7, 8, 15, 16)
MANY = (17, 18, 19, 22, 23, 131, 133, 270)  # tiles of each number of tokens left over, and several tiles
COLUMNS = (1, 7, 33, 575, 576, 577, 1200)  # one block of columns and several, whole vectors and not


def rms_norm(team, x, w):
    y = empty(*x.shape)
    call(team, "rms_norm", x=x, **w.operand("weight"), y=y, T=len(x), per_token=1, C=x.shape[1], eps=1e-5)
    return y


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("K", COLUMNS)
@pytest.mark.parametrize("N", [1, 2, 3, 5, 32, 39, 67])
def test_many_tokens_are_right_and_have_the_bits_of_each_alone(team, rng, dtype, N, K):
    x, w, b = random(rng, 23, K), weight(rng, (N, K), dtype), weight(rng, (N,), DType.F32)
    y = linear(team, x, w, b)
    np.testing.assert_allclose(y, x.astype(np.float64) @ w.values.T + b.values, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(y, np.concatenate([linear(team, row[None], w, b) for row in x]))


@pytest.mark.parametrize("T", FEW + MANY)
@pytest.mark.parametrize("K", [33, 1200])
def test_a_token_has_the_same_bits_among_any_number(team, rng, T, K):
    x, w = random(rng, max(MANY), K), weight(rng, (39, K), DType.BF16)
    part = x[:T].copy()
    np.testing.assert_array_equal(linear(team, part, w), linear(team, x, w)[:T])


@pytest.mark.parametrize("T", [1, 7, 19, 140])
@pytest.mark.parametrize(("N", "K"), [(39, 577), (5, 33)])
def test_linear_add_is_linear_and_add(team, rng, T, N, K):
    x, w, b, residual = (
        random(rng, T, K),
        weight(rng, (N, K), DType.BF16),
        weight(rng, (N,), DType.F16),
        random(rng, T, N),
    )
    y = empty(T, N)
    operands = {**w.operand("weight"), **b.operand("bias"), "residual": residual}
    call(team, "linear_add", x=x, y=y, T=T, N=N, K=K, **operands)
    np.testing.assert_array_equal(y, residual + linear(team, x, w, b))


@pytest.mark.parametrize("T", [1, 3, 19])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32])
def test_a_scale_multiplies_the_product_and_its_bias(team, rng, T, dtype):
    x, w, b, residual = (
        random(rng, T, 77),
        weight(rng, (130, 77), dtype),
        weight(rng, (130,), dtype),
        random(rng, T, 130),
    )
    y, factor = empty(T, 130), np.float32(0.22)
    operands = {**w.operand("weight"), **b.operand("bias"), "T": T, "N": 130, "K": 77, "scale": 0.22}
    call(team, "linear", x=x, y=y, **operands)
    np.testing.assert_array_equal(y, factor * linear(team, x, w, b))
    call(team, "linear_add", x=x, y=y, residual=residual, **operands)
    np.testing.assert_allclose(y, residual + factor * linear(team, x, w, b), rtol=0, atol=1e-6)


@pytest.mark.parametrize("N", [1, 2, 3, 4, 7, 31, 32, 65, 95, 96, 97, 98, 130, 160, 300, 767, 770, 1023, 1031, 1057])
@pytest.mark.parametrize("T", [1, 2, 3, 4, 16, 17])
def test_every_row_of_a_weight_is_met_once_wherever_it_is_read(team, rng, T, N):
    """Few tokens read a weight in several parts; what does not divide, and parts shorter than a unit, are left over.

    Units of weights with fewer rows than 768, of three parts, or 1024 are smaller (csrc/tile.h).
    """
    x, w, b = random(rng, T, 40), weight(rng, (N, 40), DType.BF16), weight(rng, (N,), DType.F32)
    team.reset_counters()
    y = linear(team, x, w, b)
    assert team.counters().stored_bytes == 4 * T * N
    np.testing.assert_allclose(y, x.astype(np.float64) @ w.values.T + b.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("T", [1, 2, 3, 7, 19, 140])
@pytest.mark.parametrize(("F", "D"), [(39, 577), (45, 33), (1, 40), (160, 40), (1057, 40)])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_norm_gate_up_silu_mul_is_its_parts(team, rng, T, F, D, dtype):
    x, norm = random(rng, T, D), weight(rng, (D,), DType.F32, center=1.0)
    gate, up = weight(rng, (F, D), DType.BF16), weight(rng, (F, D), dtype)
    gate_bias, up_bias = weight(rng, (F,), DType.F32), weight(rng, (F,), DType.BF16)
    y, gated = empty(T, F), empty(T, F)
    biases = gate_bias.operand("gate_bias") | up_bias.operand("up_bias")
    operands = {**norm.operand("norm"), **gate.operand("gate"), **up.operand("up"), **biases}
    call(team, "norm_gate_up_silu_mul", x=x, eps=1e-5, y=y, T=T, D=D, F=F, **operands)
    n = rms_norm(team, x, norm)
    g, u = linear(team, n, gate, gate_bias), linear(team, n, up, up_bias)
    call(team, "silu", x=g, y=gated, T=T, N=F)
    np.testing.assert_array_equal(y, gated * u)
    expected = native.silu(n @ gate.values.T + gate_bias.values) * (n @ up.values.T + up_bias.values)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("T", [1, 7, 19, 140])
@pytest.mark.parametrize("form", kernels.GELU_FORMS)
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32])
def test_norm_gate_up_gelu_mul_is_its_parts(team, rng, T, form, dtype):
    F, D, number = 67, 133, kernels.GELU_FORMS.index(form)
    x, norm = random(rng, T, D), weight(rng, (D,), DType.F32, center=0.0)
    gate, up = weight(rng, (F, D), DType.BF16), weight(rng, (F, D), dtype)
    n, y, gated = empty(T, D), empty(T, F), empty(T, F)
    operands = {**norm.operand("norm"), **gate.operand("gate"), **up.operand("up")}
    operands |= optional("gate_bias", None) | optional("up_bias", None) | {"eps": 1e-5, "offset": 1.0}
    call(team, "norm_gate_up_gelu_mul", x=x, y=y, T=T, D=D, F=F, form=number, **operands)
    call(team, "rms_norm", x=x, **norm.operand("weight"), y=n, T=T, per_token=1, C=D, eps=1e-5, offset=1.0)
    g, u = linear(team, n, gate), linear(team, n, up)
    call(team, "gelu", x=g, y=gated, form=number, T=T, N=F)
    np.testing.assert_array_equal(y, gated * u)
    np.testing.assert_allclose(n, native.rms_norm(x, norm.values, 1e-5, 1.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("T", [1, 7, 19, 140])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32])
def test_without_a_norm_gate_and_up_meet_the_token_as_it_is(team, rng, T, dtype):
    F, D = 67, 133
    x, gate, up = random(rng, T, D), weight(rng, (F, D), DType.BF16), weight(rng, (F, D), dtype)
    y, gated = empty(T, F), empty(T, F)
    operands = {**optional("norm", None), **gate.operand("gate"), **up.operand("up")}
    operands |= optional("gate_bias", None) | optional("up_bias", None)
    call(team, "norm_gate_up_silu_mul", x=x, eps=0.0, y=y, T=T, D=D, F=F, **operands)
    g, u = linear(team, x, gate), linear(team, x, up)
    call(team, "silu", x=g, y=gated, T=T, N=F)
    np.testing.assert_array_equal(y, gated * u)


def layer_norm(team, x, w, b):
    y = empty(*x.shape)
    sizes = {"T": len(x), "per_token": 1, "C": x.shape[1], "eps": 1e-5}
    call(team, "layer_norm", x=x, **w.operand("weight"), **optional("bias", b), y=y, **sizes)
    return y


@pytest.mark.parametrize("T", [1, 3, 7, 19, 140])
@pytest.mark.parametrize("normed", ["layer", "layer, no bias", "rms", ""])
@pytest.mark.parametrize("form", kernels.GELU_FORMS)
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32])
def test_norm_linear_gelu_is_its_parts(team, rng, T, normed, form, dtype):
    N, D, number = 67, 133, kernels.GELU_FORMS.index(form)
    x, w, b, y, gelu = random(rng, T, D), weight(rng, (N, D), dtype), weight(rng, (N,), dtype), empty(T, N), empty(T, N)
    norm = weight(rng, (D,), DType.F16, center=1.0) if normed else None
    shift = weight(rng, (D,), DType.F32) if normed == "layer" else None
    operands = optional("norm", norm) | optional("norm_bias", shift) | w.operand("weight") | b.operand("bias")
    operands |= {"centred": int(normed.startswith("layer")), "eps": 1e-5, "form": number, "T": T, "D": D, "N": N}
    team.reset_counters()
    call(team, "norm_linear_gelu", x=x, y=y, **operands)
    assert team.counters().stored_bytes == 4 * T * N
    n = rms_norm(team, x, norm) if normed == "rms" else layer_norm(team, x, norm, shift) if normed else x
    product = linear(team, n, w, b)
    call(team, "gelu", x=product, y=gelu, form=number, T=T, N=N)
    np.testing.assert_array_equal(y, gelu)


@pytest.mark.parametrize("T", [1, 7, 140])
@pytest.mark.parametrize("biased", [True, False])
def test_regions_that_begin_with_a_layer_norm_are_their_parts(team, rng, T, biased):
    F, D = 67, 133
    x, norm = random(rng, T, D), weight(rng, (D,), DType.F32, center=1.0)
    shift = weight(rng, (D,), DType.BF16) if biased else None
    gate, up = weight(rng, (F, D), DType.BF16), weight(rng, (F, D), DType.BF16)
    n, rows = layer_norm(team, x, norm, shift), ints(rng.permutation(T))
    how = norm.operand("norm") | optional("norm_bias", shift) | {"centred": 1, "eps": 1e-5, "D": D}
    y, gated, taken, added = empty(T, F), empty(T, F), empty(T, F), empty(T, D)
    weights = gate.operand("gate") | up.operand("up") | optional("gate_bias", None) | optional("up_bias", None)
    call(team, "norm_gate_up_silu_mul", x=x, y=y, T=T, F=F, **how, **weights)
    g, u = linear(team, n, gate), linear(team, n, up)
    call(team, "silu", x=g, y=gated, T=T, N=F)
    np.testing.assert_array_equal(y, gated * u)
    weights = gate.operand("weight") | optional("bias", None)
    call(team, "take_norm_linear", x=x, rows=rows, y=taken, R=T, N=F, **how, **weights)
    np.testing.assert_array_equal(taken, linear(team, np.ascontiguousarray(n[rows]), gate))
    residual = random(rng, T, D)
    call(team, "norm_add", x=x, residual=residual, y=added, T=T, **how)
    np.testing.assert_array_equal(added, residual + n)


@pytest.mark.parametrize("R", [1, 7, 19, 140])
@pytest.mark.parametrize(("N", "D"), [(39, 577), (67, 33)])
def test_take_norm_linear_is_its_parts(team, rng, R, N, D):
    x, rows = random(rng, 150, D), ints(rng.permutation(150)[:R])
    norm, w, y = weight(rng, (D,), DType.BF16, center=1.0), weight(rng, (N, D), DType.BF16), empty(R, N)
    operands = {**norm.operand("norm"), **w.operand("weight"), **optional("bias", None)}
    call(team, "take_norm_linear", x=x, eps=1e-5, rows=rows, y=y, R=R, D=D, N=N, **operands)
    wanted = linear(team, np.ascontiguousarray(rms_norm(team, x, norm)[rows]), w)
    np.testing.assert_array_equal(y, wanted)
    call(team, "take_norm_linear", x=x, eps=1e-5, rows=rows, y=y, R=R, D=D, N=N, **operands, scale=0.125)
    np.testing.assert_array_equal(y, np.float32(0.125) * wanted)


@pytest.mark.parametrize("isa", kernels.ISAS)
@pytest.mark.parametrize("T", [1, 8, 140])
def test_results_do_not_depend_on_the_number_of_threads(rng, isa, T):
    x, w = random(rng, T, 650), weight(rng, (301, 650), DType.BF16)
    first, *others = (linear(kernels.Team(threads, isa), x, w) for threads in (1, 2, 3, 5, 8))
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("T", [1, 20])
def test_values_that_are_not_numbers_stay_in_their_rows(team, rng, T):
    """Padding is multiplied with zeros, never with what lies behind a row."""
    x, w = random(rng, T, 33), weight(rng, (7, 33), DType.F32)
    w.memory.view(np.uint8)[: 33 * 4] = np.frombuffer(np.full(33, np.nan, np.float32).tobytes(), np.uint8)
    y = linear(team, x, w)
    assert np.isnan(y[:, 0]).all()
    assert np.isfinite(y[:, 1:]).all()


def in_shares(team, kernel, lengths, x, weights, **operands):
    """Rows in shares of these lengths by one instruction; weights are one for each share."""
    (T, K), N = x.shape, weights[0].values.shape[0]
    y, first = empty(T, N), ints([0, *np.cumsum(lengths)])
    each = np.array([one.address for one in weights], np.int64)
    shares = {"each": each, "first": first, "shares": len(lengths)}
    call(team, kernel, x=x, **weights[0].operand("weight"), **operands, y=y, T=T, N=N, K=K, **shares)
    return y


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (3, 0, 1, 2), (1, 19, 7), (150, 2, 1, 33)])
@pytest.mark.parametrize(("N", "K"), [(16, 77), (77, 16), (130, 3), (1, 600)])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32, DType.Q8])
def test_rows_in_shares_have_the_bits_of_each_share_alone(team, rng, lengths, N, K, dtype):
    x, residual, bias = random(rng, sum(lengths), K), random(rng, sum(lengths), N), weight(rng, (N,), DType.F32)
    made = both if dtype.is_packed else (lambda *how: (weight(*how),))
    weights = [made(rng, (N, K), dtype)[0] for _ in lengths]
    ends = np.cumsum(lengths)
    parts = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    alone = np.concatenate([linear(team, x[part], one, bias) for part, one in zip(parts, weights, strict=True)])
    team.reset_counters()
    y = in_shares(team, "linear_each", lengths, x, weights, **bias.operand("bias"))
    assert team.counters().stored_bytes == 4 * y.size
    np.testing.assert_array_equal(y, alone)
    added = in_shares(team, "linear_add_each", lengths, x, weights, **bias.operand("bias"), residual=residual)
    np.testing.assert_array_equal(added, residual + alone)


@pytest.mark.parametrize("isa", kernels.ISAS)
def test_rows_of_a_tile_are_padded_whatever_lay_there_before(rng, isa):
    """Padding meets zeros of a weight, but what is no number is none times zero too."""
    T, D, N = 19, 33, 7
    team, x, rows = kernels.Team(1, isa), random(rng, T, D), ints(np.arange(T)[::-1])
    norm, w = weight(rng, (D,), DType.BF16, center=1.0), weight(rng, (N, D), DType.BF16)
    how = {**norm.operand("norm"), "eps": 1e-5, "x": x, "D": D}
    one = how | w.operand("weight") | optional("bias", None) | {"N": N}
    two = how | w.operand("gate") | w.operand("up") | optional("gate_bias", None) | optional("up_bias", None)

    def results():
        taken, bent, gated = empty(T, N), empty(T, N), empty(T, N)
        call(team, "take_norm_linear", rows=rows, y=taken, R=T, **one)
        call(team, "norm_linear_gelu", y=bent, form=0, T=T, **one)
        call(team, "norm_gate_up_silu_mul", y=gated, T=T, F=N, **two)
        return np.stack([taken, bent, gated, linear(team, x, w)])

    wanted = results()
    assert np.isfinite(wanted).all()
    linear(team, np.full((140, 600), np.nan, np.float32), weight(rng, (N, 600), DType.F32))
    np.testing.assert_array_equal(results(), wanted)

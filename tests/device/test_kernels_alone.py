"""One token alone on packed weights, where sums of a group are scaled once: as near to float64 as float32 rounds.

Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.alone import rounding_bound
from tests.device.native import call, empty, linear, optional, random, weight
from tests.device.test_kernels_packed import PACKED, both, placed

from coterie.core.dtypes import DType
from coterie.core.packed import pack, unpack
from coterie.kernels import cpu as kernels

pytestmark = pytest.mark.skipif("avx2" not in kernels.ISAS, reason="of AVX2 alone")

ROWS = (1, 2, 3, 4, 5, 37, 66)
COLUMNS = (32, 64, 96, 128, 160, 576, 992, 1120, 2048)  # odd numbers of blocks; int8 groups that are not whole


@pytest.fixture(scope="module")
def team():
    return kernels.Team(2, "avx2")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def exact(x, values):
    return x.astype(np.float64) @ values.T.astype(np.float64)


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("K", COLUMNS)
@pytest.mark.parametrize("N", ROWS)
@pytest.mark.parametrize("center", [0.0, 3.0])
def test_a_token_alone_is_right_within_its_rounding(team, rng, dtype, N, K, center):
    x = random(rng, 1, K) + np.float32(center)
    w, _ = both(rng, (N, K), dtype)
    np.testing.assert_array_less(np.abs(linear(team, x, w) - exact(x, w.values))[0], rounding_bound(x[0], w))


def spoil(bits, dtype, K, fault):
    """One small fault in every row of K columns."""
    one, scales = (1, K) if dtype is DType.Q8 else (0x10, K // 2)
    if fault == "last bit of a scale":
        bits[:, scales] ^= 1
    elif fault == "last bit of a weight":
        bits[:, scales - 1] ^= one
    elif fault == "scales exchanged":
        bits[:, scales : scales + 4] = bits[:, [scales + 2, scales + 3, scales, scales + 1]]
    else:
        bits[:, scales - 4 : scales] = 0 if dtype is DType.Q8 else 0x88


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("K", [160, 576, 1120])
@pytest.mark.parametrize("fault", ["last bit of a scale", "last bit of a weight", "scales exchanged", "tail of zeros"])
def test_the_bound_shows_faults(team, rng, dtype, fault, K):
    x, (w, _) = random(rng, 1, K), both(rng, (40, K), dtype)
    bits = w.memory.reshape(40, -1).copy()
    spoil(bits, dtype, K, fault)
    wrong = linear(team, x, placed(bits, dtype, w.values))
    out = np.abs(wrong - exact(x, w.values))[0] > rounding_bound(x[0], w)
    assert out.mean() > 0.5


@pytest.mark.parametrize("dtype", PACKED)
def test_results_do_not_depend_on_the_number_of_threads(rng, dtype):
    x, (w, _) = random(rng, 1, 608), both(rng, (300, 608), dtype)
    first, *others = (linear(kernels.Team(threads, "avx2"), x, w) for threads in (1, 2, 3, 5, 8))
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("K", [160, 576])
def test_a_row_has_the_same_bits_wherever_it_lies(team, rng, dtype, K):
    """Four rows at once, or the last ones alone."""
    x, (w, _) = random(rng, 1, K), both(rng, (71, K), dtype)
    whole, bits = linear(team, x, w), w.memory.reshape(71, -1)
    for first in (1, 33, 67, 70):
        part = placed(np.ascontiguousarray(bits[first:]), dtype, w.values[first:])
        np.testing.assert_array_equal(linear(team, x, part), whole[:, first:])


@pytest.mark.parametrize("dtype", PACKED)
def test_every_whole_number_is_met_exactly(team, dtype):
    """A row for each column, with all its weight there: a power of two times a whole number times a scale is exact."""
    K = 256
    x = np.ldexp(np.float32(1), np.arange(K) % 16 - 8)[None]
    bits = pack(np.ones((K, K), np.float32), dtype)
    for value in range(-127, 128) if dtype is DType.Q8 else range(-8, 8):
        q = np.diag(np.full(K, value))
        if dtype is DType.Q8:
            bits[:, :K] = q.astype(np.int8).view(np.uint8)
        else:
            halves = (q + 8).astype(np.uint8).reshape(K, -1, 2, 16)
            bits[:, : K // 2] = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(K, -1)
        values = unpack(bits, dtype, K)
        assert np.count_nonzero(values) == (K if value else 0)
        np.testing.assert_array_equal(linear(team, x, placed(bits, dtype, values)), exact(x, values))


@pytest.mark.parametrize(("gate", "up"), [("Q8", "Q4"), ("Q4", "BF16"), ("F32", "Q4"), ("Q4", "Q4"), ("Q8", "F16")])
@pytest.mark.parametrize(("F", "D"), [(39, 96), (33, 576)])
def test_types_side_by_side_are_each_as_alone(team, rng, gate, up, F, D):
    x, norm = random(rng, 1, D), weight(rng, (D,), DType.F32, center=1.0)
    kinds = [DType[name] for name in (gate, up)]
    g, u = (both(rng, (F, D), kind)[0] if kind.is_packed else weight(rng, (F, D), kind) for kind in kinds)
    normed, gated, y = empty(1, D), empty(1, F), empty(1, F)
    call(team, "rms_norm", x=x, **norm.operand("weight"), y=normed, T=1, per_token=1, C=D, eps=1e-5)
    call(team, "silu", x=linear(team, normed, g), y=gated, T=1, N=F)
    biases = optional("gate_bias", None) | optional("up_bias", None)
    operands = {**norm.operand("norm"), **g.operand("gate"), **u.operand("up"), **biases}
    call(team, "norm_gate_up_silu_mul", x=x, eps=1e-5, y=y, T=1, D=D, F=F, **operands)
    np.testing.assert_array_equal(y, gated * linear(team, normed, u))


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_stays_none(team, rng, dtype, bad):
    x, (w, _) = random(rng, 1, 96), both(rng, (9, 96), dtype)
    x[0, 40] = bad
    assert not np.isfinite(linear(team, x, w)).any()


@pytest.mark.parametrize("dtype", PACKED)
def test_a_scale_that_is_no_number_stays_in_its_row(team, rng, dtype):
    x, (w, _) = random(rng, 1, 160), both(rng, (9, 160), dtype)
    bits = w.memory.reshape(9, -1).copy()
    bits[3, -2:] = 0xFF
    y = linear(team, x, placed(bits, dtype, w.values))
    assert np.isnan(y[0, 3])
    assert np.isfinite(np.delete(y, 3)).all()


@pytest.mark.parametrize("dtype", PACKED)
def test_the_last_tile_of_many_tokens_is_not_a_token_alone(team, rng, dtype):
    """13069 tokens are 99 tiles of 132 and one: the bits of float32, as for all others."""
    x, (packed, plain) = random(rng, 13069, 32), both(rng, (3, 32), dtype)
    np.testing.assert_array_equal(linear(team, x, packed), linear(team, x, plain))

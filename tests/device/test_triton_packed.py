"""Packed weights of small floats, of six bits and of two on the GPU's kernels: codes, scales, padding and neighbours.

Values on odd shapes are among triton_cases.py, and so is every kernel. Knows nothing about files.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.device import test_triton_programs as programs
from tests.device import test_triton_walk as walk
from tests.device.interpreted import WIDE, Bucket, aligned, call
from tests.device.native import Weight, empty, ints, random
from tests.device.random_expert import making
from tests.device.triton_cases import BF16, EXACT, F16, F32, MX4, Q2, Q4, Q6, Q8, bound, weight

from coterie.core.dtypes import PACKED, DType
from coterie.core.packed import packed_as_is, unpack
from coterie.core.scales import RANGES, in_bf16
from coterie.core.six_bits import join_six
from coterie.kernels.triton.tiles import ANY, TensorCoreTile

MIXED = (MX4, Q2, Q8, BF16, Q4)
WITH_SIX = (Q6, Q4, Q6, BF16, DType.Q4Z)


@pytest.fixture
def make():
    with making() as make_expert:
        yield make_expert


def whole_numbers(rng, dtype, N, K):
    """Of every kind that rows of a type may hold."""
    low, high = RANGES[dtype]
    return rng.choice(np.arange(low, high + 1, 2 if dtype is Q2 else 1), (N, K))


@pytest.mark.parametrize("dtype", [MX4, Q2])
def test_every_code_with_every_power_of_two_is_the_number_that_it_means(dtype):
    """Bit by bit, up to the largest. Scales that have no exponent are left out: interpreted, bfloat16 has none such."""
    rng, exponents = np.random.default_rng(0), np.array([*range(-126, 123, 7), 122, 123], np.float64)
    scales = np.concatenate([np.exp2(exponents), -1.5 * np.exp2(exponents), [0.0, -0.0]]).astype(np.float32)
    N, K = len(scales), 32
    codes = whole_numbers(rng, dtype, N, K)
    bits = aligned(packed_as_is(codes, in_bf16(scales[:, None]), dtype))
    y = empty(N, K)
    table = Weight(unpack(bits, dtype, K), dtype, bits)
    call("embed", Bucket(N, 1, 1, 1), tokens=ints(range(N)), **table.operand("table"), y=y, T=N, D=K, scale=1.0)
    np.testing.assert_array_equal(y, table.values)
    assert len(np.unique(codes)) == {MX4: 16, Q2: 4}[dtype]
    assert np.isfinite(y).all()
    assert (y != 0).mean() > 0.8


def test_every_number_of_six_bits_with_every_scale_is_what_it_means():
    """Bit by bit: each of 64 with each byte, and blocks' scales of either sign up to the largest."""
    N, K = 16, 1024
    q = (np.arange(K)[None] // 16 + np.arange(K)[None] % 16 * 4 + np.arange(N)[:, None]) % 64 - 32
    scales = (np.arange(N * K // 16).reshape(N, -1) % 256 - 128).astype(np.int8)
    blocks = in_bf16(np.exp2(np.linspace(-110, 110, N * 4)).astype(np.float32)).reshape(N, 4)
    bits = aligned(join_six(q, scales, np.where(np.arange(4) % 2, -blocks, blocks)))
    y, table = empty(N, K), Weight(unpack(bits, Q6, K), Q6, bits)
    call("embed", Bucket(N, 1, 1, 1), tokens=ints(range(N)), **table.operand("table"), y=y, T=N, D=K, scale=1.0)
    np.testing.assert_array_equal(y, table.values)
    assert len(np.unique(q)) == 64
    assert len(np.unique(scales)) == 256
    assert np.isfinite(y).all()


@pytest.mark.parametrize("T", [1, 3, 6])
@pytest.mark.parametrize("K", [40, 129, 300, 448, 513])
def test_each_weight_of_six_bits_meets_its_own_activation(K, T):
    """As below, at every place of a unit, in blocks of one to four units, of rows that begin at any even byte."""
    rng, N = np.random.default_rng(0), 5
    q, groups, blocks = rng.integers(-32, 32, (N, K)), -(-K // 16), -(-K // 256)
    scales = np.exp2(rng.integers(0, 7, (N, groups))).astype(np.int8)
    bits = aligned(join_six(q, scales, np.exp2(rng.integers(-9, -5, (N, blocks))).astype(np.float32)))
    w = Weight(unpack(bits, Q6, K), Q6, bits)
    for first in [*range(0, K - T + 1, 29), K - T]:
        x, y = np.eye(K, dtype=np.float32)[first : first + T].copy(), empty(T, N)
        call("linear", Bucket(T, 1, 1, 1), x=x, **w.operand("weight"), bias=0, bias_dtype=0, y=y, T=T, N=N, K=K)
        np.testing.assert_array_equal(y, w.values[:, first : first + T].T)


@pytest.mark.parametrize("T", [1, 2, 6])
def test_what_fills_the_last_unit_of_six_bits_has_no_part(T):
    """Of a last block of 44 weights: lower bits of the others, and the scale of a group that has none."""
    rng, (N, K) = np.random.default_rng(0), (5, 300)
    w, x, wanted, y = weight(rng, (N, K), Q6), random(rng, T, K), empty(T, N), empty(T, N)
    found = w.memory.copy()
    found[:, [208 + at for at in (*range(8, 16), *range(20, 32))]] |= 0xF0
    found[:, 208 + 48 + 3] = 0x7F
    other = Weight(w.values, Q6, aligned(found))
    assert (unpack(found, Q6, 320)[:, K:] != 0).any()
    np.testing.assert_array_equal(unpack(found, Q6, K), w.values)
    for one, to in ((w, wanted), (other, y)):
        call("linear", Bucket(T, 1, 1, 1), x=x, **one.operand("weight"), bias=0, bias_dtype=0, y=to, T=T, N=N, K=K)
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("T", [1, 3, 6])
@pytest.mark.parametrize("dtype", [MX4, Q2])
def test_each_weight_meets_its_own_activation(dtype, T):
    """Tokens that are 1 in one place and 0 elsewhere, powers of two as scales: a product is a weight, to the bit."""
    rng, (N, K) = np.random.default_rng(0), (5, 40)
    scales = np.exp2(rng.integers(-3, 4, (N, -(-K // PACKED[dtype][1])))).astype(np.float32)
    bits = aligned(packed_as_is(whole_numbers(rng, dtype, N, K), scales, dtype))
    w = Weight(unpack(bits, dtype, K), dtype, bits)
    for first in range(0, K - T + 1, T):
        x, y = np.eye(K, dtype=np.float32)[first : first + T].copy(), empty(T, N)
        call("linear", Bucket(T, 1, 1, 1), x=x, **w.operand("weight"), bias=0, bias_dtype=0, y=y, T=T, N=N, K=K)
        np.testing.assert_array_equal(y, w.values[:, first : first + T].T)


@pytest.mark.parametrize(("T", "most"), [(2, 2), (3, 4), (4, 4)])
@pytest.mark.parametrize("dtype", [Q8, Q6, Q4, DType.Q4Z, MX4])
def test_several_tokens_are_met_by_threads_or_as_other_weights_meet_them(dtype, T, most):
    """Both ways are right, and are two; rows of x are gathered, and what is behind the last is another's."""
    rng, (N, K) = np.random.default_rng(T), (13, 70)
    w, x, rows = weight(rng, (N, K), dtype), random(rng, T + 3, K), rng.permutation(T + 3)[:T].astype(np.int32)
    norm, found = Weight(np.ones(K, np.float32), F32, np.ones(K, np.float32)), []
    wanted = (x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True)))[rows] @ w.values.T.astype(
        np.float64
    )
    for tiles in (WIDE, replace(WIDE, packed_tokens=1)):
        memory = np.full((most, N), 7.0, np.float32)
        given = {"x": x, "rows": rows, **norm.operand("norm"), "norm_bias": 0, "norm_bias_dtype": 0, "centred": 0}
        given |= {"eps": 0.0, "offset": 0.0, "scale": 1.0, **w.operand("weight"), "bias": 0, "bias_dtype": 0}
        call("take_norm_linear", Bucket(most, 1, most, 1), tiles, **given, y=memory, R=T, D=K, N=N)
        assert np.abs(memory[:T] - wanted).max() <= bound(dtype, T) * np.abs(wanted).max()
        assert (memory[T:] == 7.0).all()
        found.append(memory)
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize(("T", "K"), [(5, 33), (7, 1100), (16, 600)])
@pytest.mark.parametrize("dtype", [BF16, Q8, Q4, DType.Q4Z, MX4])
def test_slices_of_a_batch_round_nothing_of_a_weight(dtype, T, K, rows):
    """Activations are rounded to bfloat16: such as are so already give what float64 gives. In one step, and in some."""
    rng, N = np.random.default_rng(T), 37
    w, x, residual, y = weight(rng, (N, K), dtype), in_bf16(random(rng, T, K)), random(rng, T, N), empty(T, N)
    narrow = ((ANY, TensorCoreTile(rows, 16, 256, 8, 4)),)
    ends = {"x": x, **w.operand("weight"), "bias": 0, "bias_dtype": 0, "residual": residual, "y": y}
    tiles = replace(WIDE, narrow=narrow, narrow_packed=narrow)
    call("linear_add", Bucket(16, 16, 16, 1), tiles, **ends, T=T, N=N, K=K, scale=1.0)
    expected = x.astype(np.float64) @ w.values.T + residual
    assert np.abs(y - expected).max() <= EXACT * np.abs(expected).max()


@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize("dtype", [BF16, Q4])
def test_a_step_without_rows_reads_none(dtype, most):
    """Which rows there are lies then in memory that may say anything."""
    rng, (N, K) = np.random.default_rng(0), (5, 40)
    w, norm = weight(rng, (N, K), dtype), Weight(np.ones(K, np.float32), F32, np.ones(K, np.float32))
    y, rows = np.full((most, N), 7.0, np.float32), np.full(most, 2**31 - 1, np.int32)
    given = {"x": random(rng, 1, K), "rows": rows, **norm.operand("norm"), "norm_bias": 0, "norm_bias_dtype": 0}
    given |= {"centred": 0, "eps": 0.0, "offset": 0.0, "scale": 1.0, **w.operand("weight"), "bias": 0, "bias_dtype": 0}
    call("take_norm_linear", Bucket(most, 1, most, 1), **given, y=y, R=0, D=K, N=N)
    assert (y == 7.0).all()


@pytest.mark.parametrize("T", [2, 6])
@pytest.mark.parametrize("dtype", [MX4, Q2, Q4])
def test_what_fills_the_last_block_has_no_part(dtype, T):
    """Whatever these bits are: files may have any."""
    rng, (N, K) = np.random.default_rng(0), (5, 33)
    w, x, wanted, y = weight(rng, (N, K), dtype), random(rng, T, K), empty(T, N), empty(T, N)
    found = w.memory.copy()
    first, end = ((-(-columns // 32) * 32 * PACKED[dtype][0] // 8) for columns in (32, K))
    of_block = end - first
    keep = np.zeros(of_block, np.uint8)
    keep[0] = 3 if dtype is Q2 else 15  # where weight 32 lies
    found[:, first:end] |= ~keep
    other = Weight(w.values, dtype, aligned(found))
    for one, to in ((w, wanted), (other, y)):
        call("linear", Bucket(T, 1, 1, 1), x=x, **one.operand("weight"), bias=0, bias_dtype=0, y=to, T=T, N=N, K=K)
    assert (w.memory != other.memory).any()
    np.testing.assert_array_equal(y, wanted)
    assert np.abs(y - x @ w.values.T).max() <= bound(dtype, T) * np.abs(y).max()


@pytest.mark.parametrize(
    ("shape", "dtypes"),
    [
        ("biases", MIXED),
        ("biases", WITH_SIX),
        pytest.param("branches", (Q6,), marks=pytest.mark.long),
        pytest.param("not-all-rotated", WITH_SIX, marks=pytest.mark.long),
        pytest.param("not-all-rotated", (Q2, MX4, F32), marks=pytest.mark.long),
        pytest.param("branches", (MX4,), marks=pytest.mark.long),
        pytest.param("branches", (Q2, MX4, Q4), marks=pytest.mark.long),
        pytest.param("layer-norms", MIXED, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_programs_give_the_references_values_and_the_cpus_tokens(make, shape, dtypes):
    programs.compare(make, shape, dtypes, "cache")


@pytest.mark.parametrize(
    ("shape", "dtypes", "tokens"),
    [
        ("one-head", (Q2, MX4), (1,)),
        pytest.param("biases", WITH_SIX, (3, 1), marks=pytest.mark.long),
        pytest.param("branches", (Q6,), (4, 2), marks=pytest.mark.long),
        pytest.param("biases", MIXED, (3, 1), marks=pytest.mark.long),
        pytest.param("branches", (MX4,), (4, 2, 7), marks=pytest.mark.long),
        pytest.param("branches", (Q2, MX4, F16), (4,), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_one_launch_gives_the_bits_of_many(make, shape, dtypes, tokens):
    walk.compare(make, shape, dtypes, "cache", walk.decoding(*tokens), 2)


def test_rows_of_different_types_are_never_equally_long():
    """By which kernels tell them apart, with the type of a byte."""
    for K in (1, 32, 33, 127, 128, 129, 4096, 14336):
        of_bytes = {True: (Q8, MX4), False: (Q4, DType.Q4Z, Q2)}
        for types in of_bytes.values():
            assert len({dtype.row_bytes(K) for dtype in types}) == len(types)
    assert F32.row_bytes(32) == 128

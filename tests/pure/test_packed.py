"""Weights packed in groups: the bytes, the round trip and the error."""

import re

import numpy as np
import pytest

from coterie.core.dtypes import BLOCK_WEIGHTS, DType, from_f32, to_f32
from coterie.core.packed import pack, packed_as_is, unpack
from coterie.core.six_bits import join_six, two_scales

PACKED = (DType.Q8, DType.Q6, DType.Q4, DType.Q4Z, DType.Q2)
SHAPES = [(1, 1), (2, 7), (3, 31), (3, 32), (5, 33), (4, 127), (4, 128), (2, 129), (7, 576), (3, 1000)]


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_packing_what_was_unpacked_changes_nothing(shape):
    once = pack(random(shape), DType.Q8)
    assert once.shape == (shape[0], DType.Q8.row_bytes(shape[1]))
    assert once.nbytes == DType.Q8.tensor_bytes(shape)
    values = unpack(once, DType.Q8, shape[1])
    np.testing.assert_array_equal(unpack(pack(values, DType.Q8), DType.Q8, shape[1]), values)


@pytest.mark.parametrize("shape", SHAPES)
def test_q4_loses_no_more_than_the_plain_choice_of_a_scale(shape):
    """The plain choice: the largest weight of a group becomes -8."""
    values = random(shape)
    once = pack(values, DType.Q4)
    assert once.nbytes == DType.Q4.tensor_bytes(shape)
    padded = np.zeros((shape[0], -(-shape[1] // 32) * 32), np.float32)
    padded[:, : shape[1]] = values
    groups = padded.reshape(shape[0], -1, 32)
    at = np.abs(groups).argmax(axis=-1)[..., None]
    step = to_f32(from_f32(np.take_along_axis(groups, at, -1) / -8, DType.BF16), DType.BF16)
    plain = np.clip(np.rint(groups / step), -8, 7) * step
    lost = np.sum((unpack(once, DType.Q4, shape[1]) - values) ** 2)
    assert lost <= np.sum((plain - groups) ** 2) * 1.0001


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("middle", [0.0, 2.0, -5.0])
def test_q4z_loses_no_more_than_the_plain_choice_of_a_range(shape, middle):
    """The plain choice: the codes span the range from a group's least weight to its largest."""
    values = random(shape) + np.float32(middle)
    once = pack(values, DType.Q4Z)
    assert once.shape == (shape[0], DType.Q4Z.row_bytes(shape[1]))
    assert once.nbytes == DType.Q4Z.tensor_bytes(shape)
    found, plain = unpack(once, DType.Q4Z, shape[1]), np.empty(shape, np.float32)
    for first in range(0, shape[1], 32):
        group = values[:, first : first + 32]
        least, most = group.min(axis=1, keepdims=True), group.max(axis=1, keepdims=True)
        step = np.maximum((most - least) / 15, np.float32(1e-30))
        plain[:, first : first + 32] = np.rint((group - least) / step) * step + least  # a zero of more than 8 bits
    assert np.sum((found - values) ** 2) <= np.sum((plain - values) ** 2) * 1.01 + 1e-6 * np.sum(values**2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "size", "largest", "off"), [(DType.Q8, 128, 127, 0.76), (DType.Q4, 32, 8, 2.1)])
def test_a_weight_is_off_by_about_a_step_at_most(shape, dtype, size, largest, off):
    """Of 8 bits by half of one: a step is rounded to 8 bits, so the largest weight may fall outside by a quarter."""
    values = random(shape)
    found = unpack(pack(values, dtype), dtype, shape[1])
    for first in range(0, shape[1], size):
        group = np.s_[:, first : first + size]
        steps = np.abs(values[group]).max(axis=1) / largest
        assert (np.abs(found[group] - values[group]) <= off * steps[:, None]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_q6_is_off_by_about_a_step(shape):
    values = random(shape)
    once = pack(values, DType.Q6)
    assert once.shape == (shape[0], DType.Q6.row_bytes(shape[1]))
    assert once.nbytes == DType.Q6.tensor_bytes(shape)
    found = unpack(once, DType.Q6, shape[1])
    for first in range(0, shape[1], 16):
        group = np.s_[:, first : first + 16]
        # A group's scale is off by half of a 127th of the block's largest, which counts 32 times.
        block = np.abs(values[:, first // 256 * 256 : first // 256 * 256 + 256]).max(axis=1)
        steps = np.abs(values[group]).max(axis=1) / 32 + block / 200
        assert (np.abs(found[group] - values[group]) <= 1.1 * steps[:, None]).all()


@pytest.mark.parametrize("K", [1, 16, 63, 64, 65, 256, 300, 576, 704, 896])
def test_whole_numbers_of_six_bits_and_their_scales_are_kept(K):
    """As they lie in a row, weight by weight; the largest and the least among them."""
    rng = np.random.default_rng(2)
    G, B, units = -(-K // 16), -(-K // 256), -(-K // 64)
    q, scales = rng.integers(-32, 32, (3, K)), rng.integers(-128, 128, (3, G))
    q[0], scales[0] = -32, -128
    blocks = np.array([[0.5], [-3.0], [0.0625]], np.float32) * np.ones((1, B), np.float32)
    packed = join_six(q, scales, blocks)
    assert packed.shape == (3, DType.Q6.row_bytes(K))
    of_weight = np.repeat(scales, 16, axis=1)[:, :K] * np.repeat(blocks, 256, axis=1)[:, :K]
    np.testing.assert_array_equal(unpack(packed, DType.Q6, K), q * of_weight)
    row = packed[1]
    for k in range(K):
        some, unit, w = min(4, units - k // 256 * 4), k % 256 // 64, k % 64
        block, half, byte = row[k // 256 * 208 :], w // 32, 16 * (w // 8 % 2) + 8 * (w // 16 % 2) + w % 8
        low = block[32 * unit + byte] >> 4 * half & 15
        high = block[32 * some + 16 * unit + byte % 16] >> (6 - 4 * half - byte // 16 * 2) & 3
        assert (high << 4 | low) == q[1, k] % 64
        assert block[48 * some + k % 256 // 16] == scales[1, k // 16] % 256
    assert row[units * 52 :].tobytes() == b"\x40\xc0" * B


def test_scales_become_eight_bits_beside_their_block_s_largest():
    whole, blocks = two_scales(np.array([[1.0, -2.0, 0.0, 127.0, *[1.0] * 12, 3.0]], np.float32))
    np.testing.assert_array_equal(whole, [[1, -2, 0, 127, *[1] * 12, 127]])
    np.testing.assert_allclose(blocks, [[1.0, 3 / 127]], rtol=2.0**-8)
    with pytest.raises(ValueError, match="1 of 2 scales are not finite numbers in bfloat16"):
        join_six(np.zeros((1, 300), np.int8), np.zeros((1, 19), np.int8), np.array([[1.0, np.inf]], np.float32))


def test_errors_over_many_weights_are_as_small_as_the_bits_allow():
    values = random((64, 1024))
    for dtype, bound in (
        (DType.Q8, 0.008),
        (DType.Q6, 0.018),
        (DType.Q4, 0.085),
        (DType.Q4Z, 0.075),
        (DType.Q2, 0.335),
    ):
        lost = unpack(pack(values, dtype), dtype, 1024) - values
        assert np.sqrt(np.mean(lost**2)) < bound


FLOATS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)  # those of four bits


@pytest.mark.parametrize("shape", SHAPES)
def test_mx4_is_the_nearest_of_its_floats_and_no_worse_than_the_plain_choice_of_a_scale(shape):
    """The plain choice, of the OCP specification: the largest power of two in a group becomes 4."""
    values = random(shape)
    once = pack(values, DType.MX4)
    assert once.shape == (shape[0], DType.MX4.row_bytes(shape[1]))
    found, plain = unpack(once, DType.MX4, shape[1]), np.empty(shape, np.float32)
    every = np.concatenate([FLOATS, -FLOATS])
    for first in range(0, shape[1], 32):
        group = np.s_[:, first : first + 32]
        scales = 2.0 ** (np.floor(np.log2(np.abs(values[group]).max(axis=1, keepdims=True))) - 2)
        apart = np.abs(values[group][..., None] / scales[..., None] - every)
        plain[group] = every[apart.argmin(axis=-1)] * scales
    assert np.sum((found - values) ** 2) <= np.sum((plain - values) ** 2) * 1.0001
    largest = np.full((1, 32), 0.01, np.float32)
    largest[0, 0] = 7.9  # which the plain choice makes 6, and twice its scale 8
    np.testing.assert_allclose(unpack(pack(largest, DType.MX4), DType.MX4, 32)[0, 0], 8.0)


@pytest.mark.parametrize("exponent", [-125, -40, 0, 100])
def test_what_is_in_mx4_stays_as_it_is(exponent):
    """Weights of others: any floats times any powers of two, a scale for each 32 of them."""
    rng = np.random.default_rng(3)
    floats = np.concatenate([FLOATS, -FLOATS])[rng.integers(0, 16, (5, 96))]
    floats[:, ::32] = 6.0 * np.sign(rng.standard_normal((5, 3)))
    values = (floats * np.repeat(2.0 ** (exponent + rng.integers(0, 9, (5, 3))), 32, axis=1)).astype(np.float32)
    np.testing.assert_array_equal(unpack(pack(values, DType.MX4), DType.MX4, 96), values)


def test_between_two_floats_of_mx4_the_even_code_is_taken():
    halves = np.array([[6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -5.0]], np.float32)
    wanted = np.array([[6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.0, -1.0, -4.0]], np.float32)
    np.testing.assert_array_equal(unpack(pack(halves, DType.MX4), DType.MX4, 11), wanted)


@pytest.mark.parametrize("value", [3e38, -3e38, 1e-45, 0.0])
def test_extremes_of_mx4_are_finite(value):
    found = unpack(pack(np.full((1, 40), value, np.float32), DType.MX4), DType.MX4, 40)
    np.testing.assert_allclose(found, value, rtol=0.2, atol=1e-38)


@pytest.mark.parametrize("dtype", PACKED)
def test_zeros_and_extremes(dtype):
    rows = np.zeros((6, 200), np.float32)
    rows[1] = 1.0
    rows[2, 5] = -3.0
    rows[3] = 3e38
    rows[4, 7] = 1e-45
    rows[5, 100:] = np.float32(2.0**-100)
    found = unpack(pack(rows, dtype), dtype, 200)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[[0]], rows[[0]])
    if dtype is not DType.Q2:  # which has no 0 beside another number
        np.testing.assert_allclose(found[[1, 2, 3, 5]], rows[[1, 2, 3, 5]], rtol=0.07, atol=2.0**-107)
    np.testing.assert_allclose(found[[1, 3]], rows[[1, 3]], rtol=2.0**-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_q2_loses_no_more_than_a_sign_and_the_mean_magnitude(shape):
    """That is the best of one bit; what comes from these levels goes back to them, an incomplete group too."""
    values = random(shape)
    once = pack(values, DType.Q2)
    assert once.shape == (shape[0], DType.Q2.row_bytes(shape[1]))
    found, signs = unpack(once, DType.Q2, shape[1]), np.empty(shape, np.float32)
    for first in range(0, shape[1], 32):
        group = values[:, first : first + 32]
        signs[:, first : first + 32] = np.sign(group) * np.abs(group).mean(axis=1, keepdims=True)
    assert np.sum((found - values) ** 2) <= np.sum((signs - values) ** 2) + 1e-4 * np.sum(values**2)
    if shape[1] >= 31:
        assert np.sum((found - values) ** 2) <= 0.15 * np.sum(values**2)
    levels = np.random.default_rng(1).choice([-3, -1, 1, 3], shape).astype(np.float32) * np.float32(0.25)
    levels[:, ::32] = np.float32(0.75)  # so that the levels of a group are those
    padded = unpack(pack(levels, DType.Q2), DType.Q2, -(-shape[1] // 32) * 32)
    np.testing.assert_allclose(padded[:, : shape[1]], levels, rtol=1e-6)
    np.testing.assert_allclose(padded[:, shape[1] :], -0.75, rtol=1e-6)  # code 0


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0123, -777.7, 3e38, 1e-30])
@pytest.mark.parametrize("K", [1, 5, 32, 71])
def test_q4z_has_groups_of_one_weight(value, K):
    """Not only of 0: a scale and a zero of 8 bits each say it to 2^-17, with 71 weights also in the last group."""
    values = np.full((2, K), value, np.float32)
    np.testing.assert_allclose(unpack(pack(values, DType.Q4Z), DType.Q4Z, K), values, rtol=2.0**-17)


def test_padding_has_no_part_in_the_choice_of_a_zero():
    values = random((4, 40)) / 8 + 5
    found = unpack(pack(values, DType.Q4Z), DType.Q4Z, 40)
    np.testing.assert_array_equal(found[:, 32:], unpack(pack(values[:, 32:], DType.Q4Z), DType.Q4Z, 8))
    np.testing.assert_allclose(found, values, atol=0.06)


@pytest.mark.parametrize(("N", "K"), [(3, 32), (5, 64), (2, 45)])
def test_codes_scales_and_zeros_of_others_are_kept(N, K):
    rng = np.random.default_rng(5)
    G = -(-K // 32)
    codes = rng.integers(0, 16, (N, K)).astype(np.int8)
    scales = to_f32(from_f32(rng.standard_normal((N, G)).astype(np.float32), DType.BF16), DType.BF16)
    zeros = rng.integers(0, 17, (N, G)).astype(np.float32)
    zeros[0, 0] = 7.34375
    packed = packed_as_is(codes, scales, DType.Q4Z, zeros)
    wanted = (codes - np.repeat(zeros, 32, axis=1)[:, :K]) * np.repeat(scales, 32, axis=1)[:, :K]
    np.testing.assert_array_equal(unpack(packed, DType.Q4Z, K), wanted)
    again = pack(wanted, DType.Q4Z, scales, zeros)  # theirs lose nothing, so they are taken
    np.testing.assert_array_equal(unpack(again, DType.Q4Z, K), wanted)


def test_what_is_no_code_scale_or_zero_is_refused():
    codes, scales = np.full((2, 64), 15), np.ones((2, 2), np.float32)
    wrong = [
        (codes + 1, scales, scales, "from 16 to 16, where 0 to 15"),
        (-codes, scales, scales, "from -15 to -15, where 0 to 15"),
        (codes, scales * np.float32(1.001), scales, "4 of 4 scales are not finite numbers in bfloat16"),
        (codes, scales, scales * np.float32(np.inf), "4 of 4 zeros are not finite numbers in bfloat16"),
        (codes, scales, None, "Q4Z was given no zeros with scales of shape (2, 2)"),
        (codes, scales, scales[:1], "Q4Z was given zeros of shape (1, 2) with scales of shape (2, 2)"),
    ]
    for q, s, z, sentence in wrong:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            packed_as_is(q, s, DType.Q4Z, z)
    with pytest.raises(ValueError, match="Q4 was given zeros"):
        packed_as_is(codes - 8, scales, DType.Q4, scales)


def test_two_bits_have_odd_numbers_alone():
    q, scales = np.array([[-3, 3, 1, -1]]), np.ones((1, 1), np.float32)
    np.testing.assert_array_equal(unpack(packed_as_is(q, scales, DType.Q2), DType.Q2, 4), q)
    for wrong, says in (
        (q[:, :1] + 1, "a whole number is even"),
        (q + 2, "go from -1 to 5, where -3 to 3 are"),
    ):
        with pytest.raises(ValueError, match=says):
            packed_as_is(wrong, scales, DType.Q2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", PACKED)
def test_what_is_no_number_is_refused(dtype, bad):
    values = random((2, 40))
    values[1, 39] = bad
    with pytest.raises(ValueError, match="not a number"):
        pack(values, dtype)


def test_the_bytes_of_a_row():
    """The layout that kernels read, put together by hand."""
    q = np.r_[np.arange(-8, 8), np.arange(7, -9, -1)].astype(np.float32)
    scale = np.float32(0.5)
    row = pack((q * scale)[None], DType.Q4)[0]
    low, high = np.arange(16), np.arange(15, -1, -1)
    np.testing.assert_array_equal(row[:16], low | high << 4)
    assert row[16:].tobytes() == b"\x00\x3f"
    codes, zeros = (q + 8).astype(np.int8), np.float32(7)
    row = packed_as_is(np.tile(codes, (1, 2)), np.full((1, 2), scale), DType.Q4Z, np.full((1, 2), zeros))[0]
    np.testing.assert_array_equal(row[:32], np.tile(low | high << 4, 2))
    assert row[32:].tobytes() == b"\x00\x3f" * 2 + b"\xe0\x40" * 2
    q2 = np.array([-3, -1, 1, 3] * 4 + [3, 3, -3, 1] * 4, np.float32)
    row = pack((q2 * scale)[None], DType.Q2)[0]
    assert list(row[:8]) == [0b11_01_11_00, 0b10_11_00_10] * 4  # weights 17, 1, 16, 0; then 19, 3, 18, 2
    assert row[8:].tobytes() == b"\x00\x3f"
    q8 = np.arange(-127, 1).astype(np.float32)
    row = pack((q8 * scale)[None], DType.Q8)[0]
    np.testing.assert_array_equal(row[:128].view(np.int8), q8)
    assert row[128:].tobytes() == b"\x00\x3f"


def test_rows_are_padded_to_blocks_and_scales_to_groups():
    assert [DType.Q8.row_bytes(k) for k in (1, 32, 33, 128, 129)] == [34, 34, 66, 130, 164]
    assert [DType.Q6.row_bytes(k) for k in (1, 64, 65, 256, 257)] == [54, 54, 106, 210, 264]
    assert [DType.Q4.row_bytes(k) for k in (1, 32, 33, 128, 129)] == [18, 18, 36, 72, 90]
    assert [DType.Q4Z.row_bytes(k) for k in (1, 32, 33, 128, 129)] == [20, 20, 40, 80, 100]
    assert [DType.Q2.row_bytes(k) for k in (1, 32, 33, 128, 129)] == [10, 10, 20, 40, 50]
    padding = pack(np.ones((1, 33), np.float32), DType.Q4)[0][16:32]
    assert BLOCK_WEIGHTS == 32
    assert (padding[1:] == 0x88).all()
    assert padding[0] >> 4 == 8


def test_a_packed_type_has_no_element_size():
    for dtype in PACKED:
        assert dtype.is_packed
        assert not dtype.is_float
        with pytest.raises(KeyError):
            _ = dtype.size_bytes

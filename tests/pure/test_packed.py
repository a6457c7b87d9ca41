"""Weights packed in groups: the bytes, the round trip and the error."""

import numpy as np
import pytest

from coterie.core.dtypes import BLOCK_WEIGHTS, DType, from_f32, to_f32
from coterie.core.packed import pack, unpack

PACKED = (DType.Q8, DType.Q4)
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
def test_q8_is_off_by_half_a_step(shape):
    values = random(shape)
    found = unpack(pack(values, DType.Q8), DType.Q8, shape[1])
    for first in range(0, shape[1], 128):
        group = np.s_[:, first : first + 128]
        steps = np.abs(values[group]).max(axis=1) / 127
        # A step is rounded to 8 bits: the largest weight may fall outside by a quarter of it.
        assert (np.abs(found[group] - values[group]) <= 0.76 * steps[:, None]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_q4_is_off_by_about_a_step_at_most(shape):
    values = random(shape)
    found = unpack(pack(values, DType.Q4), DType.Q4, shape[1])
    for first in range(0, shape[1], 32):
        group = np.s_[:, first : first + 32]
        steps = np.abs(values[group]).max(axis=1) / 8
        assert (np.abs(found[group] - values[group]) <= 2.1 * steps[:, None]).all()


def test_errors_over_many_weights_are_as_small_as_the_bits_allow():
    values = random((64, 1024))
    for dtype, bound in ((DType.Q8, 0.008), (DType.Q4, 0.085)):
        lost = unpack(pack(values, dtype), dtype, 1024) - values
        assert np.sqrt(np.mean(lost**2)) < bound


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
    np.testing.assert_allclose(found[[1, 2, 3, 5]], rows[[1, 2, 3, 5]], rtol=0.07)


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
    q8 = np.arange(-127, 1).astype(np.float32)
    row = pack((q8 * scale)[None], DType.Q8)[0]
    np.testing.assert_array_equal(row[:128].view(np.int8), q8)
    assert row[128:].tobytes() == b"\x00\x3f"


def test_rows_are_padded_to_blocks_and_scales_to_groups():
    assert [DType.Q8.row_bytes(k) for k in (1, 32, 33, 128, 129)] == [34, 34, 66, 130, 164]
    assert [DType.Q4.row_bytes(k) for k in (1, 32, 33, 128, 129)] == [18, 18, 36, 72, 90]
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

"""Packed weights as rows of a table: the very bits of the same weights as float32, on each instruction set.

What is multiplied with them is in test_kernels_whole.py. Knows nothing about devices.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.native import Weight, call, empty, ints

from coterie.core.dtypes import DType
from coterie.core.packed import pack, unpack
from coterie.core.scales import WORTH

PACKED = (DType.Q8, DType.Q4, DType.Q4Z, DType.Q2, DType.MX4)
ZEROS = np.array([7.0, 0.0, 15.0, -3.5, 8.1875, 131.0, 0.01171875, 6.0], np.float32)  # one for each 32 of 256 weights


def placed(bits: np.ndarray, dtype: DType, values: np.ndarray) -> Weight:
    """At an odd address, the last byte the last one that may be read."""
    memory = np.zeros(bits.nbytes + 1, dtype=np.uint8)
    memory[1:] = bits.view(np.uint8).reshape(-1)
    return Weight(values, dtype, memory[1:])


def both(rng, shape, dtype):
    """The same random matrix packed, and as float32."""
    bits = pack((rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32), dtype)
    values = unpack(bits, dtype, shape[1])
    return placed(bits, dtype, values), placed(values, DType.F32, values)


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize(("T", "V", "D"), [(0, 3, 5), (1, 1, 1), (5, 7, 33), (40, 300, 64), (3, 9, 200)])
def test_embed_widens_exactly(team, rng, dtype, T, V, D):
    w, _ = both(rng, (V, D), dtype)
    tokens, y = ints(rng.integers(0, V, T)), empty(T, D)
    call(team, "embed", tokens=tokens, **w.operand("table"), y=y, T=T, D=D)
    np.testing.assert_array_equal(y, w.values[tokens])
    call(team, "embed", tokens=tokens, **w.operand("table"), y=y, T=T, D=D, scale=0.3)
    np.testing.assert_array_equal(y, w.values[tokens] * np.float32(0.3))


@pytest.mark.parametrize("dtype", PACKED)
def test_every_value_is_widened_exactly(team, dtype):
    """All whole numbers of the type times scales of all sizes, from the smallest normal one."""
    K = 256
    q = np.arange(K) - 128 if dtype is DType.Q8 else np.arange(K) % 16 - 8
    q = np.arange(K) * 7 // 5 % 4 * 2 - 3 if dtype is DType.Q2 else q
    scales = np.array([2.0**e * m for e in range(-120, 120, 8) for m in (1.0, -1.9921875)], np.float32)
    table = unpack(np.zeros((len(scales), dtype.row_bytes(K)), np.uint8), dtype, K)
    bits = _row_bits(dtype, q, scales)
    values = unpack(bits, dtype, K)
    wanted = q + 8 - np.repeat(ZEROS, 32) if dtype.has_zeros else WORTH[q + 8] if dtype is DType.MX4 else q
    np.testing.assert_array_equal(values, np.asarray(wanted, np.float32) * scales[:, None])
    w, y = placed(bits, dtype, values), empty(*table.shape)
    tokens = ints(np.arange(len(scales)))
    call(team, "embed", tokens=tokens, **w.operand("table"), y=y, T=len(scales), D=K)
    np.testing.assert_array_equal(y, values)


def two_bits(q: np.ndarray) -> np.ndarray:
    """Whole numbers of Q2 [..., K], blocks of 32, as bytes, put together by hand: 4 weights that lie apart in each."""
    codes = ((q + 3) // 2).astype(np.uint8).reshape(*q.shape[:-1], -1, 32)
    i = np.arange(8)
    parts = [codes[..., at] << 2 * place for place, at in enumerate((2 * i, 16 + 2 * i, 2 * i + 1, 17 + 2 * i))]
    return (parts[0] | parts[1] | parts[2] | parts[3]).reshape(*q.shape[:-1], -1)


def _row_bits(dtype: DType, q: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Rows of the same whole numbers, one scale a row, put together by hand."""
    halves = (scales.view(np.uint32) >> 16).astype("<u2")
    if dtype is DType.Q8:
        values, groups = q.astype(np.int8).view(np.uint8), 2
    elif dtype is DType.Q2:
        values, groups = two_bits(q), 8
    else:
        pairs = (q + 8).astype(np.uint8).reshape(-1, 2, 16)
        values, groups = (pairs[:, 0] | pairs[:, 1] << 4).reshape(-1), 8
    stored = [np.repeat(values[None], len(scales), axis=0), np.repeat(halves[:, None], groups, axis=1).view(np.uint8)]
    if dtype.has_zeros:
        stored.append(np.tile((ZEROS.view(np.uint32) >> 16).astype("<u2").view(np.uint8), (len(scales), 1)))
    return np.concatenate(stored, axis=1)

"""Group-quantised weights: 8, 6, 4 or 2-bit integers with a scale per group; packing and unpacking.

    row of Q8   | q q q ... one byte each, two's complement, padded to 32 | s s ... one bfloat16 per 128 weights |
    row of Q4   | 16 bytes per 32 weights ...                             | s s ... one bfloat16 per 32 weights  |
                  byte i: weight i in the low 4 bits, weight 16 + i in the high ones, both plus 8
    row of Q4Z  | 16 bytes per 32 weights ... | s s ... one bfloat16 per 32 weights | z z ... one bfloat16 for each |
                  layout as Q4, codes 0 to 15
    row of Q2   | 8 bytes per 32 weights ...                              | s s ... one bfloat16 per 32 weights  |
                  byte i: weights 2i, 16 + 2i, 2i + 1 and 17 + 2i from the lowest bits up, each (weight + 3) / 2
    row of MX4  | layout as Q4; codes are floats: a sign, two exponent bits, one fraction bit (E2M1)
    row of Q6     see core.six_bits: an 8-bit scale per 16 weights, and a bfloat16 scale of these per 256

A weight is q * s, exactly representable in float32. For MX4, q is twice the float, hence an integer, and s half the
format's power-of-two scale. For Q4Z it is (code - z) * s, a subtraction and a multiplication in float32, which are both
exact if z is 0 or has a magnitude from 2^-5 to 2^16. Padding is zero (for Q4Z and Q2: code 0, whatever its value).
CPU kernels quantise the activations of products with packed weights to 16-bit integers in the same groups, with an
error of at most 2^-16 of the group's largest magnitude (Q4 and Q4Z: 12 bits, 2^-11.8; Q6: 15 bits, 2^-15 of the largest
of 256); optionally to 8 bits, except for Q6. Knows nothing about files or which tensors are packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import BLOCK_Q6, BLOCK_WEIGHTS, PACKED, DType, from_f32, to_f32
from coterie.core.scales import (
    MAX_Q2,
    RANGES,
    WORTH,
    codes_of,
    float_codes,
    in_bf16,
    pairs_of,
    scales_of,
    whole_of,
)
from coterie.core.six_bits import pack_six, unpack_six

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

MAX_INT8, MAX_INT16 = 127, 32767  # largest integer of quantised activations
MAX_ACTIVATION_Q6 = 16383  # limit in products with Q6, in either mode: 32 products with up to 4096 stay below 2^31
# Types with two weights per byte, and what replaces MAX_INT16 for them (see `rounded`).
SHARED, MAX_SHARED = (DType.Q4, DType.Q4Z), 30464
_PIECE_WEIGHTS = 1 << 20  # weights processed at a time, so that temporary arrays stay in cache


def pack(values_NK: F32, dtype: DType, known_NG: F32 | None = None, zeros_NG: F32 | None = None) -> U8:
    """Quantise to packed rows [N, row bytes]. Raises ValueError for values that are not finite.

    `known_NG`: scales of an earlier quantisation of these weights, tried as further candidates (for Q4Z only together
    with its zero points; ignored for Q6). Where they give the smallest error, the original integers are restored, and
    only the rounding of scales and zero points to bfloat16 is lost.
    """
    N, K = values_NK.shape
    packed = np.empty((N, dtype.row_bytes(K)), np.uint8)
    for rows in _pieces(N, K):
        known, zeros = (None if given is None else given[rows] for given in (known_NG, zeros_NG))
        packed[rows] = _pack(values_NK[rows], dtype, known, zeros)
    return packed


def unpack(packed: U8, dtype: DType, columns: int) -> F32:
    """Dequantise packed rows [N, row bytes] to float32 [N, columns]."""
    N = len(packed)
    out = np.empty((N, columns), np.float32)
    for rows in _pieces(N, columns):
        out[rows] = _unpack(packed[rows], dtype, columns)
    return out


def encode(values_NK: F32, dtype: DType, known_NG: F32 | None = None, zeros_NG: F32 | None = None) -> tuple[U8, F32]:
    """Encode rows in a packed or float type; returns bytes and decoded values. Raises ValueError as `pack` does."""
    if not dtype.is_packed:
        bits = from_f32(values_NK, dtype)
        return bits.view(np.uint8), to_f32(bits, dtype)
    packed = pack(values_NK, dtype, known_NG, zeros_NG)
    with np.errstate(over="ignore"):  # a scale that was rounded up can overflow
        return packed, unpack(packed, dtype, values_NK.shape[1])


def packed_as_is(q_NK: npt.NDArray[np.integer[Any]], scales_NG: F32, dtype: DType, zeros_NG: F32 | None = None) -> U8:
    """Pack given integers and scales losslessly into rows [N, row bytes]. Not for Q6 (see core.six_bits.join_six).

    For Q4Z and MX4 the integers are codes, 0 to 15; Q4Z needs a zero point per scale. Raises ValueError for a scale or
    zero point that is not a finite bfloat16 number, an integer out of range, and zero points that are missing or not
    applicable.
    """
    group, (low, high) = PACKED[dtype][1], RANGES[dtype]
    if dtype.has_zeros != (zeros_NG is not None) or (zeros_NG is not None and zeros_NG.shape != scales_NG.shape):
        found = "no zeros" if zeros_NG is None else f"zeros of shape {zeros_NG.shape}"
        raise ValueError(f"{dtype.value} was given {found} with scales of shape {scales_NG.shape}")
    for name, numbers in (("scales", scales_NG), ("zeros", zeros_NG)):
        if numbers is not None and (
            odd := int(np.count_nonzero((in_bf16(numbers) != numbers) | ~np.isfinite(numbers)))
        ):
            raise ValueError(f"{odd} of {numbers.size} {name} are not finite numbers in bfloat16")
    if q_NK.size and not (low <= q_NK.min() and q_NK.max() <= high):
        raise ValueError(f"whole numbers go from {q_NK.min()} to {q_NK.max()}, where {low} to {high} are possible")
    if dtype is DType.Q2 and not (q_NK % 2).all():
        raise ValueError("a whole number is even, where Q2 has odd ones alone")
    (N, K), G = q_NK.shape, scales_NG.shape[1]
    padded = np.zeros((N, G * group), np.float32)
    padded[:, :K] = q_NK
    return _joined(padded, scales_NG, zeros_NG, K, dtype)


def worth(codes: npt.NDArray[np.integer[Any]]) -> F32:
    """The values of MX4 codes, times two."""
    return np.asarray(WORTH[codes], np.float32)


def rounded(values_TK: F32, dtype: DType, max_int: int) -> F32:
    """Quantise activations as kernels do before a product with packed weights: integers up to `max_int`, by group.

    scale = largest magnitude / max_int; q = x * (max_int / largest), rounded to nearest, ties to even; the result is
    q * scale. A group with a value that is not finite becomes NaN.

    For Q4 and Q4Z, MAX_INT16 means MAX_SHARED and 12 bits: two weights share a byte, low + 16 * high, and the
    activations that they are multiplied by, x and y, are chosen so that whole bytes can be multiplied. With
    x = a + 256 b and y = 16 a + 256 c, where a, b and c have 8 bits each,

        low * x + high * y = (low + 16 * high) * a + 256 * (low * b + high * c)

    So y is rounded to a multiple of 16, and x to y / 16 plus a multiple of 16. Ties round up for y and down for x, so
    that the rounding is unbiased on average.
    """
    T, K = values_TK.shape
    group, shared = PACKED[dtype][1], max_int == MAX_INT16 and dtype in SHARED
    max_int = MAX_SHARED if shared else max_int
    if dtype is DType.Q6:
        group, max_int = BLOCK_Q6, MAX_ACTIVATION_Q6
    grouped = np.zeros((T, -(-K // group) * group), np.float32)
    grouped[:, :K] = values_TK
    grouped = grouped.reshape(T, grouped.shape[1] // group, group)
    largest = np.abs(grouped).max(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        steps = np.float32(max_int) / largest
        q = np.rint(grouped * np.where(np.isfinite(steps), steps, np.float32(0)))
        if shared:
            low, high = q[..., : group // 2], q[..., group // 2 :]
            high[:] = np.floor((high + 8) / 16) * 16
            low[:] = high / 16 + np.floor((low - high / 16 + 7) / 16) * 16
        scales = np.where(np.isfinite(largest), largest / np.float32(max_int), np.float32(np.nan))
        return np.asarray((q * scales).reshape(T, grouped.shape[1] * group)[:, :K], np.float32)


def _pieces(N: int, K: int) -> Iterator[slice]:
    step = max(1, _PIECE_WEIGHTS // K)
    return (slice(first, min(N, first + step)) for first in range(0, N, step))


def _pack(values_NK: F32, dtype: DType, known_NG: F32 | None, zeros_NG: F32 | None) -> U8:
    if not np.isfinite(values_NK).all():
        raise ValueError("a weight is infinite or not a number")
    N, K = values_NK.shape
    group = PACKED[dtype][1]
    if dtype is DType.Q6:
        return pack_six(values_NK)
    if dtype.has_zeros:
        known = None if known_NG is None or zeros_NG is None else (known_NG, zeros_NG)
        return _pack_codes(values_NK, dtype, known)
    if dtype is DType.Q2:
        return _pack_odd(values_NK, known_NG)
    G = -(-K // group)
    grouped = np.zeros((N, G * group), np.float32)
    grouped[:, :K] = values_NK
    grouped = grouped.reshape(N, G, group)
    scales = scales_of(grouped, dtype, known_NG)
    q = whole_of(grouped, scales, dtype)
    return _joined((float_codes(q) if dtype is DType.MX4 else q).reshape(N, G * group), scales, None, K, dtype)


def _pack_odd(values_NK: F32, known_NG: F32 | None) -> U8:
    """Rows of Q2. It cannot represent zero, so padding must not influence the scale of an incomplete group."""
    (N, K), group = values_NK.shape, PACKED[DType.Q2][1]
    q, scales, last = np.full((N, -(-K // group) * group), -MAX_Q2, np.float32), [], K // group * group
    for first, end in ((0, last), (last, K)):
        if first < end:
            grouped = values_NK[:, first:end].reshape(N, -1, min(group, end - first))
            known = None if known_NG is None else known_NG[:, first // group : -(-end // group)]
            scales.append(scales_of(grouped, DType.Q2, known))
            q[:, first:end] = whole_of(grouped, scales[-1], DType.Q2).reshape(N, -1)
    return _joined(q, np.concatenate(scales, axis=1), None, K, DType.Q2)


def _pack_codes(values_NK: F32, dtype: DType, known: tuple[F32, F32] | None) -> U8:
    """Rows of Q4Z. Padding does not influence the scale and zero point of an incomplete last group."""
    N, K = values_NK.shape
    group = PACKED[dtype][1]
    G, full = -(-K // group), K // group
    codes = np.zeros((N, G * group), np.float32)
    scales, zeros = (np.empty((N, G), np.float32) for _ in range(2))
    for groups, columns in ((slice(0, full), full * group), (slice(full, G), K)):
        part = slice(groups.start * group, columns)
        if part.start == columns:
            continue
        grouped = values_NK[:, part].reshape(N, groups.stop - groups.start, -1)
        pair = pairs_of(grouped, None if known is None else (known[0][:, groups], known[1][:, groups]))
        scales[:, groups], zeros[:, groups] = pair
        codes[:, part] = codes_of(grouped, pair).reshape(N, -1)
    return _joined(codes, scales, zeros, K, dtype)


def _joined(q: F32, scales: F32, zeros: F32 | None, K: int, dtype: DType) -> U8:
    """Assemble stored rows; `q` is padded to whole groups."""
    N = len(scales)
    numbers = [scales] if zeros is None else [scales, zeros]
    stored = [from_f32(part, DType.BF16).astype("<u2").view(np.uint8).reshape(N, -1) for part in numbers]
    blocks = q[:, : -(-K // BLOCK_WEIGHTS) * BLOCK_WEIGHTS]
    if dtype is DType.Q8:
        return np.concatenate([blocks.astype(np.int8).view(np.uint8), *stored], axis=1)
    if dtype is DType.Q2:
        codes = ((blocks + MAX_Q2) / 2).astype(np.uint8).reshape(N, -1, 2, BLOCK_WEIGHTS // 4, 2)
        quarters = codes[:, :, 0] | codes[:, :, 1] << 2
        return np.concatenate([(quarters[..., 0] | quarters[..., 1] << 4).reshape(N, -1), *stored], axis=1)
    low_high = (blocks - RANGES[dtype][0]).astype(np.uint8).reshape(N, -1, 2, BLOCK_WEIGHTS // 2)
    nibbles = low_high[:, :, 0] | low_high[:, :, 1] << 4
    return np.concatenate([nibbles.reshape(N, -1), *stored], axis=1)


def _unpack(packed: U8, dtype: DType, K: int) -> F32:
    if dtype is DType.Q6:
        return unpack_six(packed, K)
    N = len(packed)
    bits, group = PACKED[dtype]
    end = -(-K // BLOCK_WEIGHTS) * BLOCK_WEIGHTS * bits // 8
    stored = np.ascontiguousarray(packed[:, end:])
    numbers = to_f32(stored.view("<u2").astype(np.uint16), DType.BF16).reshape(N, -1, -(-K // group))
    blocks = np.ascontiguousarray(packed[:, :end])
    if dtype is DType.Q8:
        q = blocks.view(np.int8).astype(np.float32)
    elif dtype is DType.Q2:
        bytes_ = blocks.reshape(N, -1, 1, BLOCK_WEIGHTS // 4, 1)
        halves = np.concatenate([bytes_, bytes_ >> 2], axis=2)
        q = 2 * (np.concatenate([halves, halves >> 4], axis=4) & 3).reshape(N, -1).astype(np.float32) - MAX_Q2
    else:
        halves = blocks.reshape(N, -1, 1, BLOCK_WEIGHTS // 2)
        codes = np.concatenate([halves & 15, halves >> 4], axis=2).reshape(N, -1)
        q = worth(codes) if dtype is DType.MX4 else codes.astype(np.float32) + RANGES[dtype][0]
    of_weight = np.repeat(numbers, group, axis=2)[:, :, :K]
    if dtype.has_zeros:
        return (q[:, :K] - of_weight[:, 1]) * of_weight[:, 0]
    return q[:, :K] * of_weight[:, 0]

"""Weights packed in groups: a scale per group, whole numbers of 8 or 4 bits, and back to float32.

    row of Q8   | q q q ... one byte each, two's complement, padded to 32 | s s ... one bfloat16 per 128 weights |
    row of Q4   | 16 bytes per 32 weights ...                             | s s ... one bfloat16 per 32 weights  |
                  byte i: weight i in the low 4 bits, weight 16 + i in the high ones, both plus 8

A weight is q * s, which float32 holds exactly. Padding is zero. A CPU's kernels round the activations that meet packed
weights to whole numbers of 16 bits in the same groups, at most 2^-16 of a group's largest apart; or, by choice, of 8.
Knows nothing about files or which tensors are packed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import BLOCK_WEIGHTS, PACKED, SCALE_BYTES, DType, from_f32, to_f32

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

MAX_Q8 = 127  # of weights; -128 is left out, so that a product of magnitudes fits 15 bits
MAX_INT8, MAX_INT16 = 127, 32767  # of rounded activations
LOW_Q4, HIGH_Q4 = -8, 7
# The largest weight of a group becomes -8, or a little more or less: which of these loses least is tried out.
_TRIES_Q4 = (8.0, 8.4, 7.6, 7.2, 6.8, 6.4)
_PIECE_WEIGHTS = 1 << 20  # temporary arrays stay near the cache


def pack(values_NK: F32, dtype: DType, known_NG: F32 | None = None) -> U8:
    """Rows of packed weights [N, row bytes] nearest to these. Raises ValueError for values that are not finite.

    `known_NG`: scales of somebody who quantised these weights before, tried as well as ours. Where theirs lose least,
    the whole numbers are theirs too, and all that is lost is what a scale loses in bfloat16.
    """
    N, K = values_NK.shape
    packed = np.empty((N, dtype.row_bytes(K)), np.uint8)
    for rows in _pieces(N, K):
        packed[rows] = _pack(values_NK[rows], dtype, None if known_NG is None else known_NG[rows])
    return packed


def unpack(packed: U8, dtype: DType, columns: int) -> F32:
    """The weights of packed rows [N, row bytes] as float32 [N, columns], exactly."""
    N = len(packed)
    out = np.empty((N, columns), np.float32)
    for rows in _pieces(N, columns):
        out[rows] = _unpack(packed[rows], dtype, columns)
    return out


def packed_as_is(q_NK: npt.NDArray[np.signedinteger[Any]], scales_NG: F32, dtype: DType) -> U8:
    """Rows of packed weights [N, row bytes] of whole numbers and scales that somebody else chose: nothing is lost.

    Raises ValueError for a scale that is not a finite bfloat16 number, or a whole number out of range.
    """
    bits, group = PACKED[dtype]
    low, high = (-MAX_Q8, MAX_Q8) if bits == 8 else (LOW_Q4, HIGH_Q4)
    odd = int(np.count_nonzero((_rounded(scales_NG) != scales_NG) | ~np.isfinite(scales_NG)))
    if odd:
        raise ValueError(f"{odd} of {scales_NG.size} scales are not finite numbers in bfloat16")
    if q_NK.size and not (low <= q_NK.min() and q_NK.max() <= high):
        raise ValueError(f"whole numbers go from {q_NK.min()} to {q_NK.max()}, where {low} to {high} are possible")
    (N, K), G = q_NK.shape, scales_NG.shape[1]
    padded = np.zeros((N, G * group), np.float32)
    padded[:, :K] = q_NK
    return _joined(padded, scales_NG, K, bits)


def rounded(values_TK: F32, dtype: DType, most: int) -> F32:
    """Activations as packed weights of a type meet them: whole numbers up to `most`, in the weights' groups.

    scale = largest magnitude / most, q = the nearest whole number of x * (most / largest), ties to even: q * scale.
    A group that is not all finite becomes NaN.
    """
    T, K = values_TK.shape
    group = PACKED[dtype][1]
    grouped = np.zeros((T, -(-K // group) * group), np.float32)
    grouped[:, :K] = values_TK
    grouped = grouped.reshape(T, grouped.shape[1] // group, group)
    largest = np.abs(grouped).max(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        steps = np.float32(most) / largest
        q = np.rint(grouped * np.where(np.isfinite(steps), steps, np.float32(0)))
        scales = np.where(np.isfinite(largest), largest / np.float32(most), np.float32(np.nan))
        return np.asarray((q * scales).reshape(T, grouped.shape[1] * group)[:, :K], np.float32)


def _pieces(N: int, K: int) -> Iterator[slice]:
    step = max(1, _PIECE_WEIGHTS // K)
    return (slice(first, min(N, first + step)) for first in range(0, N, step))


def _pack(values_NK: F32, dtype: DType, known_NG: F32 | None) -> U8:
    if not np.isfinite(values_NK).all():
        raise ValueError("a weight is infinite or not a number")
    N, K = values_NK.shape
    bits, group = PACKED[dtype]
    G = -(-K // group)
    grouped = np.zeros((N, G * group), np.float32)
    grouped[:, :K] = values_NK
    grouped = grouped.reshape(N, G, group)
    scales = _scales_q8(grouped) if bits == 8 else _scales_q4(grouped)
    if known_NG is not None:
        scales = _nearest(grouped, (_rounded(known_NG), scales), bits)
    return _joined(_whole(grouped, scales, bits).reshape(N, G * group), scales, K, bits)


def _joined(q: F32, scales: F32, K: int, bits: int) -> U8:
    """Rows as they are stored; `q` is padded with zeros to whole groups."""
    N, G = scales.shape
    stored = from_f32(scales, DType.BF16).astype("<u2").view(np.uint8).reshape(N, G * SCALE_BYTES)
    blocks = q[:, : -(-K // BLOCK_WEIGHTS) * BLOCK_WEIGHTS]
    if bits == 8:
        return np.concatenate([blocks.astype(np.int8).view(np.uint8), stored], axis=1)
    low_high = (blocks - LOW_Q4).astype(np.uint8).reshape(N, -1, 2, BLOCK_WEIGHTS // 2)
    nibbles = low_high[:, :, 0] | low_high[:, :, 1] << 4
    return np.concatenate([nibbles.reshape(N, -1), stored], axis=1)


def _unpack(packed: U8, dtype: DType, K: int) -> F32:
    N = len(packed)
    bits, group = PACKED[dtype]
    G = -(-K // group)
    stored = np.ascontiguousarray(packed[:, packed.shape[1] - G * SCALE_BYTES :])
    scales = to_f32(stored.view("<u2").astype(np.uint16), DType.BF16)
    blocks = np.ascontiguousarray(packed[:, : packed.shape[1] - G * SCALE_BYTES])
    if bits == 8:
        q = blocks.view(np.int8).astype(np.float32)
    else:
        halves = blocks.reshape(N, -1, 1, BLOCK_WEIGHTS // 2)
        q = np.concatenate([halves & 15, halves >> 4], axis=2).reshape(N, -1).astype(np.float32) + LOW_Q4
    return q[:, :K] * np.repeat(scales, group, axis=1)[:, :K]


def _rounded(scales: F32) -> F32:
    """As stored: bfloat16."""
    return to_f32(from_f32(scales, DType.BF16), DType.BF16)


def _whole(grouped: F32, scales: F32, bits: int) -> F32:
    """The nearest whole numbers within range; 0 where a group's scale is 0."""
    low, high = (-MAX_Q8, MAX_Q8) if bits == 8 else (LOW_Q4, HIGH_Q4)
    with np.errstate(over="ignore"):  # of a scale near the smallest number
        inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
        q = np.rint(grouped * np.where(np.isfinite(inverse), inverse, 0)[..., None])
    return np.clip(q, low, high, out=q)


def _scales_q8(grouped: F32) -> F32:
    return _rounded(np.abs(grouped).max(axis=-1) / np.float32(MAX_Q8))


def _scales_q4(grouped: F32) -> F32:
    """The scale of least squared error among a few: the range is -8 to 7, so the largest weight's sign matters."""
    at = np.abs(grouped).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(grouped, at, axis=-1)[..., 0]
    return _nearest(grouped, (_rounded(extreme / np.float32(-steps)) for steps in _TRIES_Q4), 4)


def _nearest(grouped: F32, candidates: Iterable[F32], bits: int) -> F32:
    """Of each group the scale of least squared error, the first of equals."""
    best, least = None, np.full(grouped.shape[:-1], np.inf, np.float32)
    for scales in candidates:
        with np.errstate(all="ignore"):  # of a scale that is not finite, which is no candidate
            error = _whole(grouped, scales, bits) * scales[..., None] - grouped
            lost = np.einsum("...i,...i", error, error)
        better = lost < least
        best, least = np.where(better, scales, scales if best is None else best), np.where(better, lost, least)
    assert best is not None
    return best

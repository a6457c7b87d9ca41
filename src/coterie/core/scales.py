"""Chooses scales and zero points of weight groups, by least squared error among a few candidates.

    Q8, Q4   weight = q * scale             q an integer, -127 to 127 or -8 to 7
    Q6       weight = q * scale             q an integer, -32 to 31; the scale is rounded again (core.six_bits)
    Q2       weight = q * scale             q is -3, -1, 1 or 3
    Q4Z      weight = (code - zero) * scale   code an integer, 0 to 15
    MX4      weight = q * scale             q is +- 0, 1, 2, 3, 4, 6, 8 or 12 (twice an E2M1 float); scale a power of 2

Scales and zero points are bfloat16 numbers, held as float32. Knows nothing about how they are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import DType, from_f32, to_f32

F32: TypeAlias = npt.NDArray[np.float32]
Pair: TypeAlias = tuple[F32, F32]  # scales and zeros of groups

MAX_Q8 = 127  # -128 is not used, so that a product of magnitudes fits 15 bits
LOW_Q6, HIGH_Q6 = -32, 31
LOW_Q4, HIGH_Q4 = -8, 7
MAX_CODE = 15  # Q4Z
MAX_Q2 = 3
RANGES = {
    **{DType.Q8: (-MAX_Q8, MAX_Q8), DType.Q4: (LOW_Q4, HIGH_Q4), DType.Q4Z: (0, MAX_CODE), DType.Q2: (-MAX_Q2, MAX_Q2)},
    **{DType.MX4: (0, MAX_CODE), DType.Q6: (LOW_Q6, HIGH_Q6)},
}
_FLOATS = (0, 1, 2, 3, 4, 6, 8, 12)  # twice the magnitude of each MX4 code
WORTH = np.array([*_FLOATS, *(-q for q in _FLOATS)], np.float32)
# Boundaries between adjacent codes. Ties go to the even code: at the first kind they round up, at the second down.
_UP_FROM, _UP_BEYOND = (1.5, 3.5, 7.0), (0.5, 2.5, 5.0, 10.0)
# Candidates map a group's weight of largest magnitude to minus one of these.
_TRIES_Q4 = (8.0, 8.4, 7.6, 7.2, 6.8, 6.4)
_TRIES_Q6 = (32.0, 32.4, 31.5, 31.0, 30.0)
# Candidates: the codes initially span this share of a group's range, centred; then scale and zero point are refitted.
_TRIES_Q4Z = (1.0, 0.9, 0.8)
_FITS_Q4Z = 2
# Candidates: an initial scale of this share of a group's root mean square, then refitted to the resulting integers.
_TRIES_Q2 = (0.5, 0.4, 0.6)


def scales_of(grouped: F32, dtype: DType, known: F32 | None = None) -> F32:
    """The scale of each group [..., weights], except for Q4Z. `known`: further candidates, preferred on ties."""
    scales = _SCALES[dtype](grouped)
    return scales if known is None else _nearest(grouped, (in_bf16(known), scales), dtype)


def pairs_of(grouped: F32, known: Pair | None = None) -> Pair:
    """The scale and zero point of each group [..., weights] of Q4Z. `known`: further candidates, preferred on ties.

    A group of equal weights gets a zero point near 0 and the largest code, so that its value is represented with the
    precision of two bfloat16 numbers.
    """
    alike, powers = _alike(grouped)
    candidates = list(_pairs(alike))
    if known is not None:
        with np.errstate(all="ignore"):
            candidates.insert(0, (in_bf16(known[0]) / powers, in_bf16(known[1])))
    scales, zeros = _nearest_pair(alike, candidates)
    return in_bf16(scales * powers), zeros


def _alike(grouped: F32) -> tuple[F32, F32]:
    """Divide each group by the power of two above its largest magnitude; returns the groups and the powers.

    So squares neither overflow nor underflow. Exact except for the smallest numbers.
    """
    largest = np.abs(grouped).max(axis=-1)
    powers = np.ldexp(np.float32(1), np.clip(np.frexp(largest)[1], -126, 126)).astype(np.float32)
    return grouped / powers[..., None], powers


def whole_of(grouped: F32, scales: F32, dtype: DType) -> F32:
    """Quantise to the nearest integers of the type. If a group's scale is 0: 0 (for Q2, which has no 0, arbitrary)."""
    if dtype is DType.MX4:
        return WORTH[_codes(grouped * inverse(scales)[..., None])]
    q: F32 = np.rint(grouped * inverse(scales)[..., None])
    low, high = RANGES[dtype]
    if dtype is DType.Q2:  # odd integers only
        q = 2 * np.floor(grouped * (inverse(scales) / 2)[..., None]) + 1
    return np.clip(q, low, high, out=q)


def float_codes(q: F32) -> F32:
    """The MX4 codes of values that are representable."""
    return _codes(q).astype(np.float32)


def _codes(numbers: F32) -> npt.NDArray[np.uint8]:
    """The nearest MX4 codes; ties to even."""
    magnitude = np.abs(numbers)
    codes = np.where(np.signbit(numbers), np.uint8(8), np.uint8(0))
    for borders, passes in ((_UP_FROM, np.greater_equal), (_UP_BEYOND, np.greater)):
        for border in borders:
            codes += passes(magnitude, np.float32(border))
    return codes


def codes_of(grouped: F32, pair: Pair) -> F32:
    """The nearest Q4Z codes."""
    scales, zeros = pair
    q: F32 = np.rint(grouped * inverse(scales)[..., None] + zeros[..., None])
    return np.clip(q, 0, MAX_CODE, out=q)


def in_bf16(numbers: F32) -> F32:
    """Round to bfloat16, ties to even: as scales are stored, and as activations are rounded (graph.ops)."""
    return to_f32(from_f32(numbers, DType.BF16), DType.BF16)


def inverse(scales: F32) -> F32:
    """One over each scale; 0 where that is not finite (a scale that is 0 or denormal)."""
    with np.errstate(over="ignore"):
        inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _scales_q8(grouped: F32) -> F32:
    return in_bf16(np.abs(grouped).max(axis=-1) / np.float32(MAX_Q8))


def _of_extremes(grouped: F32, dtype: DType, tries: Iterable[float]) -> F32:
    """The best scale among candidates that map the weight of largest magnitude to a negative limit.

    With a range such as -8 to 7, its sign matters.
    """
    at = np.abs(grouped).argmax(axis=-1)[..., None]
    extreme = np.take_along_axis(grouped, at, axis=-1)[..., 0]
    return _nearest(grouped, (in_bf16(extreme / np.float32(-steps)) for steps in tries), dtype)


def _scales_q2(grouped: F32) -> F32:
    """The best scale among candidates, each refitted by least squares to the integers of its initial guess."""
    alike, powers = _alike(grouped)
    spread = np.sqrt(_squares(alike) / np.float32(grouped.shape[-1]))
    tries = (_fitted_q2(alike, spread * np.float32(part)) for part in _TRIES_Q2)
    return in_bf16(_nearest(alike, tries, DType.Q2) * powers)


def _fitted_q2(grouped: F32, scales: F32) -> F32:
    for _ in range(2):
        q = whole_of(grouped, scales, DType.Q2)
        scales = in_bf16(np.einsum("...i,...i", q, grouped) / _squares(q))
    return scales


def _scales_mx4(grouped: F32) -> F32:
    """The better of two powers of two: with one the largest weight may be clipped, with the other it is at most 8.

    0 for a group of zeros; clamped to the range of normal bfloat16 numbers.
    """
    largest = np.abs(grouped).max(axis=-1)
    exponent = np.frexp(largest)[1]  # 2 ** exponent / 2 <= largest < 2 ** exponent
    of_none = largest == 0
    tried = (np.ldexp(np.float32(1), np.clip(exponent - less, -126, 126)).astype(np.float32) for less in (4, 3))
    return _nearest(grouped, (np.where(of_none, np.float32(0), scales) for scales in tried), DType.MX4)


_SCALES: Mapping[DType, Callable[[F32], F32]] = {
    DType.Q8: _scales_q8,
    DType.Q6: partial(_of_extremes, dtype=DType.Q6, tries=_TRIES_Q6),
    DType.Q4: partial(_of_extremes, dtype=DType.Q4, tries=_TRIES_Q4),
    DType.Q2: _scales_q2,
    DType.MX4: _scales_mx4,
}


def _nearest(grouped: F32, candidates: Iterable[F32], dtype: DType) -> F32:
    """Each group's candidate with the smallest squared error; the first on ties."""
    best, least = None, np.full(grouped.shape[:-1], np.inf, np.float32)
    for scales in candidates:
        with np.errstate(all="ignore"):  # a scale that is not finite is never chosen
            lost = _squares(whole_of(grouped, scales, dtype) * scales[..., None] - grouped)
        better = lost < least
        best, least = np.where(better, scales, scales if best is None else best), np.where(better, lost, least)
    assert best is not None
    return best


def _pairs(grouped: F32) -> Iterator[Pair]:
    """Candidates for groups normalised to a largest magnitude of about 1."""
    low, high = grouped.min(axis=-1), grouped.max(axis=-1)
    mean = grouped.mean(axis=-1)
    scales = in_bf16(mean / np.float32(MAX_CODE))
    yield scales, _zeros(scales, np.float32(MAX_CODE), mean)
    for part in _TRIES_Q4Z:
        scales = in_bf16((high - low) * np.float32(part / MAX_CODE))
        pair = scales, _zeros(scales, np.float32(MAX_CODE / 2), (low + high) / 2)
        for _ in range(_FITS_Q4Z):
            pair = _fitted(grouped, mean, codes_of(grouped, pair))
        yield pair


def _zeros(scales: F32, code: F32 | np.float32, weight: F32) -> F32:
    """The zero points that map a code (one, or one per group) to this weight; 0 where the scale is 0."""
    steps = np.divide(weight, scales, out=np.zeros_like(scales), where=scales != 0)
    return np.where(scales != 0, in_bf16(code - steps), np.float32(0))


def _fitted(grouped: F32, mean: F32, codes: F32) -> Pair:
    """Scales and zero points of least squared error for given codes: a linear regression per group."""
    middle = codes.mean(axis=-1)
    apart = codes - middle[..., None]
    squares = _squares(apart)
    slope = np.einsum("...i,...i", apart, grouped)
    scales = in_bf16(np.divide(slope, squares, out=np.zeros_like(squares), where=squares != 0))
    return scales, _zeros(scales, middle, mean)


def _nearest_pair(grouped: F32, candidates: Iterable[Pair]) -> Pair:
    """Each group's candidate pair with the smallest squared error; the first on ties."""
    scales, zeros = (np.zeros(grouped.shape[:-1], np.float32) for _ in range(2))
    least = np.full(scales.shape, np.inf, np.float32)
    for pair in candidates:
        with np.errstate(all="ignore"):  # a pair that is not finite is never chosen
            lost = _squares((codes_of(grouped, pair) - pair[1][..., None]) * pair[0][..., None] - grouped)
        better = lost < least
        scales, zeros = np.where(better, pair[0], scales), np.where(better, pair[1], zeros)
        least = np.where(better, lost, least)
    return scales, zeros


def _squares(numbers: F32) -> F32:
    return np.asarray(np.einsum("...i,...i", numbers, numbers), np.float32)

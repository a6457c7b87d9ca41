"""rope: rotate pairs of each head's first channels by position * inv_freq; the other channels pass through.

A pair's two channels are in the two halves, or neighbours. x and y are [T, H, C] in float32.
Knows nothing about queries or keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, pointer, real, unit_index
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

X, POSITIONS, INV_FREQ, Y, T, SCALE = operand_words("rope", "x", "positions", "inv_freq", "y", "T", "scale")


@triton.jit
def rotation(positions, inv_freq, scale):
    """Cosine and sine of positions * inv_freq, times scale. The angle is rounded to float32, as on all devices."""
    angle = positions.to(tl.float32) * inv_freq
    return tl.cos(angle) * scale, tl.sin(angle) * scale


@triton.jit
def angles_of_pairs(
    row, INV_FREQ_AT: tl.constexpr, SCALE_AT: tl.constexpr, position, i, C: tl.constexpr, ROTATED: tl.constexpr
):
    """Cosines and sines for channel pairs i at positions; 1 and 0 for pairs that pass through."""
    inv_freq = tl.load(pointer(row, INV_FREQ_AT, tl.float32) + i, mask=i < ROTATED // 2, other=0.0)
    cosine, sine = rotation(position, inv_freq, real(row, SCALE_AT).to(tl.float32))
    if ROTATED < C:
        turns = i < ROTATED // 2
        cosine, sine = tl.where(turns, cosine, 1.0), tl.where(turns, sine, 0.0)
    return cosine, sine


@triton.jit
def pair_first(i, C: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The first channel of pair i: pairs of the ROTATED channels come first, then pairs of those that pass through."""
    first = i
    if INTERLEAVED:
        first = 2 * i
    if ROTATED > 0 and ROTATED < C:
        first = tl.where(i < ROTATED // 2, first, ROTATED // 2 + i)
    return first


@triton.jit
def pair_to_second(i, C: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Distance from a pair's first channel to its second."""
    return tl.where(i < ROTATED // 2, 1 if INTERLEAVED else ROTATED // 2, (C - ROTATED) // 2)


@triton.jit
def pair_apart(i, C: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The same, as a compile-time constant if it is equal for all pairs."""
    if ROTATED == C or ROTATED == 0:
        apart: tl.constexpr = 1 if INTERLEAVED else C // 2
    else:
        apart = pair_to_second(i, C, ROTATED, INTERLEAVED)
    return apart


@triton.jit
def rotate_pairs(a, b, cosine, sine):
    """First and second channels of pairs, rotated."""
    return a * cosine - b * sine, b * cosine + a * sine


@triton.jit
def _rope(
    row,
    H: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HALF: tl.constexpr,
    PASSING: tl.constexpr,
    HEADS: tl.constexpr,
    unit=None,
):
    """A program rotates all heads of one token."""
    t = unit_index(unit, 0)
    if t < integer(row, T):
        i = tl.arange(0, HALF)
        position = tl.load(pointer(row, POSITIONS, tl.int32) + t)
        inv_freq = tl.load(pointer(row, INV_FREQ, tl.float32) + i, mask=i < ROTATED // 2, other=0.0)
        cosine, sine = rotation(position, inv_freq, real(row, SCALE).to(tl.float32))
        h = tl.arange(0, HEADS)
        at = (t.to(tl.int64) * H + h)[:, None] * C + pair_first(i, ROTATED, ROTATED, INTERLEAVED)[None, :]
        apart: tl.constexpr = 1 if INTERLEAVED else ROTATED // 2
        mask = (h < H)[:, None] & (i < ROTATED // 2)[None, :]
        x = pointer(row, X, tl.float32)
        y = pointer(row, Y, tl.float32)
        a = tl.load(x + at, mask=mask, other=0.0)
        b = tl.load(x + at + apart, mask=mask, other=0.0)
        a, b = rotate_pairs(a, b, cosine[None, :], sine[None, :])
        tl.store(y + at, a, mask=mask)
        tl.store(y + at + apart, b, mask=mask)
        if ROTATED < C:
            c = ROTATED + tl.arange(0, PASSING)
            passes = (t.to(tl.int64) * H + h)[:, None] * C + c[None, :]
            there = (h < H)[:, None] & (c < C)[None, :]
            tl.store(y + passes, tl.load(x + passes, mask=there, other=0.0), mask=there)


def launch(call: Call) -> None:
    """A program per token, with all its heads."""
    H, C, rotated = call.integer("H"), call.integer("C"), call.integer("rotated")
    padded = {"HALF": rotated // 2, "PASSING": max(C - rotated, 1), "HEADS": H}
    padded = {name: power_of_two(count) for name, count in padded.items()}
    call.launch(
        _rope,
        (call.bucket.tokens,),
        call.row,
        H=H,
        C=C,
        ROTATED=rotated,
        **padded,
        INTERLEAVED=call.integer("interleaved"),
    )

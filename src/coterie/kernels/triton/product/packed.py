"""Weights from the bytes of packed rows (core/packed.py), in a few register operations each.

    TYPE    bytes per 32 weights
    int8    32   q * scale                                                           Q8
    uint8   16   (code - 8) * scale; with zero points, (code - zero) * scale         Q4, Q4Z
    int8    16   (twice a float: sign, 2 bits of exponent, 1 of fraction) * scale    MX4
    uint8    8   (2 * code - 3) * scale                                              Q2
    uint16  26   see six_bits.py                                                     Q6

So a row's format follows from its type and the lengths of its parts: rows of Q4Z are those of Q4 with a zero point per
group after the scales.
Knows nothing about what weights are multiplied with.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.core.dtypes import BLOCK_WEIGHTS, PACKED, SCALE_BYTES, UNIT_Q6, UNIT_Q6_BYTES, DType

# Elements per scale: 128 bytes of Q8; 16 bytes of Q4, with weight i in the lower half and 16 + i in the upper.
GROUP_Q8 = tl.constexpr(PACKED[DType.Q8][1])
GROUP_Q4 = tl.constexpr(PACKED[DType.Q4][1] // 2)
# 8 bytes of Q2, with weights 2i, 16 + 2i, 2i + 1 and 17 + 2i from the lowest bits on.
GROUP_Q2 = tl.constexpr(PACKED[DType.Q2][1] // 4)
BYTES_PER_SCALE = tl.constexpr(SCALE_BYTES)  # bytes of a scale, and of a zero point
BLOCK = tl.constexpr(BLOCK_WEIGHTS)
SIX_BITS = tl.constexpr(BLOCK_WEIGHTS * UNIT_Q6_BYTES // UNIT_Q6)  # bytes of 32 weights of Q6
# A 4-bit float placed in a float32: its sign, and the rest across exponent and fraction. The float32 is denormal where
# the small float is, and 2^-127 times twice its value in either case: one multiplication completes it.
PLACED = tl.constexpr(-(2**31) + (7 << 22))
TO_TWICE = tl.constexpr(2.0**127)
# A 2-bit code as the highest fraction bits of a float32 in [8, 16): 8, 10, 12 or 14.
EIGHT = tl.constexpr(130 << 23)


@triton.constexpr_function
def bytes_per_block(TYPE, K, COLUMNS):
    """Bytes of a row that hold 32 weights; 0 for unpacked rows."""
    if TYPE == tl.uint16:
        return SIX_BITS.value
    return COLUMNS // triton.cdiv(K, BLOCK_WEIGHTS) if TYPE in (tl.int8, tl.uint8) else 0


@triton.constexpr_function
def no_weights(TYPE):
    """A byte of two 4-bit weights that are 0 whatever their scale (but not with zero points)."""
    return 0 if TYPE == tl.int8 else 0x88


@triton.jit
def scales_of(rows_N, mask_N, first, COLUMNS: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr):
    """The scales of elements [first, first + STEP) of packed rows, [N, STEP]; each is loaded once and broadcast."""
    g = first // GROUP + tl.arange(0, STEP // GROUP)
    at = (rows_N + COLUMNS).to(tl.pointer_type(tl.bfloat16), bitcast=True)
    mask = mask_N[:, None] & (g * GROUP < COLUMNS)[None, :]
    scales = tl.load(at[:, None] + g[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.reshape(tl.broadcast_to(scales[:, :, None], [N, STEP // GROUP, GROUP]), [N, STEP])


@triton.jit
def zeros_of(rows_N, mask_N, first, COLUMNS: tl.constexpr, STRIDE: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr):
    """The zero points of elements of Q4Z rows, as scales_of has scales; None for rows without them."""
    scales: tl.constexpr = COLUMNS // GROUP_Q4 * BYTES_PER_SCALE
    zeros = None
    if STRIDE > COLUMNS + scales:
        zeros = scales_of(rows_N + scales, mask_N, first, COLUMNS, N, STEP, GROUP_Q4)
    return zeros


@triton.jit
def four_bits(codes, scale, zero):
    """Weights from codes 0 to 15; without zero points, as in Q4, code 8 is weight 0."""
    if zero is None:
        weights = (codes - 8).to(tl.float32)
    else:
        weights = codes.to(tl.float32) - zero
    return weights * scale


@triton.jit
def small_floats(placed, scale):
    """Weights of MX4; `placed` has the sign in bit 31, the other bits in 24 to 22, and anything elsewhere."""
    return (placed & PLACED).to(tl.float32, bitcast=True) * TO_TWICE * scale


@triton.jit
def low_half(both, scale, zero, TYPE: tl.constexpr):
    """Weights from the lower 4 bits of bytes, which were widened from TYPE."""
    if TYPE == tl.int8:
        weights = small_floats(both << 28 >> 6, scale)
    else:
        weights = four_bits(both & 15, scale, zero)
    return weights


@triton.jit
def high_half(both, scale, zero, TYPE: tl.constexpr):
    """Weights from the upper 4 bits of bytes. A widened int8 is sign-extended: all bits from 7 to 31 are the sign."""
    if TYPE == tl.int8:
        weights = small_floats(both << 18, scale)
    else:
        weights = four_bits(both >> 4, scale, zero)
    return weights


@triton.jit
def two_bits(codes, scale):
    """Weights of Q2 from the lowest two bits of `codes`."""
    eight_on = (codes & 3) << 21 | EIGHT
    return (eight_on.to(tl.float32, bitcast=True) - 11.0) * scale

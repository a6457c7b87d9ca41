"""Q6 rows (core/six_bits.py) on a GPU: where their parts lie, and how weights are unpacked without a conversion.

    column c     a byte with the upper bits of four weights; 16 columns for each 64 weights
    part p       of a column's four weights, p = 2 h + b: weight 64 (c // 16) + 32 h + 16 (c % 16 // 8) + 8 b + c % 8
    lower bits   half h of byte 16 b + c % 16 of the 32 bytes of those 64 weights

So eight columns are two whole groups, one for each h, and three runs of eight bytes. Blocks have 208 bytes; a row's
last block may be shorter. A weight's six bits become the fraction of a float, 1.5 + q / 64, and 1.5 is subtracted,
exactly: from each weight or, where threads add up the products of a group, from their sum.
Rows begin at any even address, so their type in a kernel has two bytes, as no other packed row's has.
Knows nothing about what weights are multiplied with.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.core.dtypes import BLOCK_Q6, UNIT_Q6, UNIT_Q6_BYTES
from coterie.kernels.triton.arithmetic import INTERPRETED

WEIGHTS = tl.constexpr(UNIT_Q6)  # per unit
OF_UNIT, OF_BLOCK = tl.constexpr(UNIT_Q6 // 4), tl.constexpr(BLOCK_Q6 // 4)  # columns
OF_GROUPS = tl.constexpr(8)  # columns that share two scales
UNITS = tl.constexpr(BLOCK_Q6 // UNIT_Q6)  # per block
UNIT_BYTES = tl.constexpr(UNIT_Q6_BYTES)
PARTS = tl.constexpr(4)
UNIT_OF_SUMS = tl.constexpr(64.0)
# In float32: the places of six bits, and what turns them into 1 + (32 + q) / 64; a scale's byte s as 2^23 + 128 + s.
LOWER, UPPER, ONE_AND_A_HALF = tl.constexpr(15 << 17), tl.constexpr(3 << 21), tl.constexpr(0x3F800000 | 1 << 22)
OF_BYTE, BYTE_BIAS = tl.constexpr(0x4B000080), tl.constexpr(2.0**23 + 128)


def _floats_of(part: int, lower: str, upper: str) -> str:
    """PTX for one part of four columns: its bits to their places within bytes, and a float from each byte."""
    lines = [lower, upper, "lop3.b32 codes, codes, 0x1E1E1E1E, 0xC0C0C0C0, 0x6A"]
    lines += ["lop3.b32 codes, upper, 0x60606060, codes, 0x6A"]
    lines += [f"prmt.b32 ${4 * part + i}, codes, 0x3F000000, 0x7{i}44" for i in range(4)]
    return "\n".join(f"{line};" for line in lines)


# Bytes of four columns in three words (upper bits, lower bits of b 0, of b 1) to the floats of part 0, then 1, 2 and 3.
SIX = tl.constexpr(
    "\n".join(
        (
            "{ .reg .b32 codes, upper;",
            _floats_of(0, "shl.b32 codes, $17, 1", "shr.u32 upper, $16, 1"),
            _floats_of(1, "shl.b32 codes, $18, 1", "shl.b32 upper, $16, 1"),
            _floats_of(2, "shr.u32 codes, $17, 3", "shl.b32 upper, $16, 3"),
            _floats_of(3, "shr.u32 codes, $18, 3", "shl.b32 upper, $16, 5"),
            "}",
        )
    )
)
FLOAT_BIAS = tl.constexpr(1.5)


@triton.constexpr_function
def align_of(STRIDE):
    """Alignment of every row in bytes, up to 16; `STRIDE` is in pairs of bytes."""
    return min(2 * STRIDE & -2 * STRIDE, 16)


@triton.constexpr_function
def _units_of(COLUMNS):
    return COLUMNS // OF_UNIT.value


@triton.constexpr_function
def _is_cut(COLUMNS):
    """Whether a row's last block is shorter than others."""
    return COLUMNS % OF_BLOCK.value != 0


@triton.jit
def _bytes_of(rows, STRIDE: tl.constexpr):
    return tl.multiple_of(rows.to(tl.pointer_type(tl.uint8), bitcast=True), align_of(STRIDE))


@triton.jit
def _offsets(c, COLUMNS: tl.constexpr):
    """Byte offsets in a row for columns c: upper bits, lower bits of parts 0 and 2, and the scale of these.

    Without remainders of quotients, where Triton would not see that the bytes are contiguous.
    """
    block, units = c // OF_BLOCK, UNITS
    if _is_cut(COLUMNS):
        units = tl.minimum(block * -UNITS + _units_of(COLUMNS), UNITS)
    first, unit = block * (UNITS * UNIT_BYTES), c // OF_UNIT
    upper = first + units * (2 * OF_UNIT) + c % OF_BLOCK
    lower = first - block * (2 * OF_BLOCK) + unit * (2 * OF_UNIT) + c % OF_UNIT
    scale = first - block * OF_UNIT + units * (3 * OF_UNIT) + unit * 2 + c // OF_GROUPS
    return upper, lower, scale


@triton.jit
def weights_at(c, PART: tl.constexpr):
    """Indices of the weights that are part PART of columns c."""
    first = c // OF_UNIT * (WEIGHTS // 2) + c // OF_GROUPS * (2 * OF_GROUPS) + c % OF_GROUPS
    return first + (PART // 2 * (WEIGHTS // 2) + PART % 2 * OF_GROUPS)


@triton.jit
def whole_scale(byte):
    """A group's scale from its byte, in units of the block's scale: exact, as is the product of both."""
    return (byte.to(tl.int32) ^ OF_BYTE).to(tl.float32, bitcast=True) - BYTE_BIAS


@triton.jit
def _block_scale_at(row, c, COLUMNS: tl.constexpr):
    """Pointers to the block scales of columns c; `row` points to bytes."""
    at = (row + _units_of(COLUMNS) * UNIT_BYTES).to(tl.pointer_type(tl.bfloat16), bitcast=True)
    return at + c // OF_BLOCK


@triton.jit
def own_bytes(
    row, there, first, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, OWN: tl.constexpr,
    EVICTION: tl.constexpr,
):  # fmt: skip
    """One step of a row: bytes of upper bits [STEP], both of lower bits, scale bytes per OWN columns, block scales."""
    row = _bytes_of(row, STRIDE)
    c = first + tl.arange(0, STEP)
    mask = there & (c < COLUMNS)
    upper, lower, _ = _offsets(c, COLUMNS)
    wide = tl.load(row + upper, mask=mask, other=0, eviction_policy=EVICTION)
    both = tl.load(row + lower, mask=mask, other=0, eviction_policy=EVICTION)
    then = tl.load(row + lower + OF_UNIT, mask=mask, other=0, eviction_policy=EVICTION)
    c = first + tl.arange(0, STEP // OWN) * OWN
    mask = there & (c < COLUMNS)
    _, _, scale = _offsets(c, COLUMNS)
    low, high = tl.load(row + scale, mask=mask, other=0), tl.load(row + scale + 2, mask=mask, other=0)
    return wide, both, then, low, high, tl.load(_block_scale_at(row, c, COLUMNS), mask=mask, other=0.0)


@triton.jit
def biased_parts(upper, lower, other):
    """The four parts of columns, divided by UNIT_OF_SUMS, plus FLOAT_BIAS."""
    if INTERPRETED:
        wide, both, then = upper.to(tl.int32), lower.to(tl.int32), other.to(tl.int32)
        a = _biased_part(wide, both, 0)
        b = _biased_part(wide, then, 1)
        c = _biased_part(wide, both, 2)
        d = _biased_part(wide, then, 3)
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            SIX, "=f,=f,=f,=f,=f,=f,=f,=f,=f,=f,=f,=f,=f,=f,=f,=f,r,r,r", [upper, lower, other],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=4,
        )  # fmt: skip
    return a, b, c, d


@triton.jit
def _biased_part(upper, lower, PART: tl.constexpr):
    """Part PART of columns, from bytes widened to int32, in the form of biased_parts."""
    if PART < 2:
        code = lower << 17
    else:
        code = lower << 13
    bits = code & LOWER | upper << 15 + 2 * PART & UPPER
    return (bits ^ ONE_AND_A_HALF).to(tl.float32, bitcast=True)


@triton.jit
def columns_of(
    rows_N, mask_N, first, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr,
    EVICTION: tl.constexpr,
):  # fmt: skip
    """Columns [first, first + STEP) of N rows, loaded for part_of."""
    rows = _bytes_of(rows_N, STRIDE)
    c = first + tl.arange(0, STEP)
    mask = mask_N[:, None] & (c < COLUMNS)[None, :]
    upper, lower, _ = _offsets(c, COLUMNS)
    at = rows[:, None] + lower[None, :]
    wide = tl.load(rows[:, None] + upper[None, :], mask=mask, other=0, eviction_policy=EVICTION).to(tl.int32)
    both = tl.load(at, mask=mask, other=0, eviction_policy=EVICTION).to(tl.int32)
    then = tl.load(at + OF_UNIT, mask=mask, other=0, eviction_policy=EVICTION).to(tl.int32)
    c = first + tl.arange(0, STEP // OF_GROUPS) * OF_GROUPS
    mask = mask_N[:, None] & (c < COLUMNS)[None, :]
    _, _, scale = _offsets(c, COLUMNS)
    at = rows[:, None] + scale[None, :]
    block = tl.load(_block_scale_at(rows, 0, COLUMNS)[:, None] + (c // OF_BLOCK)[None, :], mask=mask, other=0.0)
    low = _broadcast_scales(tl.load(at, mask=mask, other=0), block, N, STEP)
    high = _broadcast_scales(tl.load(at + 2, mask=mask, other=0), block, N, STEP)
    return wide, both, then, low, high


@triton.jit
def _broadcast_scales(byte, block_scale, N: tl.constexpr, STEP: tl.constexpr):
    """Scales of weights in units of 1 / 64, broadcast to the columns of a group."""
    scales = whole_scale(byte) * (block_scale.to(tl.float32) * UNIT_OF_SUMS)
    return tl.reshape(tl.broadcast_to(scales[:, :, None], [N, STEP // OF_GROUPS, OF_GROUPS]), [N, STEP])


@triton.jit
def part_of(columns, PART: tl.constexpr):
    """Weights: part PART of the columns that columns_of loaded."""
    return (_biased_part(columns[0], columns[1 + PART % 2], PART) - FLOAT_BIAS) * columns[3 + PART // 2]


@triton.jit
def row_of(row, k, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr):
    """Weights k of one row."""
    row = _bytes_of(row, STRIDE)
    c = k // WEIGHTS * OF_UNIT + k % (WEIGHTS // 2) // (2 * OF_GROUPS) * OF_GROUPS + k % OF_GROUPS
    half, then = k % WEIGHTS // (WEIGHTS // 2), k % (2 * OF_GROUPS) // OF_GROUPS
    upper, lower, scale = _offsets(c, COLUMNS)
    wide = tl.load(row + upper, mask=k < K, other=0).to(tl.int32) << (half * 2 + then) * 2
    both = tl.load(row + lower + then * OF_UNIT, mask=k < K, other=0).to(tl.int32) >> half * 4
    scale = whole_scale(tl.load(row + scale + half * 2, mask=k < K, other=0))
    block = tl.load(_block_scale_at(row, c, COLUMNS), mask=k < K, other=0.0).to(tl.float32)
    return (_biased_part(wide, both, 0) - FLOAT_BIAS) * (scale * (block * UNIT_OF_SUMS))

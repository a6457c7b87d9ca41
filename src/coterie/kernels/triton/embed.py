"""embed: y [T, D] = scale * table[tokens], as float32.

Knows nothing about tokens except that they index the table.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, pointer, real, unit_index
from coterie.kernels.triton.product.packed import (
    BLOCK,
    BYTES_PER_SCALE,
    GROUP_Q2,
    GROUP_Q4,
    GROUP_Q8,
    SIX_BITS,
    bytes_per_block,
    four_bits,
    small_floats,
    two_bits,
)
from coterie.kernels.triton.product.six_bits import row_of
from coterie.kernels.triton.rows import Call, operand_words

TOKENS, TABLE, Y, T, SCALE = operand_words("embed", "tokens", "table", "y", "T", "scale")


@triton.jit
def _of_group(at, k, GROUP: tl.constexpr, K: tl.constexpr):
    """The scales, or zero points, of weights k of a packed row; `at` points to the first group's."""
    numbers = at.to(tl.pointer_type(tl.bfloat16), bitcast=True)
    return tl.load(numbers + k // GROUP, mask=k < K, other=0.0).to(tl.float32)


@triton.jit
def _embed(
    row,
    TYPE: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    STEP: tl.constexpr,
    unit=None,
):
    """A program unpacks STEP values of one token's row of the table."""
    t = unit_index(unit, 0)
    if t < integer(row, T):
        token = tl.load(pointer(row, TOKENS, tl.int32) + t)
        weights = tl.multiple_of(pointer(row, TABLE, TYPE) + token.to(tl.int64) * STRIDE, ALIGN)
        k = unit_index(unit, 1) * STEP + tl.arange(0, STEP)
        packed: tl.constexpr = bytes_per_block(TYPE, K, COLUMNS)
        if packed == SIX_BITS:
            values = row_of(weights, k, K, STRIDE, COLUMNS)
        elif packed == GROUP_Q2:
            c = k // BLOCK * GROUP_Q2 + k % (BLOCK // 2) // 2
            four = tl.load(weights + c, mask=k < K, other=0).to(tl.int32)
            codes = four >> (k % BLOCK // (BLOCK // 2) * 2 + k % 2 * 4)
            values = two_bits(codes, _of_group(weights + COLUMNS, k, BLOCK, K))
        elif packed == GROUP_Q4:
            c = k // (2 * GROUP_Q4) * GROUP_Q4 + k % GROUP_Q4
            both = tl.load(weights + c, mask=k < K, other=0).to(tl.int32)
            low = k % (2 * GROUP_Q4) < GROUP_Q4
            scales: tl.constexpr = COLUMNS // GROUP_Q4 * BYTES_PER_SCALE
            if TYPE == tl.int8:
                placed = tl.where(low, both << 28 >> 6, both << 18)
                values = small_floats(placed, _of_group(weights + COLUMNS, k, 2 * GROUP_Q4, K))
            else:
                codes = tl.where(low, both & 15, both >> 4)
                zero = None
                if STRIDE > COLUMNS + scales:
                    zero = _of_group(weights + COLUMNS + scales, k, 2 * GROUP_Q4, K)
                values = four_bits(codes, _of_group(weights + COLUMNS, k, 2 * GROUP_Q4, K), zero)
        else:
            values = tl.load(weights + k, mask=k < K, other=0).to(tl.float32)
            if packed:
                values *= _of_group(weights + COLUMNS, k, GROUP_Q8, K)
        values *= real(row, SCALE).to(tl.float32)
        tl.store(pointer(row, Y, tl.float32) + t.to(tl.int64) * K + k, values, mask=k < K)


def launch(call: Call) -> None:
    """A program per token and piece of its row."""
    matrix, step = call.matrix("table", call.integer("D")), call.tiles.elements
    call.launch(_embed, (call.bucket.tokens, triton.cdiv(matrix.K, step)), call.row, STEP=step, **matrix.constants())

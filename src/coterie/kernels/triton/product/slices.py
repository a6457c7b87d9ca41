"""Tensor-core products of few weight rows with up to 16 tokens: warps split the columns, not the rows.

    columns of a step   | slice 0 | slice 1 | .. | slice S-1 |     of all N rows; each slice has its own sums [N, M]

A tile of 16 rows thus keeps eight warps busy, and a weight of 2048 rows has 128 such tiles: enough for all
multiprocessors, where tiles of 64 rows would be 32. The slices' sums are added once, at the end, always in the same
order.
A slice of a packed row lies within one group: its codes become whole numbers in bfloat16, which holds them exactly, and
the group's scale multiplies the sum of products. So no weight is rounded.
Knows nothing about what becomes of the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import INTERPRETED, add_product, narrow
from coterie.kernels.triton.product.packed import (
    BYTES_PER_SCALE,
    GROUP_Q4,
    GROUP_Q8,
    bytes_per_block,
    high_half,
    low_half,
)
from coterie.kernels.triton.product.sums import appended

MAX_ROWS, MAX_TOKENS = tl.constexpr(32), tl.constexpr(16)
SLICES, MIN_K = tl.constexpr(8), tl.constexpr(16)  # slices per step, one per warp; smallest K that tl.dot accepts
# Four bytes to two words of two bfloat16 each. In [128, 256) a bfloat16's 7 fraction bits count in ones, so 0x43 above
# a byte makes 128 plus its lower 7 bits. Its sign lands in the exponent, as 128 or 256: the number to subtract.
INT8_TO_BF16 = tl.constexpr("""{
    .reg .b32 first, second, sign, minus;
    mov.b32 minus, 0xBF80BF80;
    prmt.b32 first, $2, 0x43434343, 0x4140;
    prmt.b32 second, $2, 0x43434343, 0x4342;
    and.b32 sign, first, 0xFF80FF80;
    and.b32 first, first, 0xFF7FFF7F;
    fma.rn.bf16x2 $0, sign, minus, first;
    and.b32 sign, second, 0xFF80FF80;
    and.b32 second, second, 0xFF7FFF7F;
    fma.rn.bf16x2 $1, sign, minus, second;
}""")


def _halves(first: str, given: tuple[str, str, str], selectors: tuple[str, str], *then: str) -> str:
    """PTX for one half of each of four bytes: the lower half where `by` is 0, the upper where it is 4.

    `given`: the constants `beside`, `times` and `less`. `first` shifts halves into place in `word`; each selector takes
    bytes of `word` and `beside` for two bfloat16, which after `then` are multiplied by `times`, plus `less`.
    """
    lines = [f"mov.b32 {name}, {value}" for name, value in zip(("beside", "times", "less"), given, strict=True)]
    lines += ["and.b32 by, $3, 4", first]
    for i, which in enumerate(selectors):
        lines += [f"prmt.b32 at, word, beside, {which}", *then, f"fma.rn.bf16x2 ${i}, at, times, less"]
    return "{ .reg .b32 by, word, at, rest, beside, times, less;\n" + "".join(f"{line};\n" for line in lines) + "}"


# Q4: 128 + code, minus 128 + 8.
CODES = tl.constexpr(
    _halves(
        "shr.u32 word, $2, by", ("0x43434343", "0x3F803F80", "0xC308C308"), ("0x4140", "0x4342"),
        "and.b32 at, at, 0xFF0FFF0F",
    )
)  # fmt: skip
# MX4: the sign, and three bits across exponent and fraction, times 2^127 (packed.py).
SMALL_FLOATS = tl.constexpr(
    _halves(
        "xor.b32 by, by, 4;\nshl.b32 word, $2, by", ("0", "0x7F007F00", "0"), ("0x1404", "0x3424"),
        "shr.u32 rest, at, 6", "and.b32 rest, rest, 0x01C001C0", "lop3.b32 at, at, 0x80008000, rest, 0xEA",
    )
)  # fmt: skip


@triton.constexpr_function
def slice_of(TYPE, K, COLUMNS, M, N, STEP, STAGED, DOT):
    """Weights per slice, where N rows and M tokens are multiplied in slices; 0 where they are not."""
    if N > MAX_ROWS.value or M > MAX_TOKENS.value or STAGED != DOT or DOT == tl.float32:
        return 0
    packed = bytes_per_block(TYPE, K, COLUMNS)
    if packed == 16:
        return 2 * GROUP_Q4.value  # from half as many bytes, each read twice
    return min(max(STEP // SLICES.value, MIN_K.value), {0: STEP, 32: GROUP_Q8.value}.get(packed, 0))


@triton.jit
def int8_to_bf16(q):
    """Q8 bytes as bfloat16."""
    if INTERPRETED:
        y = narrow(q.to(tl.float32), tl.bfloat16)
    else:
        y = tl.inline_asm_elementwise(INT8_TO_BF16, "=r,=r,r", [q], dtype=tl.bfloat16, is_pure=True, pack=4)
    return y


@triton.jit
def halves_by(both, by, TYPE: tl.constexpr):
    """Weights in the lower (`by` 0) or upper (`by` 4) halves of bytes, in units of their scale; Q4Z as if Q4."""
    if INTERPRETED:
        wide = both.to(tl.int32)
        y = tl.where(by == 0, low_half(wide, 1.0, None, TYPE), high_half(wide, 1.0, None, TYPE))
        y = narrow(y, tl.bfloat16)
    elif TYPE == tl.int8:
        y = tl.inline_asm_elementwise(SMALL_FLOATS, "=r,=r,r,r", [both, by], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        y = tl.inline_asm_elementwise(CODES, "=r,=r,r,r", [both, by], dtype=tl.bfloat16, is_pure=True, pack=4)
    return y


@triton.jit
def _scales(
    rows_N, mask_N, first, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, S: tl.constexpr, SLICE: tl.constexpr,
    GROUP: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """[S, N] scales of the slices of a step, and zero points where there are any. GROUP is in weights.

    They are 0 outside the row, whatever its bytes are.
    """
    g = (first + tl.arange(0, S) * SLICE) // GROUP
    at = (rows_N + COLUMNS).to(tl.pointer_type(tl.bfloat16), bitcast=True)[None, :] + g[:, None]
    groups: tl.constexpr = (COLUMNS * (1 + HALVES) + GROUP - 1) // GROUP
    mask = (g < groups)[:, None] & mask_N[None, :]
    found = (tl.load(at, mask=mask, other=0.0),)
    if HALVES and STRIDE > COLUMNS + groups * BYTES_PER_SCALE:
        found = appended(found, tl.load(at + groups, mask=mask, other=0.0))
    return found


@triton.jit
def sliced_dots(
    x, m, mask_M, rows_N, mask_N, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, TYPE: tl.constexpr,
    DOT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, SLICE: tl.constexpr,
):  # fmt: skip
    """[N, M] products as in many_dots, in slices of SLICE weights; accumulates [S, N, M] in float32.

    A byte of two weights is loaded once for each: Triton does not pipeline a load that feeds two products.
    """
    PACKED: tl.constexpr = bytes_per_block(TYPE, K, COLUMNS)
    HALVES: tl.constexpr = PACKED == 16
    GROUP: tl.constexpr = 2 * GROUP_Q4 if HALVES else GROUP_Q8
    S: tl.constexpr = STEP // SLICE
    x_M, mask_M = x + m[None, None, :] * K, mask_M[None, None, :]
    begin = tl.arange(0, S)[:, None, None] * SLICE
    across, down = tl.arange(0, SLICE)[None, None, :], tl.arange(0, SLICE)[None, :, None]
    acc = tl.zeros([S, N, M], tl.float32)
    none = tl.zeros([S, N, M], tl.float32)
    if PACKED:
        scales = _scales(rows_N, mask_N, 0, STRIDE, COLUMNS, S, SLICE, GROUP, HALVES)
    for first in tl.range(0, COLUMNS * (1 + HALVES), STEP):
        c, k = first + begin + across, first + begin + down
        if HALVES:
            c = (first + begin) // 2 + across % GROUP_Q4
        w = tl.load(rows_N[None, :, None] + c, mask=mask_N[None, :, None] & (c < COLUMNS), other=0)
        activations = tl.load(x_M + k, mask=mask_M & (k < K), other=0.0)
        if PACKED:
            # Loaded a step ahead: Triton pipelines only the operands of a product.
            following = _scales(rows_N, mask_N, first + STEP, STRIDE, COLUMNS, S, SLICE, GROUP, HALVES)
            if HALVES:
                by = tl.broadcast_to((across // GROUP_Q4 * 4).to(tl.int8), [S, N, SLICE])
                products = add_product(none, halves_by(w, by, TYPE), activations)
            else:
                products = add_product(none, int8_to_bf16(w), activations)
            if len(scales) == 2:
                ones = narrow(tl.full([S, N, SLICE], 1.0, tl.float32), tl.bfloat16)
                products -= (scales[1].to(tl.float32) - 8.0)[:, :, None] * add_product(none, ones, activations)
            acc += products * scales[0].to(tl.float32)[:, :, None]
            scales = following
        else:
            acc = add_product(acc, w, activations)
    return tl.sum(acc, axis=0)

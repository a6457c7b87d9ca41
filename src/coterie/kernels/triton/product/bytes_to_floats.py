"""Packed bytes as float32 whole numbers, four bytes at a time: by their bits, without a conversion.

Converting a byte to float32 takes a multiprocessor eight times as long as a multiplication (CUDA C++ Programming Guide,
throughput of arithmetic instructions). So a byte's bits become the fraction of a float whose exponent is known, for all
four bytes of a word at once where possible, and one `prmt` per weight puts the byte in its place (Q6: six_bits.py):

    Q8         2^23 + 128 + q       an exact subtraction gives q
    Q4, Q4Z    1 + code / 16        the offset, 1.5 or 1 + zero / 16, is subtracted from sums of products
    MX4        1.5 + q / 32         looked up by `prmt` in two tables of eight bytes, one for each sign

The interpreter gets the same numbers by plain arithmetic; tests/device/test_bytes_to_floats.py reads the instructions.
Knows nothing about what weights are multiplied with.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import INTERPRETED
from coterie.kernels.triton.product.packed import SIX_BITS, high_half, low_half
from coterie.kernels.triton.product.six_bits import UNIT_OF_SUMS

# Four bytes to four floats; or to those of their lower halves, then of their upper halves.
INT8_TO_FLOAT = tl.constexpr("""{
    .reg .b32 biased;
    xor.b32 biased, $4, 0x80808080;
    prmt.b32 $0, biased, 0x4B000000, 0x7650;
    prmt.b32 $1, biased, 0x4B000000, 0x7651;
    prmt.b32 $2, biased, 0x4B000000, 0x7652;
    prmt.b32 $3, biased, 0x4B000000, 0x7653;
}""")
INT8_BIAS = tl.constexpr(2.0**23 + 128)
CODES = tl.constexpr("""{
    .reg .b32 low, high;
    shl.b32 low, $8, 3;
    shr.u32 high, $8, 1;
    lop3.b32 low, low, 0x78787878, 0x80808080, 0xEA;
    lop3.b32 high, high, 0x78787878, 0x80808080, 0xEA;
    prmt.b32 $0, low, 0x3F000000, 0x7044;
    prmt.b32 $1, low, 0x3F000000, 0x7144;
    prmt.b32 $2, low, 0x3F000000, 0x7244;
    prmt.b32 $3, low, 0x3F000000, 0x7344;
    prmt.b32 $4, high, 0x3F000000, 0x7044;
    prmt.b32 $5, high, 0x3F000000, 0x7144;
    prmt.b32 $6, high, 0x3F000000, 0x7244;
    prmt.b32 $7, high, 0x3F000000, 0x7344;
}""")
# The tables hold bits 16 to 23 of 1.5 + q / 32; a negative code takes its byte from the second one.
SMALL_FLOATS = tl.constexpr("""{
    .reg .b32 low, code, plus, minus, sign, first, second;
    shl.b32 low, $8, 4;
    and.b32 code, $8, 0x77777777;
    prmt.b32 plus, 0xCCC8C4C0, 0xF0E0D8D0, code;
    prmt.b32 minus, 0xB4B8BCC0, 0x90A0A8B0, code;
    prmt.b32 sign, $8, low, 0x9D8C;
    lop3.b32 first, sign, minus, plus, 0xCA;
    shr.u32 code, code, 16;
    prmt.b32 plus, 0xCCC8C4C0, 0xF0E0D8D0, code;
    prmt.b32 minus, 0xB4B8BCC0, 0x90A0A8B0, code;
    prmt.b32 sign, $8, low, 0xBFAE;
    lop3.b32 second, sign, minus, plus, 0xCA;
    prmt.b32 $0, first, 0x3F000000, 0x7044;
    prmt.b32 $4, first, 0x3F000000, 0x7144;
    prmt.b32 $1, first, 0x3F000000, 0x7244;
    prmt.b32 $5, first, 0x3F000000, 0x7344;
    prmt.b32 $2, second, 0x3F000000, 0x7044;
    prmt.b32 $6, second, 0x3F000000, 0x7144;
    prmt.b32 $3, second, 0x3F000000, 0x7244;
    prmt.b32 $7, second, 0x3F000000, 0x7344;
}""")
FLOAT_BIAS = tl.constexpr(1.5)  # the offset of floats from 4 bits, in units of `unit_of`


@triton.constexpr_function
def unit_of(TYPE, OF_BLOCK):
    """The number that a difference of 1 between these floats stands for; OF_BLOCK: bytes per 32 weights."""
    if OF_BLOCK == SIX_BITS.value:
        return UNIT_OF_SUMS.value
    return 1.0 if OF_BLOCK == 32 else 32.0 if TYPE == tl.int8 else 16.0


@triton.jit
def int8_to_float(q):
    """Q8 bytes as float32."""
    if INTERPRETED:
        y = q.to(tl.float32)
    else:
        y = (
            tl.inline_asm_elementwise(INT8_TO_FLOAT, "=f,=f,=f,=f,r", [q], dtype=tl.float32, is_pure=True, pack=4)
            - INT8_BIAS
        )
    return y


@triton.jit
def biased_halves(both, TYPE: tl.constexpr):
    """Weights from the lower and the upper halves of bytes, divided by `unit_of`, plus 1.5; Q4Z as if it were Q4."""
    if INTERPRETED:
        unit: tl.constexpr = unit_of(TYPE, 16)
        wide = both.to(tl.int32)
        low = low_half(wide, 1.0 / unit, None, TYPE) + FLOAT_BIAS
        high = high_half(wide, 1.0 / unit, None, TYPE) + FLOAT_BIAS
    elif TYPE == tl.int8:
        low, high = tl.inline_asm_elementwise(
            SMALL_FLOATS, "=f,=f,=f,=f,=f,=f,=f,=f,r", [both], dtype=(tl.float32, tl.float32), is_pure=True, pack=4
        )
    else:
        low, high = tl.inline_asm_elementwise(
            CODES, "=f,=f,=f,=f,=f,=f,=f,=f,r", [both], dtype=(tl.float32, tl.float32), is_pure=True, pack=4
        )
    return low, high

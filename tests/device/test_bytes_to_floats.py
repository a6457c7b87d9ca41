"""The instructions that make floats of packed bytes give what plain arithmetic gives, for all bytes.

No GPU runs them here: the few instructions that they are made of are carried out as PTX's document defines them.
Knows nothing about kernels.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from tests.device.interpreted import torch
from triton import jit
from triton import language as tl

from coterie.core.packed import worth
from coterie.kernels.triton.product import bytes_to_floats, six_bits, slices
from coterie.kernels.triton.product.bytes_to_floats import biased_halves, int8_to_float
from coterie.kernels.triton.product.six_bits import biased_parts
from coterie.kernels.triton.product.slices import halves_by, int8_to_bf16

WORD = 0xFFFFFFFF
EVERY = np.arange(256, dtype=np.uint8)


def prmt(a, b, selectors):
    """PTX, prmt without a mode: each of four bytes is one of eight, or the sign of one spread over it."""
    of_eight, result = a | b << 32, 0
    for place in range(4):
        selector = selectors >> 4 * place & 15
        byte = of_eight >> 8 * (selector & 7) & 255
        if selector & 8:
            byte = 255 * (byte >> 7)
        result |= byte << 8 * place
    return result


def lop3(a, b, c, table):
    """PTX, lop3: each bit is looked up by those of a, b and c, the first of them the highest."""
    return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1) & 1) << i for i in range(32))


def pair(word):
    """The two numbers of bfloat16 in a word."""
    return np.array([word << 16 & WORD, word & 0xFFFF0000], np.uint32).view(np.float32)


def fma(a, b, c):
    """PTX, fma.rn.bf16x2, of what needs no rounding: those without an exponent count."""
    bits = (pair(a) * pair(b) + pair(c)).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return int(bits[0] >> 16 | bits[1])


DOES = {
    "mov.b32": lambda a: a,
    "fma.rn.bf16x2": fma,
    "prmt.b32": prmt,
    "lop3.b32": lop3,
    "xor.b32": lambda a, b: a ^ b,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, by: a << by & WORD,
    "shr.u32": lambda a, by: a >> by,
}


def carried_out(text, *words):
    """The floats that instructions put in $0, $1 and so on, of words in the operands behind those."""
    count = max(map(int, re.findall(r"\$(\d+)", text))) + 1 - len(words)
    values = {f"${count + i}": word for i, word in enumerate(words)}
    for name, operands in re.findall(r"^\s*([a-z0-9]+\.[bu]32|fma\.rn\.bf16x2) ([^;]*);", text, re.MULTILINE):
        to, *given = (one.strip() for one in operands.split(","))
        values[to] = DOES[name](*(values[one] if one in values else int(one, 0) for one in given))
    return np.array([values[f"${i}"] for i in range(count)], np.uint32).view(np.float32)


def of_bytes(text, floats=lambda found: found):
    """[results of a byte, 256]: what comes of each byte, wherever it stands among four others."""

    def of_four(four):
        return floats(carried_out(text, int(four.view("<u4")[0]))).reshape(-1, 4)

    found = [of_four(EVERY[first : first + 4]) for first in range(0, 256, 4)]
    turned = [of_four(np.roll(EVERY[i : i + 4], 1)) for i in range(0, 256, 4)]
    np.testing.assert_array_equal(np.concatenate([np.roll(one, -1, 1) for one in turned], 1), np.concatenate(found, 1))
    return np.concatenate(found, 1)


@jit
def _interpreted(x, low, high, HALVES: tl.constexpr):
    i = tl.arange(0, 256)
    if HALVES:
        a, b = biased_halves(tl.load(x + i), x.dtype.element_ty)
        tl.store(low + i, a)
        tl.store(high + i, b)
    else:
        tl.store(low + i, int8_to_float(tl.load(x + i)))


def interpreted(x, halves):
    low, high = torch.zeros(256), torch.zeros(256)
    _interpreted[(1,)](torch.from_numpy(x), low, high, halves)
    return low.numpy(), high.numpy()


def test_whole_numbers_of_eight_bits():
    q = EVERY.view(np.int8)
    (found,) = of_bytes(bytes_to_floats.INT8_TO_FLOAT.value) - np.float32(bytes_to_floats.INT8_BIAS.value)
    np.testing.assert_array_equal(found, q.astype(np.float32))
    np.testing.assert_array_equal(interpreted(q, False)[0], found)


@pytest.mark.parametrize("text", ["CODES", "SMALL_FLOATS"])
def test_halves_of_bytes(text):
    codes = np.stack([EVERY & 15, EVERY >> 4])
    whole, unit = (worth(codes), 32) if text == "SMALL_FLOATS" else (codes.astype(np.float32) - 8, 16)
    found = of_bytes(getattr(bytes_to_floats, text).value)
    np.testing.assert_array_equal(found, 1.5 + whole / unit)
    np.testing.assert_array_equal(interpreted(EVERY.view(np.int8) if unit == 32 else EVERY, True), found)


@jit
def _six_interpreted(upper, lower, other, to):
    i = tl.arange(0, 256)
    parts = biased_parts(tl.load(upper + i), tl.load(lower + i), tl.load(other + i))
    for part in tl.static_range(4):
        tl.store(to + part * 256 + i, parts[part])


def test_parts_of_six_bits():
    """Every byte of upper bits, beside bytes of lower ones that are all different, four columns at a time."""
    upper, lower, other = EVERY, EVERY * 7 + 3, EVERY * 31 + 50
    code = (
        np.stack([lower & 15, other & 15, lower >> 4, other >> 4]) | (upper >> np.array([[6], [4], [2], [0]]) & 3) << 4
    )
    q = np.where(code < 32, code.astype(np.float32), code.astype(np.float32) - 64)
    words = [bytes_.astype(np.uint8).view("<u4") for bytes_ in (upper, lower, other)]
    text = six_bits.SIX.value
    found = [carried_out(text, *(int(word[i]) for word in words)).reshape(4, 4) for i in range(64)]
    np.testing.assert_array_equal(np.concatenate(found, 1), 1.5 + q / 64)
    to = torch.zeros(4, 256)
    _six_interpreted[(1,)](*(torch.from_numpy(one.astype(np.uint8)) for one in (upper, lower, other)), to)
    np.testing.assert_array_equal(to.numpy(), 1.5 + q / 64)
    assert len(np.unique(code)) == 64


@jit
def _bf16_interpreted(x, to, BY: tl.constexpr):
    i = tl.arange(0, 256)
    if BY is None:
        tl.store(to + i, int8_to_bf16(tl.load(x + i)).to(tl.float32))
    else:
        y = halves_by(tl.load(x + i), tl.full([256], BY, tl.int8), x.dtype.element_ty)
        tl.store(to + i, y.to(tl.float32))


@pytest.mark.parametrize("by", [None, 0, 4])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_bytes_become_bfloat16_exactly(dtype, by):
    """Whole ones, codes of 4 bits and small floats: two numbers a word, in the order of the bytes."""
    if by is None:
        text, wanted = slices.INT8_TO_BF16.value, EVERY.view(np.int8).astype(np.float32)
    else:
        codes = EVERY >> by & 15
        text = (slices.SMALL_FLOATS if dtype is np.int8 else slices.CODES).value.replace("$3", hex(by * 0x01010101))
        wanted = worth(codes) if dtype is np.int8 else codes.astype(np.float32) - 8
    (found,) = of_bytes(text, lambda words: np.concatenate([*map(pair, words.view(np.uint32))]))
    np.testing.assert_array_equal(found, wanted)
    to = torch.zeros(256)
    _bf16_interpreted[(1,)](torch.from_numpy(EVERY.view(np.int8 if by is None else dtype)), to, by)
    np.testing.assert_array_equal(to.numpy(), wanted)

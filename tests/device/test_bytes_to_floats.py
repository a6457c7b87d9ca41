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
from coterie.kernels.triton.product import bytes_to_floats
from coterie.kernels.triton.product.bytes_to_floats import halves_above, whole_numbers

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


DOES = {
    "prmt.b32": prmt,
    "lop3.b32": lop3,
    "xor.b32": lambda a, b: a ^ b,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, by: a << by & WORD,
    "shr.u32": lambda a, by: a >> by,
}


def carried_out(text, word):
    """The floats that instructions put in $0, $1 and so on, of a word in the operand behind those."""
    count = max(map(int, re.findall(r"\$(\d+)", text)))
    values = {f"${count}": word}
    for name, operands in re.findall(r"^\s*([a-z0-9]+\.[bu]32) ([^;]*);", text, re.MULTILINE):
        to, *given = (one.strip() for one in operands.split(","))
        values[to] = DOES[name](*(values[one] if one in values else int(one, 0) for one in given))
    return np.array([values[f"${i}"] for i in range(count)], np.uint32).view(np.float32)


def of_bytes(text):
    """[results of a byte, 256]: what comes of each byte, wherever it stands among four others."""
    found = []
    for first in range(0, 256, 4):
        there = carried_out(text, int(EVERY[first : first + 4].view("<u4")[0]))
        found.append(there.reshape(-1, 4))
    turned = [
        carried_out(text, int(np.roll(EVERY[i : i + 4], 1).view("<u4")[0])).reshape(-1, 4) for i in range(0, 256, 4)
    ]
    np.testing.assert_array_equal(np.concatenate([np.roll(one, -1, 1) for one in turned], 1), np.concatenate(found, 1))
    return np.concatenate(found, 1)


@jit
def _interpreted(x, low, high, HALVES: tl.constexpr):
    i = tl.arange(0, 256)
    if HALVES:
        a, b = halves_above(tl.load(x + i), x.dtype.element_ty)
        tl.store(low + i, a)
        tl.store(high + i, b)
    else:
        tl.store(low + i, whole_numbers(tl.load(x + i)))


def interpreted(x, halves):
    low, high = torch.zeros(256), torch.zeros(256)
    _interpreted[(1,)](torch.from_numpy(x), low, high, halves)
    return low.numpy(), high.numpy()


def test_whole_numbers_of_eight_bits():
    q = EVERY.view(np.int8)
    (found,) = of_bytes(bytes_to_floats.WHOLE.value) - np.float32(bytes_to_floats.WHOLE_BIAS.value)
    np.testing.assert_array_equal(found, q.astype(np.float32))
    np.testing.assert_array_equal(interpreted(q, False)[0], found)


@pytest.mark.parametrize("text", ["CODES", "SMALL_FLOATS"])
def test_halves_of_bytes(text):
    codes = np.stack([EVERY & 15, EVERY >> 4])
    whole, unit = (worth(codes), 32) if text == "SMALL_FLOATS" else (codes.astype(np.float32) - 8, 16)
    found = of_bytes(getattr(bytes_to_floats, text).value)
    np.testing.assert_array_equal(found, 1.5 + whole / unit)
    np.testing.assert_array_equal(interpreted(EVERY.view(np.int8) if unit == 32 else EVERY, True), found)

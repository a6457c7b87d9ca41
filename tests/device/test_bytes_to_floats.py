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
from coterie.kernels.triton.product import bytes_to_floats, six_bits
from coterie.kernels.triton.product.bytes_to_floats import halves_above, whole_numbers
from coterie.kernels.triton.product.six_bits import parts_above

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


def carried_out(text, *words):
    """The floats that instructions put in $0, $1 and so on, of words in the operands behind those."""
    count = max(map(int, re.findall(r"\$(\d+)", text))) + 1 - len(words)
    values = {f"${count + i}": word for i, word in enumerate(words)}
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


@jit
def _six_interpreted(upper, lower, other, to):
    i = tl.arange(0, 256)
    parts = parts_above(tl.load(upper + i), tl.load(lower + i), tl.load(other + i))
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

"""For attention kernels that handle lone tokens: finding one, and products with a float32 operand.

A token is alone if its sequence has no other token in this step.
Knows nothing about pages.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import add_product, integer, narrow, pointer
from coterie.kernels.triton.attention.attention_chunks import PAGES, T
from coterie.kernels.triton.attention.pages import SEQUENCE


@triton.jit
def find_lone_token(row, i, DECODES: tl.constexpr, SEARCH: tl.constexpr):
    """The token of sequence i (in decode: token i), and whether it is alone. Outside decode this searches the step."""
    tokens = integer(row, T)
    found = i
    alone = i < tokens
    if not DECODES:
        sequence = pointer(row, PAGES + SEQUENCE, tl.int32)
        found = tokens
        count = 0
        for first in tl.range(0, tokens, SEARCH):
            t = first + tl.arange(0, SEARCH)
            mine = tl.load(sequence + t, mask=t < tokens, other=-1) == i
            found = tl.minimum(found, tl.min(tl.where(mine, t, tokens), axis=0))
            count += tl.sum(mine.to(tl.int32), axis=0)
        alone = count == 1
    return found, alone


@triton.jit
def add_split_product(acc, a, b, TYPE: tl.constexpr):
    """acc + a @ b for float32 b, which is split into two values of a's type: b rounded, and the remainder rounded."""
    upper = narrow(b, TYPE)
    acc = add_product(acc, a, upper)
    if TYPE != tl.float32:
        acc = add_product(acc, a, narrow(b - upper.to(tl.float32), TYPE))
    return acc

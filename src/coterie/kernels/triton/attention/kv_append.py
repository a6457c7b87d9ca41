"""kv_append: store k and v [T, K, C] in the page of each token's position, rounded to the pages' type.

Knows nothing about where k and v come from.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, narrow, pointer, unit_index
from coterie.kernels.triton.attention.pages import Pages, token_at
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

KEYS, VALUES, PAGES, T = operand_words("kv_append", "k", "v", "positions", "T")


@triton.jit
def _append(
    row,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    unit=None,
):
    """A program stores all kv heads of one token."""
    t = unit_index(unit, 0)
    if t < integer(row, T):
        position = tl.load(pointer(row, PAGES, tl.int32) + t)
        h = tl.arange(0, HEADS)
        c = tl.arange(0, CHANNELS)
        mask = (h < K)[:, None] & (c < C)[None, :]
        source = (t.to(tl.int64) * K + h)[:, None] * C + c[None, :]
        k = tl.load(pointer(row, KEYS, tl.float32) + source, mask=mask, other=0.0)
        v = tl.load(pointer(row, VALUES, tl.float32) + source, mask=mask, other=0.0)
        keys, values = token_at(row, PAGES, t, position, h, KV_TYPE, K, C, Z, BLOCK_BYTES)
        tl.store(keys[:, None] + c[None, :], narrow(k, KV_TYPE), mask=mask)
        tl.store(values[:, None] + c[None, :], narrow(v, KV_TYPE), mask=mask)


def launch(call: Call) -> None:
    """A program per token."""
    pages = Pages.of(call)
    heads, channels = power_of_two(pages.K), power_of_two(pages.C)
    call.launch(_append, (call.bucket.tokens,), call.row, **pages.constants(), HEADS=heads, CHANNELS=channels)

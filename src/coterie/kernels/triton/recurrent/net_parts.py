"""net_parts: rearrange a gated delta net's two projections, grouped by key head, for the ops that follow.

    qkvz   per key head: q and k of K channels, then v and z of its value heads   ->  x: all q, all k, all v;  z
    ba     per key head: b, then a, with a value for each of its value heads      ->  a;  b

Knows nothing about what they mean: it copies.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, unit_index, wait_for_previous
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

QKVZ, BA, X, Z, A, B, T = operand_words("net_parts", "qkvz", "ba", "x", "z", "a", "b", "T")


@triton.jit
def _part(
    row,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    SHARE: tl.constexpr,
    WIDE: tl.constexpr,
    GATES: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """A program copies the parts of one key head and token."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    head, t = unit_index(unit, 0), unit_index(unit, 1)
    if t < integer(row, T):
        at = t.to(tl.int64) * HEADS + head
        i = tl.arange(0, WIDE)
        MIXED: tl.constexpr = 2 * KEYS + VALUES
        value = tl.load(pointer(row, QKVZ, tl.float32) + at * (MIXED + VALUES) + i, mask=i < MIXED + VALUES, other=0.0)
        k, v = HEADS * KEYS + head * KEYS + (i - KEYS), 2 * HEADS * KEYS + head * VALUES + (i - 2 * KEYS)
        place = tl.where(i < KEYS, head * KEYS + i, tl.where(i < 2 * KEYS, k, v))
        tl.store(pointer(row, X, tl.float32) + t.to(tl.int64) * HEADS * MIXED + place, value, mask=i < MIXED)
        behind = (i >= MIXED) & (i < MIXED + VALUES)
        tl.store(pointer(row, Z, tl.float32) + at * VALUES + (i - MIXED), value, mask=behind)
        j = tl.arange(0, GATES)
        gate = tl.load(pointer(row, BA, tl.float32) + at * 2 * SHARE + j, mask=j < 2 * SHARE, other=0.0)
        tl.store(pointer(row, B, tl.float32) + at * SHARE + j, gate, mask=j < SHARE)
        is_a = (j >= SHARE) & (j < 2 * SHARE)
        tl.store(pointer(row, A, tl.float32) + at * SHARE + (j - SHARE), gate, mask=is_a)


def launch(call: Call) -> None:
    """A program per key head and token."""
    heads, keys = call.integer("key_heads"), call.integer("K")
    share = call.integer("H") // heads
    values = share * call.integer("C")
    how = {"HEADS": heads, "KEYS": keys, "VALUES": values, "SHARE": share}
    how |= {"WIDE": power_of_two(2 * (keys + values)), "GATES": power_of_two(2 * share)}
    call.launch(_part, (heads, call.bucket.tokens), call.row, **how)

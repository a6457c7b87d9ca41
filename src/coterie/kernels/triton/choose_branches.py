"""choose_branches: y = scale * softmax(logits) where that is among the top_k largest of a row, else 0.

Or, normalised, these divided by their sum. Of equal ones the first.
Which they are is left in scratch for the row behind, where that reads the weights.
Knows nothing about what branches are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import along, integer, let_next_begin, pointer, real, wait_for_last
from coterie.kernels.triton.branches import VALUES_OF_WARP, chosen_bytes, chosen_ids, put_ids
from coterie.kernels.triton.rows import Call, places
from coterie.kernels.triton.tiles import power_of_two

LOGITS, Y, T, SCALE = places("choose_branches", "logits", "y", "T", "scale")
LEAST = tl.constexpr(1e-30)  # of the weight of a branch that is taken, so that none of them is 0
GONE = tl.constexpr(-(2**31))  # below every key


@triton.jit
def _key(x):
    """Whole numbers in the order of float32, both zeros alike; below all of them where it is no number."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x == x, tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF), GONE + 1)


@triton.jit
def _choose(
    row,
    ids,
    E: tl.constexpr,
    WIDE: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    LISTED: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    let_next_begin(WHEN)
    wait_for_last(WHEN)
    t = along(unit, 0)
    if t < integer(row, T):
        e = tl.arange(0, WIDE)
        at = t.to(tl.int64) * E + e
        x = tl.load(pointer(row, LOGITS, tl.float32) + at, mask=e < E, other=float("-inf"))
        p = tl.exp(x - tl.max(x, axis=0))
        key = tl.where(e < E, _key(x), GONE)
        marked = e < 0
        for _k in tl.range(0, TOP_K):
            best = e == tl.argmax(key, axis=0)
            marked = marked | best
            key = tl.where(best, GONE, key)
        if NORMALISE:
            total = tl.sum(tl.where(marked, p, 0.0), axis=0)
        else:
            total = tl.sum(p, axis=0)
        weight = p / total * real(row, SCALE).to(tl.float32)
        weight = tl.where(weight < LEAST, LEAST, weight)
        tl.store(pointer(row, Y, tl.float32) + at, tl.where(marked, weight, 0.0), mask=e < E)
        if LISTED:
            put_ids(ids, t, marked, TOP_K, WIDE)


def launch(call: Call) -> None:
    """A program a token."""
    E = call.integer("E")
    wide, how = power_of_two(E), {"TOP_K": call.integer("top_k"), "NORMALISE": call.integer("normalise")}
    ids, warps = chosen_ids(call), min(max(wide // VALUES_OF_WARP, 1), 8)
    how["LISTED"] = ids is not None
    args = (call.row, call.scratch_as(tl.float32, 0) if ids is None else ids)
    call.launch(_choose, (call.bucket.tokens,), *args, E=E, WIDE=wide, **how, num_warps=warps)


def scratch_bytes(call: Call) -> int:
    """What is left for the next row."""
    return chosen_bytes(call)

"""choose_branches: y [T, E] = scale * score where it is among the top_k of a token's scores, else 0.

Normalised, the chosen scores are divided by their sum. Scores are a softmax of the logits, or their sigmoid; with a
bias or groups, scores + bias are ranked, within the best groups. Of equals, the first wins. With factors, each
weight is multiplied by that of its branch.
The chosen ids are left in scratch for the next row, if it reads the weights.
Knows nothing about what branches are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, real, unit_index, wait_for_previous
from coterie.kernels.triton.branch.branches import VALUES_OF_WARP, chosen_bytes, chosen_ids, store_ids
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

LOGITS, Y, T, SCALE, BIAS_AT, MIN_SUM, ADDED_SUM, FACTORS_AT = operand_words(
    "choose_branches", "logits", "y", "T", "scale", "bias", "least_sum", "added_sum", "factors"
)
MIN_WEIGHT = tl.constexpr(1e-30)  # smallest weight of a branch that is taken: 0 would mean not taken
GONE = tl.constexpr(-(2**31))  # below every key


@triton.jit
def _key(x):
    """int32 keys in the order of float32: both zeros are equal, NaN comes below all numbers."""
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(x == x, tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF), GONE + 1)


@triton.jit
def _largest(key):
    """Mask of the largest key, the first of equal ones."""
    return tl.arange(0, key.shape[0]) == tl.argmax(key, axis=0)


@triton.jit
def _in_best_groups(x, E: tl.constexpr, GROUPS: tl.constexpr, TAKEN: tl.constexpr, BEST: tl.constexpr):
    """Mask of x [WIDE] in the TAKEN best of GROUPS groups, ranked by the sum of their BEST largest values."""
    SIZE: tl.constexpr = E // GROUPS
    e = tl.arange(0, x.shape[0])
    ranks = tl.zeros_like(x)
    for g in tl.range(0, GROUPS):
        inside = (e // SIZE == g) & (e < E)
        key = tl.where(inside, _key(x), GONE)
        rank = 0.0
        for _k in tl.static_range(BEST):
            best = _largest(key)
            rank += tl.sum(tl.where(best, x, 0.0), axis=0)
            key = tl.where(best, GONE, key)
        ranks = tl.where(inside, rank, ranks)
    key = tl.where(e < E, _key(ranks), GONE)
    marked = e < 0
    for _k in tl.range(0, TAKEN):
        group = e // SIZE == tl.argmax(key, axis=0) // SIZE
        marked = marked | group
        key = tl.where(group, GONE, key)
    return marked


@triton.jit
def _choose(
    row,
    ids,
    E: tl.constexpr,
    WIDE: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISE: tl.constexpr,
    SIGMOID: tl.constexpr,
    BIAS: tl.constexpr,
    FACTORS: tl.constexpr,
    GROUPS: tl.constexpr,
    TAKEN_GROUPS: tl.constexpr,
    GROUP_BEST: tl.constexpr,
    LISTED: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """The weights of one token, [E], and their ids."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    t = unit_index(unit, 0)
    if t < integer(row, T):
        e = tl.arange(0, WIDE)
        at = t.to(tl.int64) * E + e
        x = tl.load(pointer(row, LOGITS, tl.float32) + at, mask=e < E, other=float("-inf"))
        if SIGMOID:
            p, total = 1.0 / (1.0 + tl.exp(-x)), 1.0
        else:
            p = tl.exp(x - tl.max(x, axis=0))
            total = tl.sum(p, axis=0)
        there, ranked = e < E, x
        if BIAS is not None or GROUPS > 0:
            p, total = p / total, 1.0
            ranked = p
        if BIAS is not None:
            ranked += tl.load(pointer(row, BIAS_AT, BIAS) + e, mask=e < E, other=0.0).to(tl.float32)
        if GROUPS > 0:
            there = _in_best_groups(ranked, E, GROUPS, TAKEN_GROUPS, GROUP_BEST)
        key = tl.where(there, _key(ranked), GONE)
        marked = e < 0
        for _k in tl.range(0, TOP_K):
            best = _largest(key)
            marked = marked | best
            key = tl.where(best, GONE, key)
        if NORMALISE:
            total = tl.maximum(tl.sum(tl.where(marked, p, 0.0), axis=0), real(row, MIN_SUM).to(tl.float32))
            total += real(row, ADDED_SUM).to(tl.float32)
        weight = p / total * real(row, SCALE).to(tl.float32)
        if FACTORS is not None:
            weight *= tl.load(pointer(row, FACTORS_AT, FACTORS) + e, mask=e < E, other=0.0).to(tl.float32)
        weight = tl.where(tl.abs(weight) < MIN_WEIGHT, MIN_WEIGHT, weight)
        tl.store(pointer(row, Y, tl.float32) + at, tl.where(marked, weight, 0.0), mask=e < E)
        if LISTED:
            store_ids(ids, t, marked, TOP_K, WIDE)


def launch(call: Call) -> None:
    """A program per token."""
    E = call.integer("E")
    names = ("top_k", "normalise", "sigmoid", "groups", "taken_groups", "group_best")
    how: dict[str, object] = {name.upper(): call.integer(name) for name in names}
    wide, ids = power_of_two(E), chosen_ids(call)
    how |= {"BIAS": call.type("bias"), "FACTORS": call.type("factors"), "LISTED": ids is not None}
    warps = min(max(wide // VALUES_OF_WARP, 1), 8)
    args = (call.row, call.scratch_as(tl.float32, 0) if ids is None else ids)
    call.launch(_choose, (call.bucket.tokens,), *args, E=E, WIDE=wide, **how, num_warps=warps)


def scratch_bytes(call: Call) -> int:
    """Bytes of the ids left for the next row."""
    return chosen_bytes(call)

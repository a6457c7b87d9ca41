"""Attention of a tile of queries with wide heads to one context, with transposed products: see attention_wide.py.

Knows nothing about which queries are in a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import MASKED, add_product, narrow, tanh_of

WIDE = 256  # heads with more channels than this are wide


@triton.jit
def wide_context(
    q,
    table,
    kv,
    first_M,
    last_M,
    cap,
    CAPPED: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    STEP: tl.constexpr,
):
    """The maximum score and the sum of weights [M], and of weighted values [CHANNELS, M], for queries q [CHANNELS, M].

    Queries see positions [first, last), none where last is 0. `table` is the sequence's block table; `kv` points to the
    head's keys as if they were in block 0. Scores are exponents of two: q was scaled for that or, with a cap, divided
    by it, and the capped score is scaled.
    """
    CHANNELS: tl.constexpr = q.shape[0]
    M: tl.constexpr = q.shape[1]
    i, c = tl.arange(0, STEP), tl.arange(0, CHANNELS)[None, :]
    low = tl.min(tl.where(last_M > 0, first_M, 2147483647), axis=0) // STEP * STEP
    high = tl.max(last_M, axis=0)
    top, total = tl.full([M], MASKED, tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([CHANNELS, M], tl.float32)
    for start in tl.range(low, high, STEP, disable_licm=True):
        j = start + i
        there = (j < high)[:, None] & (c < C)
        block = tl.load(table + j // Z, mask=j < high, other=0)
        at = kv.to(tl.pointer_type(tl.uint8), bitcast=True) + block.to(tl.int64) * BLOCK_BYTES
        at = (at.to(tl.pointer_type(KV_TYPE), bitcast=True) + j % Z * C)[:, None] + c
        k = tl.load(at, mask=there, other=0.0)
        v = tl.load(at + K * Z * C, mask=there, other=0.0)
        scores = add_product(tl.zeros([STEP, M], tl.float32), k, q)
        if CAPPED:
            scores = cap * tanh_of(scores)
        seen = (j[:, None] >= first_M[None, :]) & (j[:, None] < last_M[None, :])
        scores = tl.where(seen, scores, MASKED)
        higher = tl.maximum(top, tl.max(scores, axis=0))
        base = tl.where(higher == MASKED, 0.0, higher)
        p = tl.exp2(scores - base[None, :])
        keep = tl.exp2(top - base)
        acc = add_product(acc * keep[None, :], tl.trans(v), narrow(p, KV_TYPE))
        total = total * keep + tl.sum(p, axis=0)
        top = higher
    return top, total, acc

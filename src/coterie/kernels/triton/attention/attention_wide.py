"""attention of lone tokens with wide heads: more than 256 channels, as some layers of Gemma 4 have.

As in attention.py, but with transposed products, as in latent_attention.py: keys are the left operand for scores, and
transposed values for sums. Both operands then come from shared memory; queries of 512 channels as the left operand
would take more registers than a thread has. Knows nothing about tokens with others of their sequence in the step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import (
    MASKED,
    integer,
    launch_dependents,
    pointer,
    real,
    softcap_of,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.attention.attention_chunks import CAP, PAGES, SCALE, WINDOW, Q, Y, growth_factor, sink_of
from coterie.kernels.triton.attention.attention_mask import first_seen
from coterie.kernels.triton.attention.pages import SEQUENCE, block_of, page_at
from coterie.kernels.triton.product.single_token import add_split_product, find_lone_token

WARPS = 8
STEP_FLOAT32 = 16  # positions read at once, of pages in float32


# `spans` follows from the bucket's context and is not specialised, or contexts would compile kernels of their own.
@triton.jit(do_not_specialize=["spans"])
def lone_tokens_wide(
    row,
    partials,
    spans,
    H: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    STEP: tl.constexpr,
    CAPPED: tl.constexpr,
    GROWS: tl.constexpr,
    SINK: tl.constexpr,
    ONE: tl.constexpr,
    SPAN: tl.constexpr,
    LIMITED: tl.constexpr,
    DECODES: tl.constexpr,
    SEARCH: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """A program has the query heads of a kv head and one span; it stores `partials`, or y if there is ONE span."""
    launch_dependents(WHEN)
    i, head, span = unit_index(unit, 0), unit_index(unit, 1), unit_index(unit, 2)
    t, alone = find_lone_token(row, i, DECODES, SEARCH)
    position = tl.load(pointer(row, PAGES, tl.int32) + t, mask=alone, other=-1)
    sequence = tl.load(pointer(row, PAGES + SEQUENCE, tl.int32) + t, mask=alone, other=0)
    first = first_seen(position, integer(row, WINDOW))
    number = span + first // SPAN if LIMITED else span
    low, high = tl.maximum(first, number * SPAN), tl.minimum(position + 1, (number + 1) * SPAN)
    g, c = tl.arange(0, QUERIES), tl.arange(0, CHANNELS)
    query = head * (H // K) + g
    of_query = (t.to(tl.int64) * H + query)[None, :] * C
    mask = (g < H // K)[None, :] & (c < C)[:, None]
    scale, cap = real(row, SCALE).to(tl.float32) * growth_factor(row, position, GROWS), real(row, CAP).to(tl.float32)
    sink = sink_of(row, query, g < H // K, SINK)
    wait_for_previous(WHEN)
    if low < high:
        q = tl.load(pointer(row, Q, tl.float32) + of_query + c[:, None], mask=mask, other=0.0)
        top, total = tl.full([QUERIES], MASKED, tl.float32), tl.zeros([QUERIES], tl.float32)
        acc = tl.zeros([CHANNELS, QUERIES], tl.float32)
        for start in tl.range(low, high, STEP, disable_licm=True):
            j = start + tl.arange(0, STEP)
            seen = j < high
            block = block_of(row, PAGES, sequence, j, seen, Z)
            keys = page_at(row, PAGES, block, j, 0, head, KV_TYPE, K, C, Z, BLOCK_BYTES)[:, None] + c[None, :]
            there = seen[:, None] & (c < C)[None, :]
            k = tl.load(keys, mask=there, other=0.0)
            v = tl.load(keys + K * Z * C, mask=there, other=0.0)
            scores = add_split_product(tl.zeros([STEP, QUERIES], tl.float32), k, q, KV_TYPE) * scale
            if CAPPED:
                scores = softcap_of(scores, cap)
            scores = tl.where(seen[:, None], scores, MASKED)
            higher = tl.maximum(top, tl.max(scores, axis=0))
            p, keep = tl.exp(scores - higher[None, :]), tl.exp(top - higher)
            acc = add_split_product(acc * keep[None, :], tl.trans(v), p, KV_TYPE)
            total = total * keep + tl.sum(p, axis=0)
            top = higher
        if ONE:
            if SINK is not None:
                total += tl.exp(sink - top)
            tl.store(pointer(row, Y, tl.float32) + of_query + c[:, None], acc / total[None, :], mask=mask)
        else:
            one = partials + ((i.to(tl.int64) * H + query) * spans + span) * (C + 2)
            tl.store(one[None, :] + c[:, None], acc, mask=mask)
            tl.store(one + C, top, mask=g < H // K)
            tl.store(one + C + 1, total, mask=g < H // K)

"""attention: y = softmax(scale * q @ k.T, causal, within the window) @ v over the pages of each token's sequence.

q and y are [T, H, C] in float32; keys and values have the pages' type. H / K query heads share a kv head.

A token is alone if its sequence has no other token in the step, as in decode:

    alone       a program has the query heads of a kv head and one span of the context, which begins at a multiple of
                its length; it writes an unnormalised sum, a maximum and a total to scratch, and a second launch
                combines a token's spans in order; with a window, there are only as many spans as it can touch
    chunks      a program has a tile of tokens x query heads of a kv head, see attention_chunks.py

A step with both kinds launches both kernels, and each skips the other's tokens. For lone tokens, queries and softmax
weights are split into two values of the pages' type, so results are those of float32 within 2^-16; in chunks, they are
rounded to that type. A token's result depends on whether it is alone (or on the bucket, where that has one sequence),
and on nothing else of the batch. Tokens of a sequence must be adjacent in the step.

Knows nothing about who owns the pages.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.core.errors import UnsupportedError
from coterie.kernels.triton.arithmetic import (
    EARLY,
    MASKED,
    add_product,
    integer,
    launch_dependents,
    narrow,
    pointer,
    real,
    softcap_of,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.attention.attention_chunks import (
    CAP,
    MIN_DOT,
    PAGES,
    SCALE,
    WINDOW,
    Q,
    Y,
    channels_of,
    growth_factor,
    is_capped,
    is_growing,
    launch_chunks,
    sink_of,
)
from coterie.kernels.triton.attention.attention_mask import BIASED, first_seen
from coterie.kernels.triton.attention.attention_wide import STEP_FLOAT32, WARPS, lone_tokens_wide
from coterie.kernels.triton.attention.pages import SEQUENCE, Pages, block_of, page_at
from coterie.kernels.triton.attention.wide_context import WIDE
from coterie.kernels.triton.product.single_token import find_lone_token
from coterie.kernels.triton.product.staged_ahead import staged_ahead_bytes
from coterie.kernels.triton.rows import TORCH, Call
from coterie.kernels.triton.tiles import power_of_two


@triton.jit
def _pages_at(
    row,
    sequence,
    head,
    j,
    there,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Pointers to keys and to values [len(j), CHANNELS] at positions j of a sequence; `there` masks the block table."""
    c = tl.arange(0, CHANNELS)
    block = block_of(row, PAGES, sequence, j, there, Z)
    keys = page_at(row, PAGES, block, j, 0, head, KV_TYPE, K, C, Z, BLOCK_BYTES)
    values = page_at(row, PAGES, block, j, 1, head, KV_TYPE, K, C, Z, BLOCK_BYTES)
    return keys[:, None] + c[None, :], values[:, None] + c[None, :]


@triton.jit
def _pages_of(
    row,
    sequence,
    head,
    j,
    there,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Keys and values [len(j), CHANNELS] at positions j of a sequence; 0 where `there` is false."""
    keys, values = _pages_at(row, sequence, head, j, there, KV_TYPE, K, C, Z, BLOCK_BYTES, CHANNELS)
    mask = there[:, None] & (tl.arange(0, CHANNELS) < C)[None, :]
    return tl.load(keys, mask=mask, other=0.0), tl.load(values, mask=mask, other=0.0)


@triton.jit
def _attend(q, k, v, top, total, acc, scale, cap, seen, CAPPED: tl.constexpr, KV_TYPE: tl.constexpr):
    """One online-softmax step: queries [M, CHANNELS] with keys and values [STEP, CHANNELS] at `seen` positions.

    Returns the new maximum, total and sum of weighted values, in float32.
    """
    scores = _product(tl.zeros([q.shape[0], k.shape[0]], tl.float32), q, tl.trans(k), KV_TYPE) * scale
    if CAPPED:
        scores = softcap_of(scores, cap)
    scores = tl.where(seen[None, :], scores, MASKED)
    higher = tl.maximum(top, tl.max(scores, axis=1))
    base = tl.where(higher == MASKED, 0.0, higher)
    p = tl.exp(scores - base[:, None])
    keep = tl.exp(top - base)
    acc = _product(acc * keep[:, None], p, v, KV_TYPE)
    return higher, total * keep + tl.sum(p, axis=1), acc


@triton.jit
def _product(acc, a, b, TYPE: tl.constexpr):
    """acc + a @ b for float32 a, which is split into two values of b's type: a rounded, and the remainder rounded."""
    upper = narrow(a, TYPE)
    acc = add_product(acc, upper, b)
    if TYPE != tl.float32:
        acc = add_product(acc, narrow(a - upper.to(tl.float32), TYPE), b)
    return acc


@triton.jit
def _seen_of(row, position, span, SPAN: tl.constexpr, LIMITED: tl.constexpr):
    """Positions [low, high) of a span that a token sees. LIMITED: spans count from the first one that it sees."""
    first = first_seen(position, integer(row, WINDOW))
    if LIMITED:
        span += first // SPAN
    return tl.maximum(first, span * SPAN), tl.minimum(position + 1, (span + 1) * SPAN)


# Program (i, kv head, span) attends the span for sequence i's lone token. Results go to y if there is ONE span, else to
# partials [sequences, H, spans, C + 2] in float32: sums, maximum, total.
# `spans` follows from the bucket's context and is not specialised, or contexts would compile kernels of their own.
@triton.jit(do_not_specialize=["spans"])
def _lone_tokens(
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
    launch_dependents(WHEN)
    i, head, span = unit_index(unit, 0), unit_index(unit, 1), unit_index(unit, 2)
    t, alone = find_lone_token(row, i, DECODES, SEARCH)
    position = tl.load(pointer(row, PAGES, tl.int32) + t, mask=alone, other=-1)
    sequence = tl.load(pointer(row, PAGES + SEQUENCE, tl.int32) + t, mask=alone, other=0)
    low, high = _seen_of(row, position, span, SPAN, LIMITED)
    # The first step's keys and values, without the token's own: the previous launch may still be storing those.
    first, c = low // STEP * STEP, tl.arange(0, CHANNELS)
    j = first + tl.arange(0, STEP)
    old = (j >= low) & (j < high)
    if WHEN == EARLY:
        old = old & (j < position)
    k, v = _pages_of(row, sequence, head, j, old, KV_TYPE, K, C, Z, BLOCK_BYTES, CHANNELS)
    if WHEN == EARLY:
        own = tl.zeros([1], tl.int32) + position
        own_k, own_v = _pages_at(row, sequence, head, own, own >= 0, KV_TYPE, K, C, Z, BLOCK_BYTES, CHANNELS)
    g, query = tl.arange(0, QUERIES), head * (H // K) + tl.arange(0, QUERIES)
    at = (t.to(tl.int64) * H + query)[:, None] * C + c[None, :]
    q_at, y_at = pointer(row, Q, tl.float32) + at, pointer(row, Y, tl.float32) + at
    scale, cap = real(row, SCALE).to(tl.float32) * growth_factor(row, position, GROWS), real(row, CAP).to(tl.float32)
    sink = sink_of(row, query, g < H // K, SINK)
    wait_for_previous(WHEN)
    if low < high:
        mask = (g < H // K)[:, None] & (c < C)[None, :]
        q = tl.load(q_at, mask=mask, other=0.0)
        if WHEN == EARLY:
            is_own = (j == position)[:, None]
            k = tl.where(is_own, tl.load(own_k, mask=(c < C)[None, :], other=0.0), k)
            v = tl.where(is_own, tl.load(own_v, mask=(c < C)[None, :], other=0.0), v)
        top, total = tl.full([QUERIES], MASKED, tl.float32), tl.zeros([QUERIES], tl.float32)
        acc = tl.zeros([QUERIES, CHANNELS], tl.float32)
        top, total, acc = _attend(q, k, v, top, total, acc, scale, cap, (j >= low) & (j < high), CAPPED, KV_TYPE)
        for start in tl.range(first + STEP, high, STEP):
            j = start + tl.arange(0, STEP)
            seen = j < high
            k, v = _pages_of(row, sequence, head, j, seen, KV_TYPE, K, C, Z, BLOCK_BYTES, CHANNELS)
            top, total, acc = _attend(q, k, v, top, total, acc, scale, cap, seen, CAPPED, KV_TYPE)
        if ONE:
            if SINK is not None:
                total += tl.exp(sink - top)
            tl.store(y_at, acc / total[:, None], mask=mask)
        else:
            one = partials + ((i.to(tl.int64) * H + query) * spans + span) * (C + 2)
            tl.store(one[:, None] + c[None, :], acc, mask=mask)
            tl.store(one + C, top, mask=g < H // K)
            tl.store(one + C + 1, total, mask=g < H // K)


@triton.jit(do_not_specialize=["spans"])
def join(
    row,
    partials,
    spans,
    H: tl.constexpr,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    SINK: tl.constexpr,
    SPAN: tl.constexpr,
    LIMITED: tl.constexpr,
    DECODES: tl.constexpr,
    SEARCH: tl.constexpr,
    JOINED: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """y of one query head of a lone token: its spans' partial results, combined in order.

    A program per (sequence, head).
    """
    launch_dependents(WHEN)
    i, head = unit_index(unit, 0), unit_index(unit, 1)
    t, alone = find_lone_token(row, i, DECODES, SEARCH)
    position = tl.load(pointer(row, PAGES, tl.int32) + t, mask=alone, other=-1)
    window = integer(row, WINDOW)
    c = tl.arange(0, CHANNELS)
    y = pointer(row, Y, tl.float32) + (t.to(tl.int64) * H + head) * C + c
    sink = sink_of(row, head, True, SINK)
    wait_for_previous(WHEN)
    if alone:
        top = -float("inf")
        total = 0.0
        acc = tl.zeros([CHANNELS], tl.float32)
        one = partials + (i.to(tl.int64) * H + head) * spans * (C + 2)
        least = first_seen(position, window) // SPAN
        most = position // SPAN
        if LIMITED:
            one -= least * (C + 2)
        for first in tl.range(least // JOINED * JOINED, most + 1, JOINED):
            span = first + tl.arange(0, JOINED)
            there = (span >= least) & (span <= most)
            at = one + span * (C + 2)
            tops = tl.load(at + C, mask=there, other=MASKED)
            higher = tl.maximum(top, tl.max(tops, axis=0))
            keep = tl.exp(top - higher)
            weights = tl.exp(tops - higher)
            sums = tl.load(at[:, None] + c[None, :], mask=there[:, None] & (c < C)[None, :], other=0.0)
            acc = acc * keep + tl.sum(sums * weights[:, None], axis=0)
            total = total * keep + tl.sum(tl.load(at + C + 1, mask=there, other=0.0) * weights, axis=0)
            top = higher
        if SINK is not None:
            total += tl.exp(sink - top)
        tl.store(y, acc / total, mask=c < C)


def _spans(call: Call) -> tuple[int, bool]:
    """How many spans a token may see, and whether its window leaves fewer than the context has."""
    (span, _), window = call.tiles.span(call.integer("C")), call.integer("window")
    every = max(triton.cdiv(call.bucket.context, span), 1)
    of_window = triton.cdiv(window - 1, span) + 1 if window > 0 else every
    return min(every, of_window), of_window < every


def launch(call: Call) -> None:
    """Decode by spans of the context, chunks by tiles of tokens; both where the step may have both.

    A bucket for many tokens of one sequence has chunks only, even where a token comes alone.
    """
    pages, H, tiles, bucket = Pages.of(call), call.integer("H"), call.tiles, call.bucket
    channels = channels_of(pages.C)
    if call.name == BIASED:
        _check_biased(call, pages.C)
    shared = {"H": H, "CHANNELS": channels, **pages.constants()}
    group, (spans, limited) = power_of_two(H // pages.K), _spans(call)
    span, warps = tiles.span(pages.C)
    if not bucket.decodes:
        launch_chunks(call, H, pages)
        if bucket.sequences == 1:
            return
    partials = call.scratch_as(tl.float32, _partials(call))
    split = {"SPAN": span, "LIMITED": limited, "DECODES": bucket.decodes, "SEARCH": tiles.elements}
    sink = call.type("sinks")  # for the kernel that stores y
    wide = TORCH[pages.KV_TYPE].itemsize * channels
    how = {
        "CAPPED": is_capped(call),
        "GROWS": is_growing(call),
        "ONE": spans == 1,
        "SINK": sink if spans == 1 else None,
        "QUERIES": max(group, MIN_DOT),
        "STEP": max(min(tiles.span_bytes // wide, span), MIN_DOT),
    }
    grid: tuple[int, ...] = (bucket.sequences, pages.K, spans)
    kernel, stages = _lone_tokens, 3
    if channels > WIDE:
        how["STEP"] = STEP_FLOAT32 if pages.KV_TYPE is tl.float32 else tiles.wide_step
        kernel, warps, stages = lone_tokens_wide, WARPS, 1  # shared memory has no room for two steps of keys and values
    call.launch(kernel, grid, call.row, partials, spans, **shared, **how, **split, num_warps=warps, num_stages=stages)
    if spans > 1:
        grid = (bucket.sequences, H)
        how = {"C": pages.C, "CHANNELS": channels, "SINK": sink, "JOINED": max(tiles.joined // channels, 1)}
        call.launch(join, grid, call.row, partials, spans, H=H, **how, **split, num_warps=1)


def _check_biased(call: Call, C: int) -> None:
    """Raise UnsupportedError for biases by distance that kernels would ignore: with wide heads, and in decode."""
    fact = ""
    if channels_of(C) > WIDE:
        fact = f"heads of {C} channels with biases by distance are not supported, {WIDE} are"
    elif call.integer("window") >= 0:
        fact = "attention with biases by distance has tokens that see only what is before them, and whole texts are run"
    if fact:
        raise UnsupportedError("the GPU's kernels", fact, "use --device cpu")


def _partials(call: Call) -> int:
    spans, _ = _spans(call)
    in_spans = spans > 1 and (call.bucket.decodes or call.bucket.sequences > 1)
    return call.bucket.sequences * call.integer("H") * spans * (call.integer("C") + 2) if in_spans else 0


def scratch_bytes(call: Call) -> int:
    """Bytes of partial results, or of what is staged for the next launch."""
    return max(4 * _partials(call), staged_ahead_bytes(call, call.integer("H") * call.integer("C")))

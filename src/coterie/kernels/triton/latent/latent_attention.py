"""latent_attention: attention of all heads to one latent row per position, which serves as key and as value.

The first LATENT values of a row are the value. For lone tokens this is as in attention.py: a program has some query
heads and one span of the context, and a second launch combines spans. But the products are transposed, so that page
rows are the left operand:

    scores [STEP, QUERIES] = rows [STEP, LATENT | P] @ q.T        sums [LATENT, QUERIES] += rows.T @ weights.T

Tensor cores then read rows and queries from shared memory, where 16 queries of 576 channels would take more registers
than a thread has; and one copy of a row serves both products. Tokens with others of their sequence in the step:
latent_chunks.py. Knows nothing about who owns the pages.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import (
    MASKED,
    launch_dependents,
    pointer,
    real,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.attention.attention import join
from coterie.kernels.triton.attention.attention_chunks import MIN_DOT, PAGES, SCALE, Q, Y, channels_of
from coterie.kernels.triton.attention.pages import SEQUENCE, Pages, block_of, latent_row_at
from coterie.kernels.triton.latent.latent_chunks import launch_chunks
from coterie.kernels.triton.product.single_token import add_split_product, find_lone_token
from coterie.kernels.triton.rows import Call
from coterie.kernels.triton.tiles import power_of_two

MAX_QUERIES = 32  # per program: shared memory has no room for more with two steps of rows
STEP_FLOAT32 = 16  # positions read at once, of pages in float32
STAGES, WARPS = 2, 8


@triton.jit(do_not_specialize=["spans"])
def _lone_tokens(
    row,
    partials,
    spans,
    H: tl.constexpr,
    KV_TYPE: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    LATENT: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROTATED: tl.constexpr,
    QUERIES: tl.constexpr,
    STEP: tl.constexpr,
    ONE: tl.constexpr,
    SPAN: tl.constexpr,
    DECODES: tl.constexpr,
    SEARCH: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """Program (i, group of heads, span) attends the span for sequence i's lone token; to y if there is ONE span."""
    launch_dependents(WHEN)
    i, group, span = unit_index(unit, 0), unit_index(unit, 1), unit_index(unit, 2)
    t, alone = find_lone_token(row, i, DECODES, SEARCH)
    position = tl.load(pointer(row, PAGES, tl.int32) + t, mask=alone, other=-1)
    sequence = tl.load(pointer(row, PAGES + SEQUENCE, tl.int32) + t, mask=alone, other=0)
    low, high = span * SPAN, tl.minimum(position + 1, (span + 1) * SPAN)
    c, r, query = tl.arange(0, CHANNELS), tl.arange(0, ROTATED), group * QUERIES + tl.arange(0, QUERIES)
    of_query = (t.to(tl.int64) * H + query)[None, :]
    is_query, is_latent, is_rotated = (query < H)[None, :], c < LATENT, LATENT + r < C
    wait_for_previous(WHEN)
    if low < high:
        q = pointer(row, Q, tl.float32) + of_query * C
        latent_q = tl.load(q + c[:, None], mask=is_query & is_latent[:, None], other=0.0)
        rotated_q = tl.load(q + LATENT + r[:, None], mask=is_query & is_rotated[:, None], other=0.0)
        scale = real(row, SCALE).to(tl.float32)
        top, total = tl.full([QUERIES], MASKED, tl.float32), tl.zeros([QUERIES], tl.float32)
        acc = tl.zeros([CHANNELS, QUERIES], tl.float32)
        for start in tl.range(low, high, STEP, disable_licm=True):
            j = start + tl.arange(0, STEP)
            seen = j < high
            block = block_of(row, PAGES, sequence, j, seen, Z)
            rows = latent_row_at(row, PAGES, block, j, KV_TYPE, C, Z, BLOCK_BYTES)[:, None]
            latent = tl.load(rows + c[None, :], mask=seen[:, None] & is_latent[None, :], other=0.0)
            rotated = tl.load(rows + LATENT + r[None, :], mask=seen[:, None] & is_rotated[None, :], other=0.0)
            scores = add_split_product(tl.zeros([STEP, QUERIES], tl.float32), latent, latent_q, KV_TYPE)
            scores = add_split_product(scores, rotated, rotated_q, KV_TYPE) * scale
            scores = tl.where(seen[:, None], scores, MASKED)
            higher = tl.maximum(top, tl.max(scores, axis=0))
            p = tl.exp(scores - higher[None, :])
            keep = tl.exp(top - higher)
            acc = add_split_product(acc * keep[None, :], tl.trans(latent), p, KV_TYPE)
            total = total * keep + tl.sum(p, axis=0)
            top = higher
        there = is_query & is_latent[:, None]
        if ONE:
            y = pointer(row, Y, tl.float32) + of_query * LATENT
            tl.store(y + c[:, None], acc / total[None, :], mask=there)
        else:
            one = partials + ((i.to(tl.int64) * H + query) * spans + span) * (LATENT + 2)
            tl.store(one[None, :] + c[:, None], acc, mask=there)
            tl.store(one + LATENT, top, mask=query < H)
            tl.store(one + LATENT + 1, total, mask=query < H)


def _spans(call: Call) -> int:
    """How many spans a token may see."""
    span, _ = call.tiles.span(call.integer("latent"))
    return max(-(-call.bucket.context // span), 1)


def launch(call: Call) -> None:
    """Decode by spans of the context, chunks by tiles of queries; both where the step may have both (attention.py)."""
    pages, H, latent, bucket = Pages.of(call), call.integer("H"), call.integer("latent"), call.bucket
    shared = {"H": H, **pages.constants(), "LATENT": latent}
    del shared["K"]
    shared |= {"CHANNELS": channels_of(latent), "ROTATED": channels_of(pages.C - latent)}
    if not bucket.decodes:
        launch_chunks(call, shared)
        if bucket.sequences == 1:
            return
    spans, (span, _) = _spans(call), call.tiles.span(latent)
    partials = call.scratch_as(tl.float32, _partials(call))
    split = {"SPAN": span, "DECODES": bucket.decodes, "SEARCH": call.tiles.elements}
    queries = max(min(power_of_two(H), MAX_QUERIES), MIN_DOT)
    step = STEP_FLOAT32 if pages.KV_TYPE is tl.float32 else call.tiles.wide_step
    how = {"ONE": spans == 1, "QUERIES": queries, "STEP": step}
    grid: tuple[int, ...] = (bucket.sequences, triton.cdiv(H, queries), spans)
    call.launch(
        _lone_tokens, grid, call.row, partials, spans, **shared, **how, **split, num_warps=WARPS, num_stages=STAGES
    )
    if spans > 1:
        channels = channels_of(latent)
        joins = {"C": latent, "CHANNELS": channels, "JOINED": max(call.tiles.joined // channels, 1), **split}
        grid = (bucket.sequences, H)
        call.launch(join, grid, call.row, partials, spans, H=H, SINK=None, LIMITED=False, **joins, num_warps=1)


def _partials(call: Call) -> int:
    spans = _spans(call)
    in_spans = spans > 1 and (call.bucket.decodes or call.bucket.sequences > 1)
    return call.bucket.sequences * call.integer("H") * spans * (call.integer("latent") + 2) if in_spans else 0


def scratch_bytes(call: Call) -> int:
    """Bytes of partial results: float32 for each sequence, head, span and latent channel, and two more per span."""
    return 4 * _partials(call)

"""attention of chunks: tokens with others of their sequence in the same step, in tiles of tokens x query heads.

A program has the query heads of a kv head for some tokens, and walks the context of each of their sequences with an
online softmax, in float32. Steps that all tokens see whole are not masked: of a long context, all but the last few.
Knows nothing about tokens that are alone.
"""

from __future__ import annotations

from math import log

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import (
    MASKED,
    add_product,
    integer,
    launch_dependents,
    narrow,
    pointer,
    real,
    tanh_of,
    wait_for_previous,
)
from coterie.kernels.triton.attention.attention_mask import BIASED, bias_of, near_of, seen_of
from coterie.kernels.triton.attention.pages import KV, LAYER, SEQUENCE, TABLES, WIDTH, Pages
from coterie.kernels.triton.attention.wide_context import WIDE as _WIDE
from coterie.kernels.triton.attention.wide_context import wide_context
from coterie.kernels.triton.product.staged_ahead import is_stored, stage_for_next
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

Q, PAGES, Y, T, HEADS, SCALE, WINDOW, CAP, GROWTH, EVERY, SINKS = operand_words(
    "attention", "q", "positions", "y", "T", "H", "scale", "window", "cap", "growth", "every", "sinks"
)
MIN_DOT = 16  # smallest number of rows or channels that tl.dot accepts
NARROW = 64  # channels that tiles.queries is for; with more channels, a tile has fewer queries
MIN_QUERIES = 64  # rows of a product on Hopper's tensor cores
WIDE = tl.constexpr(_WIDE)
# Wide heads: queries per tile and warps; for float32 pages: queries, positions read at once, warps.
WIDE_QUERIES, WIDE_WARPS, WIDE_FLOAT32 = 32, 8, (16, 16, 8)
LOG2_E = tl.constexpr(1 / log(2))


@triton.jit
def growth_factor(row, position, GROWS: tl.constexpr):
    """The factor on queries at these positions, 1 + growth * log(1 + position // every); 1 where they do not grow."""
    factor = 1.0
    if GROWS:
        steps = (position // integer(row, EVERY).to(tl.int32)).to(tl.float32)
        factor = 1.0 + real(row, GROWTH).to(tl.float32) * tl.log(1.0 + steps)
    return factor


@triton.jit
def sink_of(row, head, mask, SINK: tl.constexpr):
    """Attention sinks of query heads: scores without a value, which are added to the softmax total once, at the end."""
    sink = 0.0
    if SINK is not None:
        sink = tl.load(pointer(row, SINKS, SINK) + head, mask=mask, other=0.0).to(tl.float32)
    return sink


@triton.jit
def in_chunk(sequence, t, tokens, mask):
    """The sequence of tokens t, and whether the token before or after is of the same one."""
    mine = tl.load(sequence + t, mask=mask, other=-1)
    before = tl.load(sequence + t - 1, mask=mask & (t > 0), other=-1)
    after = tl.load(sequence + t + 1, mask=mask & (t + 1 < tokens), other=-1)
    return mine, mask & ((mine == before) | (mine == after))


@triton.jit
def _blocks(
    state,
    q,
    table,
    slots,
    low,
    high,
    first_M,
    last_M,
    cap,
    near,
    SLOPES: tl.constexpr,
    CAPPED: tl.constexpr,
    SEEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    STEP: tl.constexpr,
):
    """Online softmax over positions [low, high) in steps: queries q [M, CHANNELS] see [first, last), or all (SEEN).

    `table` is the sequence's block table; `slots` [STEP, CHANNELS] point to a step's keys as if in block 0. Scores are
    exponents of two: q, or with a cap the capped score, was scaled for that. `state`: maximum score, sum of weights,
    sum of weighted values.
    """
    top, total, acc = state
    i = tl.arange(0, STEP)
    there = (tl.arange(0, slots.shape[1]) < C)[None, :]
    # Block numbers are loaded one step before the keys that need them.
    block = tl.load(table + (low + i) // Z, mask=low + i < high, other=0)
    for start in tl.range(low, high, STEP):
        j = start + i
        if BLOCK_BYTES * 8 % KV_TYPE.primitive_bitwidth == 0:
            at = slots + (block.to(tl.int64) * (BLOCK_BYTES * 8 // KV_TYPE.primitive_bitwidth))[:, None]
        else:
            at = slots.to(tl.pointer_type(tl.uint8), bitcast=True) + (block.to(tl.int64) * BLOCK_BYTES)[:, None]
            at = at.to(tl.pointer_type(KV_TYPE), bitcast=True)
        if STEP % Z != 0:
            at += ((j % Z - i % Z) * C)[:, None]
        block = tl.load(table + (j + STEP) // Z, mask=j + STEP < high, other=0)
        if SEEN and slots.shape[1] == C:
            k = tl.load(at)
        else:
            mask = there if SEEN else there & (j < high)[:, None]
            k = tl.load(at, mask=mask, other=0.0)
        scores = add_product(tl.zeros([q.shape[0], STEP], tl.float32), q, tl.trans(k))
        if CAPPED:
            scores = cap * tanh_of(scores)
        if near is not None:
            scores += bias_of(near, j, SLOPES) * LOG2_E
        if not SEEN:
            seen = j[None, :] < last_M[:, None]
            if WINDOWED:
                seen &= j[None, :] >= first_M[:, None]
            scores = tl.where(seen, scores, MASKED)
        higher = tl.maximum(top, tl.max(scores, axis=1))
        base = higher if SEEN else tl.where(higher == MASKED, 0.0, higher)
        p = tl.exp2(scores - base[:, None])
        keep = tl.exp2(top - base)
        if SEEN and slots.shape[1] == C:
            v = tl.load(at + K * Z * C)
        else:
            v = tl.load(at + K * Z * C, mask=mask, other=0.0)
        acc = add_product(acc * keep[:, None], narrow(p, KV_TYPE), v)
        total = total * keep + tl.sum(p, axis=1)
        top = higher
    return top, total, acc


@triton.jit
def _scaled(row, q, position_M, CAPPED: tl.constexpr, GROWS: tl.constexpr, KV_TYPE: tl.constexpr):
    """Queries [M, CHANNELS] scaled and rounded to KV_TYPE, and their cap: scores are exponents of two."""
    scale, cap = real(row, SCALE) * LOG2_E, (real(row, CAP) * LOG2_E).to(tl.float32)
    if CAPPED:
        scale = real(row, SCALE) / real(row, CAP)
    if GROWS:
        q *= growth_factor(row, position_M, GROWS)[:, None]
    return narrow(q * scale.to(tl.float32), KV_TYPE), cap


@triton.jit
def _context(
    q,
    table,
    kv,
    mine,
    position_M,
    low_M,
    cap,
    near,
    SLOPES: tl.constexpr,
    CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    STEP: tl.constexpr,
):
    """Attend from the queries that are `mine` to their context.

    Returns the maximum score, and the sums of weights and of weighted values.
    """
    slots = kv + (tl.arange(0, STEP) % Z)[:, None] * C + tl.arange(0, q.shape[1])[None, :]
    high = tl.max(tl.where(mine, position_M + 1, 0), axis=0)
    last_M = tl.where(mine, position_M + 1, 0)
    state = (
        tl.full([q.shape[0]], MASKED, tl.float32),
        tl.zeros([q.shape[0]], tl.float32),
        tl.zeros([q.shape[0], slots.shape[1]], tl.float32),
    )
    whole = 0
    if WINDOWED:
        low = tl.min(tl.where(mine, low_M, 2147483647), axis=0) // STEP * STEP
        whole = tl.cdiv(tl.max(tl.where(mine, low_M, 0), axis=0), STEP) * STEP
        state = _blocks(
            state, q, table, slots, low, tl.minimum(whole, high), low_M, last_M, cap, near, SLOPES, CAPPED, False, True,
            KV_TYPE, K, C, Z, BLOCK_BYTES, STEP,
        )  # fmt: skip
    # Steps that every token sees whole need no mask; a long context is mostly these.
    end_of_all = tl.min(tl.where(mine, position_M + 1, 2147483647), axis=0) // STEP * STEP
    state = _blocks(
        state, q, table, slots, whole, end_of_all, low_M, last_M, cap, near, SLOPES, CAPPED, True, WINDOWED,
        KV_TYPE, K, C, Z, BLOCK_BYTES, STEP,
    )  # fmt: skip
    return _blocks(
        state, q, table, slots, tl.maximum(whole, end_of_all), high, low_M, last_M, cap, near, SLOPES, CAPPED, False,
        WINDOWED, KV_TYPE, K, C, Z, BLOCK_BYTES, STEP,
    )  # fmt: skip


@triton.jit
def _with_sinks(row, head, mask, total, top, SINK: tl.constexpr):
    """Sums of weights, which are 2^(score - top), plus those of sinks."""
    if SINK is not None:
        total += tl.exp2(sink_of(row, head, mask, SINK) * LOG2_E - top)
    return total


@triton.jit
def _chunk(
    row, ahead, AHEAD: tl.constexpr, STORED: tl.constexpr, H: tl.constexpr, KV_TYPE: tl.constexpr, K: tl.constexpr,
    C: tl.constexpr, Z: tl.constexpr, BLOCK_BYTES: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr,
    GROUP: tl.constexpr, STEP: tl.constexpr, CAPPED: tl.constexpr, GROWS: tl.constexpr, SINK: tl.constexpr,
    BIAS: tl.constexpr, SLOPES: tl.constexpr, WINDOWED: tl.constexpr, BOTH: tl.constexpr, SINGLE: tl.constexpr,
    WHEN: tl.constexpr,
):  # fmt: skip
    """Program (kv head, tile): TOKENS tokens x GROUP query heads, one run of a sequence's tokens after another.

    y [T, H, C] is stored in float32 if STORED, and rounded to AHEAD for the next launch if that is a type.
    """
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    tokens, sequence_at = integer(row, T), pointer(row, PAGES + SEQUENCE, tl.int32)
    # The last tokens of a chunk have the most work: for all heads, they come first.
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * TOKENS
    head, m = tl.program_id(0), tl.arange(0, TOKENS * GROUP)
    t = first + m // GROUP
    here = (t < tokens) & (m % GROUP < H // K)
    sequence_M, chunked = in_chunk(sequence_at, t, tokens, here)
    chunked = here if SINGLE else chunked
    place_M = tl.load(pointer(row, PAGES, tl.int32) + t, mask=here, other=0)
    low_M, position_M = seen_of(integer(row, WINDOW), sequence_at, t, sequence_M, place_M, tokens, here, BOTH)
    head_M = tl.minimum(head * (H // K) + m % GROUP, H - 1)
    near = None if BIAS is None else near_of(row, sequence_at, t, sequence_M, place_M, tokens, here, head_M, BIAS)
    c, start, end = tl.arange(0, CHANNELS), first.to(tl.int64) * (H * C), tl.minimum(first + TOKENS, tokens)
    at = (m // GROUP * H + head * (H // K) + m % GROUP)[:, None] * C + c[None, :]
    q = tl.load(pointer(row, Q, tl.float32) + start + at, mask=here[:, None] & (c < C)[None, :], other=0.0)
    q, cap = _scaled(row, q, position_M, CAPPED, GROWS, KV_TYPE)
    kv = pointer(row, PAGES + KV, KV_TYPE) + (integer(row, PAGES + LAYER) * 2 * K + head) * (Z * C)
    run = tl.min(tl.where(chunked, t, end), axis=0)  # the first token of the next run of one sequence
    while run < end:
        sequence = tl.load(sequence_at + run)
        table = pointer(row, PAGES + TABLES, tl.int32) + sequence * integer(row, PAGES + WIDTH)
        stop = tl.min(tl.where(here & (t > run) & (sequence_M != sequence), t, end), axis=0)
        mine = here & (t >= run) & (t < stop)
        if CHANNELS > WIDE:
            last_M = tl.where(mine, position_M + 1, 0)
            top, total, acc = wide_context(
                tl.trans(q), table, kv, low_M, last_M, cap, CAPPED, KV_TYPE, K, C, Z, BLOCK_BYTES, STEP
            )  # fmt: skip
            acc = tl.trans(acc)
        else:
            top, total, acc = _context(
                q, table, kv, mine, position_M, low_M, cap, near, SLOPES, CAPPED, WINDOWED,
                KV_TYPE, K, C, Z, BLOCK_BYTES, STEP,
            )  # fmt: skip
        # Only this run's rows are stored: other rows were computed too, and may be NaN. The offset uses a size that is
        # loaded here, or the compiler would compute it before the loop, which has no registers to spare.
        mask = mine[:, None] & (c < C)[None, :]
        at = (m // GROUP * integer(row, HEADS) + head * (H // K) + m % GROUP)[:, None] * C + c[None, :]
        y = acc / _with_sinks(row, head * (H // K) + m % GROUP, mine, total, top, SINK)[:, None]
        if STORED:
            tl.store(pointer(row, Y, tl.float32) + start + at, y, mask=mask)
        if AHEAD is not None:
            tl.store(ahead + start + at, narrow(y, AHEAD), mask=mask)
        run = tl.min(tl.where(chunked & (t >= stop), t, end), axis=0)


def launch_chunks(call: Call, H: int, pages: Pages) -> None:
    """A program for each kv head and tile of tokens. It stores nothing for tokens that are alone in their sequences."""
    tiles, group, channels = call.tiles, power_of_two(H // pages.K), channels_of(pages.C)
    float32, wide = pages.KV_TYPE is tl.float32, 1 + (channels > 128)
    if channels > WIDE.value:
        queries, keys, warps = WIDE_FLOAT32 if float32 else (WIDE_QUERIES, tiles.wide_step, WIDE_WARPS)
    else:
        queries = max(tiles.queries * NARROW // max(channels, NARROW), MIN_QUERIES)
        keys, warps = tiles.keys // (4 if float32 else wide), wide * tiles.chunk_warps
    tokens = max(queries // group, 1)
    biased = call.type("bias") if call.name == BIASED else None
    how: dict[str, object] = {
        "H": H,
        "CHANNELS": channels,
        "TOKENS": tokens,
        "GROUP": group,
        "STEP": keys,
        "CAPPED": is_capped(call),
        "GROWS": is_growing(call),
        "SINK": call.type("sinks"),
        "BIAS": biased,
        "SLOPES": biased is not None and call.integer("reach") == 0,
        "WINDOWED": biased is None and call.integer("window") != 0,
        "BOTH": biased is None and call.integer("window") < 0,
        "SINGLE": call.bucket.sequences == 1,
        "num_warps": warps,
        "num_stages": 1 if channels > WIDE.value else tiles.chunk_stages,  # shared memory has no room for more
    }
    if channels <= NARROW:
        how["maxnreg"] = tiles.chunk_registers
    grid = (pages.K, triton.cdiv(call.bucket.tokens, tokens))
    ahead, how["AHEAD"] = stage_for_next(call, H * pages.C)
    how["STORED"] = is_stored(call, H * pages.C)
    call.launch(_chunk, grid, call.row, ahead, **pages.constants(), **how)


def is_capped(call: Call) -> bool:
    """Whether scores are capped: a cap of 0.0 has bits of 0."""
    return call.integer("cap") != 0


def is_growing(call: Call) -> bool:
    """Whether queries grow with their position."""
    return call.integer("growth") != 0


def channels_of(C: int) -> int:
    """Channels of a tile, padded for tensor cores."""
    return max(power_of_two(C), MIN_DOT)

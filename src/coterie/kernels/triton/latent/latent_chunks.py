"""latent_attention of chunks: tokens with others of their sequence in the same step, in tiles of queries.

Heads share the rows of a position, so the queries of all heads and tokens are one matrix [T H, C]: a program has some
adjacent rows of it, whatever H is, and walks the context of each sequence among them with an online softmax. One copy
of a position's row serves scores and sums.
Knows nothing about tokens that are alone.
"""

from __future__ import annotations

from collections.abc import Mapping

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
    wait_for_previous,
)
from coterie.kernels.triton.attention.attention_chunks import LOG2_E, PAGES, SCALE, Q, T, Y, in_chunk
from coterie.kernels.triton.attention.pages import KV, LAYER, SEQUENCE, TABLES, WIDTH
from coterie.kernels.triton.rows import Call, operand_words

(OF_VALUES,) = operand_words("latent_attention", "latent")
QUERIES, WARPS, STAGES = 32, 8, 2
QUERIES_FLOAT32, STEP_FLOAT32 = 16, 16


@triton.jit
def _context(
    queries,
    table,
    kv,
    last_M,
    KV_TYPE: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    LATENT: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROTATED: tl.constexpr,
    STEP: tl.constexpr,
):
    """Sums of weights [M] and of weighted rows [CHANNELS, M], for queries that see positions before `last_M`.

    `table` is the sequence's block table; `kv` points to the layer's row 0 as if it were in block 0. Scores are
    exponents of two.
    """
    latent_q, rotated_q = queries
    M: tl.constexpr = latent_q.shape[1]
    i, c, r = tl.arange(0, STEP), tl.arange(0, CHANNELS)[None, :], tl.arange(0, ROTATED)[None, :]
    high = tl.max(last_M, axis=0)
    top, total = tl.full([M], MASKED, tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([CHANNELS, M], tl.float32)
    # Block numbers are loaded one step before the rows that need them.
    block = tl.load(table + i // Z, mask=i < high, other=0)
    for start in tl.range(0, high, STEP, disable_licm=True):
        j = start + i
        at = kv.to(tl.pointer_type(tl.uint8), bitcast=True) + block.to(tl.int64) * BLOCK_BYTES
        at = (at.to(tl.pointer_type(KV_TYPE), bitcast=True) + j % Z * C)[:, None]
        block = tl.load(table + (j + STEP) // Z, mask=j + STEP < high, other=0)
        there = (j < high)[:, None]
        latent = tl.load(at + c, mask=there & (c < LATENT), other=0.0)
        rotated = tl.load(at + LATENT + r, mask=there & (LATENT + r < C), other=0.0)
        scores = add_product(tl.zeros([STEP, M], tl.float32), latent, latent_q)
        scores = add_product(scores, rotated, rotated_q)
        scores = tl.where(j[:, None] < last_M[None, :], scores, MASKED)
        higher = tl.maximum(top, tl.max(scores, axis=0))
        base = tl.where(higher == MASKED, 0.0, higher)
        p = tl.exp2(scores - base[None, :])
        keep = tl.exp2(top - base)
        acc = add_product(acc * keep[None, :], tl.trans(latent), narrow(p, KV_TYPE))
        total = total * keep + tl.sum(p, axis=0)
        top = higher
    return total, acc


@triton.jit
def _chunk(
    row,
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
    SINGLE: tl.constexpr,
    WHEN: tl.constexpr,
):
    """A program has QUERIES adjacent queries, and handles one run of a sequence's tokens after another."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    tokens = integer(row, T)
    # The last tokens of a chunk have the most work, so they come first.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * QUERIES
    m = first + tl.arange(0, QUERIES)
    t = m // H
    here = t < tokens
    sequence_at = pointer(row, PAGES + SEQUENCE, tl.int32)
    sequence_M, chunked = in_chunk(sequence_at, t, tokens, here)
    if SINGLE:
        chunked = here
    last_M = tl.load(pointer(row, PAGES, tl.int32) + t, mask=here, other=-1) + 1
    c, r = tl.arange(0, CHANNELS)[:, None], tl.arange(0, ROTATED)[:, None]
    q = pointer(row, Q, tl.float32) + (m.to(tl.int64) * C)[None, :]
    scale = (real(row, SCALE) * LOG2_E).to(tl.float32)
    latent_q = tl.load(q + c, mask=here[None, :] & (c < LATENT), other=0.0)
    rotated_q = tl.load(q + LATENT + r, mask=here[None, :] & (LATENT + r < C), other=0.0)
    queries = narrow(latent_q * scale, KV_TYPE), narrow(rotated_q * scale, KV_TYPE)
    kv = pointer(row, PAGES + KV, KV_TYPE) + integer(row, PAGES + LAYER) * (Z * C)
    end = tl.minimum((first + QUERIES - 1) // H + 1, tokens)
    run = tl.min(tl.where(chunked, t, end), axis=0)  # the first token of the next run of one sequence
    while run < end:
        sequence = tl.load(sequence_at + run)
        table = pointer(row, PAGES + TABLES, tl.int32) + sequence * integer(row, PAGES + WIDTH)
        stop = tl.min(tl.where(here & (t > run) & (sequence_M != sequence), t, end), axis=0)
        mine = here & (t >= run) & (t < stop)
        total, acc = _context(
            queries, table, kv, tl.where(mine, last_M, 0),
            KV_TYPE, C, Z, BLOCK_BYTES, LATENT, CHANNELS, ROTATED, STEP,
        )  # fmt: skip
        # Only this run's rows are stored: other rows were computed too, and may be NaN. The offset uses a size that is
        # loaded here, or the compiler would compute it before the loop, which has no registers to spare.
        y = pointer(row, Y, tl.float32) + (m.to(tl.int64) * integer(row, OF_VALUES))[None, :] + c
        tl.store(y, acc / total[None, :], mask=mine[None, :] & (c < LATENT))
        run = tl.min(tl.where(chunked & (t >= stop), t, end), axis=0)


def launch_chunks(call: Call, shared: Mapping[str, object]) -> None:
    """A program for each tile of queries. It stores nothing for tokens that are alone in their sequences."""
    own = QUERIES, call.tiles.wide_step
    queries, step = (QUERIES_FLOAT32, STEP_FLOAT32) if shared["KV_TYPE"] is tl.float32 else own
    grid = (triton.cdiv(call.bucket.tokens * call.integer("H"), queries),)
    how = {"QUERIES": queries, "STEP": step, "SINGLE": call.bucket.sequences == 1}
    call.launch(_chunk, grid, call.row, **shared, **how, num_warps=WARPS, num_stages=STAGES)

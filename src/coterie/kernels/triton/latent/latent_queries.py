"""latent_queries: queries for latent rows, by weight absorption.

A head's first N channels are multiplied by its key rows of the weight; the other P channels follow, rotated.

    x [T, H, N | P]  ->  y [T, H, LATENT | P]      weight: per head N rows of LATENT values, then V rows for its values

A program has one head and some columns of its rows; one more per head rotates.
Knows nothing about pages.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import (
    add_product,
    integer,
    launch_dependents,
    narrow,
    pointer,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.attention.rope import angles_of_pairs, pair_apart, pair_first, rotate_pairs
from coterie.kernels.triton.latent.latent import STAGES, HeadTile, is_few, is_wide
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

X, WEIGHT, POSITIONS, INV_FREQ, SCALE, Y, T = operand_words(
    "latent_queries", "x", "weight", "positions", "inv_freq", "scale", "y", "T"
)


@triton.jit
def _rotate(
    row, head, t, H: tl.constexpr, N: tl.constexpr, LATENT: tl.constexpr, ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Rotate the last channels of a head's queries, for tokens t."""
    i = tl.arange(0, HALF)[None, :]
    mask = (t < integer(row, T))[:, None] & (i < ROTATED // 2)
    position = tl.load(pointer(row, POSITIONS, tl.int32) + t, mask=t < integer(row, T), other=0)[:, None]
    cosine, sine = angles_of_pairs(row, INV_FREQ, SCALE, position, i, ROTATED, ROTATED)
    first = pair_first(i, ROTATED, ROTATED, INTERLEAVED)
    apart: tl.constexpr = pair_apart(i, ROTATED, ROTATED, INTERLEAVED)
    of_head = (t.to(tl.int64) * H + head)[:, None]
    x = pointer(row, X, tl.float32) + of_head * (N + ROTATED) + N + first
    a, b = tl.load(x, mask=mask, other=0.0), tl.load(x + apart, mask=mask, other=0.0)
    a, b = rotate_pairs(a, b, cosine, sine)
    y = pointer(row, Y, tl.float32) + of_head * (LATENT + ROTATED) + LATENT + first
    tl.store(y, a, mask=mask)
    tl.store(y + apart, b, mask=mask)


@triton.jit
def _absorb(
    row,
    TYPE: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    LATENT: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INNER: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """Few tokens: a program has OUTPUTS columns of a head, or rotates, for all tokens, in float32."""
    launch_dependents(WHEN)
    head, c = unit_index(unit, 0), unit_index(unit, 1) * OUTPUTS + tl.arange(0, OUTPUTS)
    n = tl.arange(0, INNER)
    at = pointer(row, WEIGHT, TYPE) + head.to(tl.int64) * ((N + V) * LATENT) + n[:, None] * LATENT + c[None, :]
    weights = tl.load(at, mask=(n < N)[:, None] & (c < LATENT)[None, :], other=0.0)
    wait_for_previous(WHEN)
    if unit_index(unit, 1) * OUTPUTS < LATENT:
        for t in tl.static_range(TOKENS):
            here, of_head = t < integer(row, T), t * H + head
            x = tl.load(pointer(row, X, tl.float32) + of_head * (N + ROTATED) + n, mask=here & (n < N), other=0.0)
            y = tl.sum(weights.to(tl.float32) * x[:, None], axis=0)
            tl.store(pointer(row, Y, tl.float32) + of_head * (LATENT + ROTATED) + c, y, mask=here & (c < LATENT))
    else:
        _rotate(row, head, tl.arange(0, TOKENS), H, N, LATENT, ROTATED, INTERLEAVED, HALF)


@triton.jit
def _absorb_many(
    row,
    TYPE: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    LATENT: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HALF: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INNER: tl.constexpr,
    WHEN: tl.constexpr,
):
    """A program has OUTPUTS columns of a head, or rotates, for TOKENS tokens, on tensor cores."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    head, tile = tl.program_id(0), tl.program_id(1)
    t, c = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS), tile * OUTPUTS + tl.arange(0, OUTPUTS)
    if tile * OUTPUTS < LATENT:
        here, of_head = t < integer(row, T), (t.to(tl.int64) * H + head)[:, None]
        x = pointer(row, X, tl.float32) + of_head * (N + ROTATED)
        w = pointer(row, WEIGHT, TYPE) + head.to(tl.int64) * ((N + V) * LATENT) + c[None, :]
        acc = tl.zeros([TOKENS, OUTPUTS], tl.float32)
        for first in tl.range(0, N, INNER):
            n = first + tl.arange(0, INNER)
            of_tokens = tl.load(x + n[None, :], mask=here[:, None] & (n < N)[None, :], other=0.0)
            weights = tl.load(w + n[:, None] * LATENT, mask=(n < N)[:, None] & (c < LATENT)[None, :], other=0.0)
            acc = add_product(acc, narrow(of_tokens, TYPE), weights)
        y = pointer(row, Y, tl.float32) + of_head * (LATENT + ROTATED) + c[None, :]
        tl.store(y, acc, mask=here[:, None] & (c < LATENT)[None, :])
    else:
        _rotate(row, head, t, H, N, LATENT, ROTATED, INTERLEAVED, HALF)


def launch(call: Call) -> None:
    """A program per head and tile of columns, and one per head that rotates.

    With many tokens, also per tile of tokens.
    """
    H, N, latent = call.integer("H"), call.integer("N"), call.integer("latent")
    rotated_channels = call.integer("rotated")
    how = {"TYPE": call.type("weight"), "H": H, "N": N, "V": call.integer("V"), "LATENT": latent}
    how |= {"ROTATED": rotated_channels, "INTERLEAVED": call.integer("interleaved")}
    how["HALF"] = power_of_two(rotated_channels // 2)
    if is_few(call):
        tile = HeadTile.few(call, latent, N)
        grid = (H, triton.cdiv(latent, tile.outputs) + 1)
        call.launch(_absorb, grid, call.row, **how, **tile.constants())
    else:
        tile = HeadTile.many(call, latent, N, is_wide(call))
        many = (H, triton.cdiv(latent, tile.outputs) + 1, triton.cdiv(call.bucket.tokens, tile.tokens))
        call.launch(_absorb_many, many, call.row, **how, **tile.constants(), num_stages=STAGES)

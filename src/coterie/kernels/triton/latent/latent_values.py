"""latent_values: a head's attention output over latent rows, times the head's value rows of the weight.

    x [T, H, LATENT]  ->  y [T, H, V]        weight: per head N rows of LATENT values for its keys, then V rows of these

A program has one head and some of its rows. With more than a few tokens, y is also staged, rounded, for the next
launch.
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
from coterie.kernels.triton.latent.latent import STAGES, HeadTile, is_few, is_wide
from coterie.kernels.triton.product.staged_ahead import is_stored, stage_for_next, staged_ahead_bytes
from coterie.kernels.triton.rows import Call, operand_words

X, WEIGHT, Y, T = operand_words("latent_values", "x", "weight", "y", "T")


@triton.jit
def _unfold(
    row,
    TYPE: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    LATENT: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INNER: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """Few tokens: a program has OUTPUTS rows of a head, for all tokens, in float32."""
    launch_dependents(WHEN)
    head, v = unit_index(unit, 0), unit_index(unit, 1) * OUTPUTS + tl.arange(0, OUTPUTS)
    c = tl.arange(0, INNER)
    at = pointer(row, WEIGHT, TYPE) + (head.to(tl.int64) * (N + V) + N) * LATENT + v[:, None] * LATENT + c[None, :]
    weights = tl.load(at, mask=(v < V)[:, None] & (c < LATENT)[None, :], other=0.0)
    wait_for_previous(WHEN)
    for t in tl.static_range(TOKENS):
        here, of_head = t < integer(row, T), t * H + head
        x = tl.load(pointer(row, X, tl.float32) + of_head * LATENT + c, mask=here & (c < LATENT), other=0.0)
        y = tl.sum(weights.to(tl.float32) * x[None, :], axis=1)
        tl.store(pointer(row, Y, tl.float32) + of_head * V + v, y, mask=here & (v < V))


@triton.jit
def _unfold_many(
    row,
    ahead,
    AHEAD: tl.constexpr,
    STORED: tl.constexpr,
    TYPE: tl.constexpr,
    H: tl.constexpr,
    N: tl.constexpr,
    V: tl.constexpr,
    LATENT: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INNER: tl.constexpr,
    WHEN: tl.constexpr,
):
    """A program has OUTPUTS rows of a head and TOKENS tokens, on tensor cores."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    head = tl.program_id(0)
    t, v = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS), tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    here, of_head = (t < integer(row, T))[:, None], (t.to(tl.int64) * H + head)[:, None]
    there = (v < V)[None, :]
    x = pointer(row, X, tl.float32) + of_head * LATENT
    w = pointer(row, WEIGHT, TYPE) + (head.to(tl.int64) * (N + V) + N) * LATENT + v[None, :] * LATENT
    acc = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    for first in tl.range(0, LATENT, INNER):
        c = first + tl.arange(0, INNER)
        of_tokens = tl.load(x + c[None, :], mask=here & (c < LATENT)[None, :], other=0.0)
        weights = tl.load(w + c[:, None], mask=(c < LATENT)[:, None] & there, other=0.0)
        acc = add_product(acc, narrow(of_tokens, TYPE), weights)
    at = of_head * V + v[None, :]
    if STORED:
        tl.store(pointer(row, Y, tl.float32) + at, acc, mask=here & there)
    if AHEAD is not None:
        tl.store(ahead + at, narrow(acc, AHEAD), mask=here & there)


def launch(call: Call) -> None:
    """A program per head and tile of its rows; with many tokens, per tile of these as well."""
    H, V, latent = call.integer("H"), call.integer("V"), call.integer("latent")
    how = {"TYPE": call.type("weight"), "H": H, "N": call.integer("N"), "V": V, "LATENT": latent}
    if is_few(call):
        tile = HeadTile.few(call, V, latent)
        call.launch(_unfold, (H, triton.cdiv(V, tile.outputs)), call.row, **how, **tile.constants())
    else:
        tile = HeadTile.many(call, V, latent, is_wide(call))
        grid = (H, triton.cdiv(V, tile.outputs), triton.cdiv(call.bucket.tokens, tile.tokens))
        ahead, kind = stage_for_next(call, H * V)
        how |= {"AHEAD": kind, "STORED": is_stored(call, H * V)}
        call.launch(_unfold_many, grid, call.row, ahead, **how, **tile.constants(), num_stages=STAGES)


def scratch_bytes(call: Call) -> int:
    """Bytes of what is staged for the next launch."""
    return staged_ahead_bytes(call, call.integer("H") * call.integer("V"))

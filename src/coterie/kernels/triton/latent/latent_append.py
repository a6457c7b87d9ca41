"""latent_append: store a row per token in its page: LATENT channels, normed, then a key that all heads share, rotated.

x [T, C] is float32; the row has the pages' type. Knows nothing about what attends to these rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import (
    integer,
    launch_dependents,
    narrow,
    pointer,
    real,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.attention.pages import SEQUENCE, Pages, block_of, latent_row_at
from coterie.kernels.triton.attention.rope import angles_of_pairs, pair_apart, pair_first, rotate_pairs
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

X, NORM, EPS, INV_FREQ, SCALE, PAGES, T = operand_words(
    "latent_append", "x", "norm", "eps", "inv_freq", "scale", "positions", "T"
)


@triton.jit
def _append_row(
    row,
    NORM_TYPE: tl.constexpr,
    KV_TYPE: tl.constexpr,
    C: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    LATENT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    CHANNELS: tl.constexpr,
    HALF: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """A program makes one token's row; the sum of squares is float32."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    t = unit_index(unit, 0)
    if t < integer(row, T):
        ROTATED: tl.constexpr = C - LATENT
        position = tl.load(pointer(row, PAGES, tl.int32) + t)
        sequence = tl.load(pointer(row, PAGES + SEQUENCE, tl.int32) + t)
        block = block_of(row, PAGES, sequence, position, True, Z)
        to = latent_row_at(row, PAGES, block, position, KV_TYPE, C, Z, BLOCK_BYTES)
        x = pointer(row, X, tl.float32) + t.to(tl.int64) * C
        c = tl.arange(0, CHANNELS)
        latent = tl.load(x + c, mask=c < LATENT, other=0.0)
        factor = 1.0 / tl.sqrt(tl.sum(latent * latent, axis=0) / LATENT + real(row, EPS).to(tl.float32))
        weight = tl.load(pointer(row, NORM, NORM_TYPE) + c, mask=c < LATENT, other=0.0).to(tl.float32)
        tl.store(to + c, narrow(latent * factor * weight, KV_TYPE), mask=c < LATENT)
        i = tl.arange(0, HALF)
        first = LATENT + pair_first(i, ROTATED, ROTATED, INTERLEAVED)
        apart: tl.constexpr = pair_apart(i, ROTATED, ROTATED, INTERLEAVED)
        mask = i < ROTATED // 2
        cosine, sine = angles_of_pairs(row, INV_FREQ, SCALE, position, i, ROTATED, ROTATED)
        a, b = tl.load(x + first, mask=mask, other=0.0), tl.load(x + first + apart, mask=mask, other=0.0)
        a, b = rotate_pairs(a, b, cosine, sine)
        tl.store(to + first, narrow(a, KV_TYPE), mask=mask)
        tl.store(to + first + apart, narrow(b, KV_TYPE), mask=mask)


def launch(call: Call) -> None:
    """A program per token."""
    pages, latent = Pages.of(call), call.integer("latent")
    how = {**pages.constants(), "NORM_TYPE": call.type("norm"), "INTERLEAVED": call.integer("interleaved")}
    del how["K"]
    how |= {"CHANNELS": power_of_two(latent), "HALF": power_of_two((pages.C - latent) // 2)}
    call.launch(_append_row, (call.bucket.tokens,), call.row, LATENT=latent, **how)

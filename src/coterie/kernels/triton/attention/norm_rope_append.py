"""norm_rope_append: q and k normed, per head or per token, and rotated; q is stored, k and v go to pages.

q [T, H, C], k and v [T, K, C] are float32. Of each head the first ROTATED channels are rotated: all, some or none. Rows
of the input q are STEP apart, from FIRST on.
Knows nothing about where q, k and v come from.
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
from coterie.kernels.triton.attention.pages import Pages, token_at
from coterie.kernels.triton.attention.rope import angles_of_pairs, pair_apart, pair_first, rotate_pairs
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

Q_IN, Q_NORM, Q_EPS, K_IN, K_NORM, K_EPS, V = operand_words(
    "norm_rope_append", "q_in", "q_norm", "q_eps", "k_in", "k_norm", "k_eps", "v"
)
INV_FREQ, SCALE, PAGES, Q, T, OFFSET = operand_words(
    "norm_rope_append", "inv_freq", "scale", "positions", "q", "T", "offset"
)


@triton.jit
def _heads(
    row,
    X: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    t,
    position,
    TYPE: tl.constexpr,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    STEP: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """First and second channels of pairs [HEADS, HALF] of token t's heads, normed over WIDTH channels, then rotated."""
    h, i = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    mask = (h < H) & (i < C // 2)
    first, apart = h * C + pair_first(i, C, ROTATED, INTERLEAVED), pair_apart(i, C, ROTATED, INTERLEAVED)
    ROWS: tl.constexpr = H * C // WIDTH
    at = t.to(tl.int64) * (ROWS * STEP) + FIRST + first
    if STEP != WIDTH:
        at += first // WIDTH * (STEP - WIDTH)
    x, norm = pointer(row, X, tl.float32) + at, pointer(row, NORM, TYPE) + first % WIDTH
    a, b = tl.load(x, mask=mask, other=0.0), tl.load(x + apart, mask=mask, other=0.0)
    squares = tl.sum(a * a + b * b, axis=1)
    if WIDTH != C:
        squares = tl.sum(squares, axis=0)[None]
    factor = (1.0 / tl.sqrt(squares / WIDTH + real(row, EPS).to(tl.float32)))[:, None]
    offset = real(row, OFFSET).to(tl.float32)
    a = a * factor * (tl.load(norm, mask=mask, other=0.0).to(tl.float32) + offset)
    b = b * factor * (tl.load(norm + apart, mask=mask, other=0.0).to(tl.float32) + offset)
    if ROTATED > 0:
        cosine, sine = angles_of_pairs(row, INV_FREQ, SCALE, position, i, C, ROTATED)
        a, b = rotate_pairs(a, b, cosine, sine)
    return a, b


@triton.jit
def _queries(
    row, t, position, TYPE: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr,
    H: tl.constexpr, C: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    a, b = _heads(
        row, Q_IN, Q_NORM, Q_EPS, t, position, TYPE, WIDTH, FIRST, STEP, H, C, ROTATED, INTERLEAVED, HEADS, HALF
    )  # fmt: skip
    h, i = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    mask = (h < H) & (i < C // 2)
    y = pointer(row, Q, tl.float32) + t.to(tl.int64) * (H * C) + h * C + pair_first(i, C, ROTATED, INTERLEAVED)
    tl.store(y, a, mask=mask)
    tl.store(y + pair_apart(i, C, ROTATED, INTERLEAVED), b, mask=mask)


@triton.jit
def _keys_and_values(
    row, t, position, TYPE: tl.constexpr, WIDTH: tl.constexpr, KV_TYPE: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
    ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr, Z: tl.constexpr, BLOCK_BYTES: tl.constexpr, HEADS: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    a, b = _heads(row, K_IN, K_NORM, K_EPS, t, position, TYPE, WIDTH, 0, WIDTH, K, C, ROTATED, INTERLEAVED, HEADS, HALF)
    h, i = tl.arange(0, HEADS), tl.arange(0, HALF)[None, :]
    mask = (h < K)[:, None] & (i < C // 2)
    channel, apart = pair_first(i, C, ROTATED, INTERLEAVED), pair_apart(i, C, ROTATED, INTERLEAVED)
    keys, values = token_at(row, PAGES, t, position, h, KV_TYPE, K, C, Z, BLOCK_BYTES)
    keys, values = keys[:, None] + channel, values[:, None] + channel
    tl.store(keys, narrow(a, KV_TYPE), mask=mask)
    tl.store(keys + apart, narrow(b, KV_TYPE), mask=mask)
    v = pointer(row, V, tl.float32) + t.to(tl.int64) * (K * C) + h[:, None] * C + channel
    tl.store(values, narrow(tl.load(v, mask=mask, other=0.0), KV_TYPE), mask=mask)
    tl.store(values + apart, narrow(tl.load(v + apart, mask=mask, other=0.0), KV_TYPE), mask=mask)


@triton.jit
def _norm_rope_append(
    row,
    Q_TYPE: tl.constexpr,
    K_TYPE: tl.constexpr,
    Q_WIDTH: tl.constexpr,
    Q_FIRST: tl.constexpr,
    Q_STEP: tl.constexpr,
    K_WIDTH: tl.constexpr,
    H: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """Program (token, 0) has the token's queries, (token, 1) its keys and values; sums of squares are float32."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    t = unit_index(unit, 0)
    if t < integer(row, T):
        position = tl.load(pointer(row, PAGES, tl.int32) + t)
        if unit_index(unit, 1) == 0:
            _queries(row, t, position, Q_TYPE, Q_WIDTH, Q_FIRST, Q_STEP, H, C, ROTATED, INTERLEAVED, HEADS, HALF)
        else:
            _keys_and_values(
                row, t, position, K_TYPE, K_WIDTH, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES, KV_HEADS, HALF
            )  # fmt: skip


def launch(call: Call) -> None:
    """Two programs per token: one for its queries, one for its keys and values."""
    pages, H = Pages.of(call), call.integer("H")
    norms = {"Q_TYPE": call.type("q_norm"), "K_TYPE": call.type("k_norm")}
    widths = {"Q_WIDTH": call.integer("q_width"), "K_WIDTH": call.integer("k_width"), "H": H}
    widths |= {"Q_FIRST": call.integer("q_first"), "Q_STEP": call.integer("q_step") or widths["Q_WIDTH"]}
    tile = {"HEADS": power_of_two(H), "KV_HEADS": power_of_two(pages.K), "HALF": power_of_two(pages.C // 2)}
    how = {**norms, **widths, **pages.constants(), **tile, "ROTATED": call.integer("rotated")}
    how["INTERLEAVED"] = call.integer("interleaved")
    call.launch(_norm_rope_append, (call.bucket.tokens, 2), call.row, **how)

"""The row order of norm_qkv_rope_append, and what follows its products: bias, head norm, rotation, stores.

Weight rows are renumbered so that STRIPE first channels of rotated pairs alternate with STRIPE second ones; with few
tokens STRIPE is 1: 0, C/2, 1, C/2 + 1 ... Heads are padded to a power of two. Where only the first ROTATED channels are
rotated, their pairs come first, then pairs of the others, which pass unchanged. INTERLEAVED: the two channels of a
rotated pair are adjacent.
Knows nothing about how rows are multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import narrow, pointer, real
from coterie.kernels.triton.attention.pages import SEQUENCE, block_of, page_at
from coterie.kernels.triton.attention.rope import angles_of_pairs, pair_apart, pair_first, pair_to_second, rotate_pairs
from coterie.kernels.triton.product.dots import deinterleave
from coterie.kernels.triton.rows import operand_words

INV_FREQ, SCALE, PAGES, Q = operand_words("norm_qkv_rope_append", "inv_freq", "scale", "positions", "q")
WQ, WK, WV, BQ, BK, BV = operand_words("norm_qkv_rope_append", "wq", "wk", "wv", "bq", "bk", "bv")
Q_NORM, K_NORM, Q_EPS, K_EPS, OFFSET = operand_words(
    "norm_qkv_rope_append", "q_norm", "k_norm", "q_eps", "k_eps", "offset"
)


@triton.jit
def word_of(part, OF_Q: tl.constexpr, OF_K: tl.constexpr, OF_V: tl.constexpr):
    """The word of a part's operand; parts are 0 (q), 1 (k) and 2 (v)."""
    return tl.where(part == 0, OF_Q, tl.where(part == 1, OF_K, OF_V))


@triton.jit
def part_of(tile, FIRST: tl.constexpr, H: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """For a tile, counted from part FIRST on: its part, its first row within the part, and the part's heads."""
    q_tiles = tl.cdiv(H * PADDED, ROWS)
    k_tiles = tl.cdiv(K * PADDED, ROWS)
    if FIRST > 0:
        tile += q_tiles
    if FIRST > 1:
        tile += k_tiles
    part = (tile >= q_tiles).to(tl.int32) + (tile >= q_tiles + k_tiles).to(tl.int32)
    first = tile - tl.where(part > 0, q_tiles, 0) - tl.where(part > 1, k_tiles, 0)
    return part, first * ROWS, tl.where(part == 0, H, K)


@triton.jit
def channels_of(
    r,
    heads,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PADDED: tl.constexpr,
    STRIPE: tl.constexpr,
):
    """For renumbered rows r: the weight row, its channel, and whether it exists."""
    i = r % PADDED // (2 * STRIPE) * STRIPE + r % STRIPE
    if ROTATED == C and INTERLEAVED:
        channel = 2 * i + r // STRIPE % 2
    elif ROTATED == C or ROTATED == 0:
        channel = i + r // STRIPE % 2 * (C // 2)
    else:
        channel = pair_first(i, C, ROTATED, INTERLEAVED) + r // STRIPE % 2 * pair_to_second(i, C, ROTATED, INTERLEAVED)
    head = r // PADDED
    return head * C + channel, channel, (head < heads) & (i < C // 2)


@triton.jit
def rows_of_part(row, part, n, TYPE: tl.constexpr, STRIDE: tl.constexpr, ALIGN: tl.constexpr):
    """Pointers to rows n of the part's weight."""
    weight = tl.load(row + word_of(part, WQ, WK, WV)).to(tl.pointer_type(TYPE))
    return tl.multiple_of(weight + n.to(tl.int64) * STRIDE, ALIGN)


@triton.jit
def pairs_of(first, heads, mask_M, C: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """For products [ROWS, M] from row `first` on, by pairs of rotated channels: head, pair, mask [ROWS / 2, M]."""
    pair = first // 2 + tl.arange(0, ROWS // 2)
    head = pair // (PADDED // 2)
    i = pair % (PADDED // 2)
    return head, i, ((head < heads) & (i < C // 2))[:, None] & mask_M[None, :]


@triton.jit
def in_q(row, head, i, m, H: tl.constexpr, C: tl.constexpr, ROTATED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Pointers to the first channels of pairs in q."""
    at = (m.to(tl.int64)[None, :] * H + head[:, None]) * C
    return pointer(row, Q, tl.float32) + at + pair_first(i, C, ROTATED, INTERLEAVED)[:, None]


@triton.jit
def in_pages(
    row,
    part,
    head,
    i,
    m,
    position,
    mask_M,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    """Pointers to the first channels of pairs in the pages, among keys or values."""
    sequence = tl.load(pointer(row, PAGES + SEQUENCE, tl.int32) + m, mask=mask_M, other=0)
    block = block_of(row, PAGES, sequence, position, mask_M, Z)
    side = tl.maximum(part - 1, 0)
    at = page_at(row, PAGES, block[None, :], position[None, :], side, head[:, None], KV_TYPE, K, C, Z, BLOCK_BYTES)
    return at + pair_first(i, C, ROTATED, INTERLEAVED)[:, None]


@triton.jit
def angles_of(row, position, i, C: tl.constexpr, ROTATED: tl.constexpr):
    """Cosines and sines of channel pairs i at positions, [len(i), len(position)]."""
    return angles_at(row, position[None, :], i[:, None], C, ROTATED)


@triton.jit
def angles_at(row, position, i, C: tl.constexpr, ROTATED: tl.constexpr):
    """Cosines and sines of channel pairs i at positions, broadcast."""
    return angles_of_pairs(row, INV_FREQ, SCALE, position, i, C, ROTATED)


@triton.jit
def ends_of(
    row,
    part,
    head,
    i,
    m,
    mask_M,
    H: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    """Destinations of channel pairs, in q and in the pages, and their cosines and sines."""
    position = tl.load(pointer(row, PAGES, tl.int32) + m, mask=mask_M, other=0)
    page = in_pages(row, part, head, i, m, position, mask_M, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES)
    cosine, sine = angles_of(row, position, i, C, ROTATED)
    return in_q(row, head, i, m, H, C, ROTATED, INTERLEAVED), page, cosine, sine


@triton.jit
def store_pairs(
    q,
    page,
    part,
    a,
    b,
    mask,
    i,
    KV_TYPE: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Store the first and second channels of pairs to q, or to keys or values."""
    apart = pair_apart(i[:, None], C, ROTATED, INTERLEAVED)
    if part == 0:
        tl.store(q, a, mask=mask)
        tl.store(q + apart, b, mask=mask)
    else:
        tl.store(page, narrow(a, KV_TYPE), mask=mask)
        tl.store(page + apart, narrow(b, KV_TYPE), mask=mask)


@triton.jit
def normed_heads(
    row,
    y,
    part,
    first,
    heads,
    BIAS: tl.constexpr,
    HEAD_NORM: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    M: tl.constexpr,
    STRIPE: tl.constexpr,
):
    """Products [ROWS, M] with bias, and heads of q and k normed; both are optional."""
    n, channel, there = channels_of(first + tl.arange(0, ROWS), heads, C, ROTATED, INTERLEAVED, PADDED, STRIPE)
    if BIAS is not None:
        bias = tl.load(row + word_of(part, BQ, BK, BV)).to(tl.pointer_type(BIAS))
        y += tl.load(bias + n, mask=there, other=0.0).to(tl.float32)[:, None]
    if HEAD_NORM is not None:
        weight = tl.load(row + word_of(part, Q_NORM, K_NORM, K_NORM)).to(tl.pointer_type(HEAD_NORM))
        eps = tl.load(row + word_of(part, Q_EPS, K_EPS, K_EPS)).to(tl.float64, bitcast=True).to(tl.float32)
        scale = tl.load(weight + channel, mask=there, other=0.0).to(tl.float32) + real(row, OFFSET).to(tl.float32)
        by_head = tl.reshape(y, [ROWS // PADDED, PADDED, M])
        factor = 1.0 / tl.sqrt(tl.sum(by_head * by_head, axis=1) / C + eps)
        normed = tl.reshape(by_head * factor[:, None, :], [ROWS, M]) * scale[:, None]
        y = tl.where(part < 2, normed, y)
    return y


@triton.jit
def finish_heads(
    row,
    y,
    part,
    first,
    heads,
    m,
    mask_M,
    angles,
    BIAS: tl.constexpr,
    HEAD_NORM: tl.constexpr,
    H: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    M: tl.constexpr,
    STRIPE: tl.constexpr,
):
    """Products [ROWS, M] to q or pages: bias, head norm, rotation.

    `angles` are staged: C / 2 cosines per token and as many sines.
    """
    y = normed_heads(row, y, part, first, heads, BIAS, HEAD_NORM, C, ROTATED, INTERLEAVED, PADDED, ROWS, M, STRIPE)
    head, i, mask = pairs_of(first, heads, mask_M, C, PADDED, ROWS)
    a, b = deinterleave(y, ROWS, M, STRIPE)
    if ROTATED > 0:
        if part < 2:
            cosine = tl.load(angles + m[None, :] * C + i[:, None], mask=mask, other=0.0)
            sine = tl.load(angles + m[None, :] * C + i[:, None] + C // 2, mask=mask, other=0.0)
            a, b = rotate_pairs(a, b, cosine, sine)
    apart = pair_apart(i[:, None], C, ROTATED, INTERLEAVED)
    if part == 0:
        q = in_q(row, head, i, m, H, C, ROTATED, INTERLEAVED)
        tl.store(q, a, mask=mask)
        tl.store(q + apart, b, mask=mask)
    else:
        position = tl.load(pointer(row, PAGES, tl.int32) + m, mask=mask_M, other=0)
        page = in_pages(row, part, head, i, m, position, mask_M, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES)
        tl.store(page, narrow(a, KV_TYPE), mask=mask)
        tl.store(page + apart, narrow(b, KV_TYPE), mask=mask)

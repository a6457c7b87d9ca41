"""norm_qkv_rope_append for many tokens, where tensor descriptors can load the weights.

A tile holds whole heads, in the order of the weight's rows.
Knows nothing about how activations are normed and staged.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, wait_for_previous
from coterie.kernels.triton.product.described import described, described_dots, left_and_right, piece_at, whole_of
from coterie.kernels.triton.product.dots import tile_at
from coterie.kernels.triton.product.heads import WK, WQ, WV, finish_heads, part_of, word_of
from coterie.kernels.triton.rows import operand_words

WIDEST = 128  # channels of a head: wider ones spill registers
MIN_ROWS = tl.constexpr(64)  # tiles of several heads are split down to this many rows to be finished
(T,) = operand_words("norm_qkv_rope_append", "T")


@triton.jit
def described_heads(
    row,
    most,
    staged,
    angles,
    D: tl.constexpr,
    FIRST: tl.constexpr,
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
    TYPE: tl.constexpr,
    N_TILES: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STRIPE: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    WAVE: tl.constexpr,
    WHEN: tl.constexpr,
):
    """WAVE programs walk tiles of ROWS rows x TOKENS tokens, then pieces of fewer rows.

    Heads need no padding and keep the weight's row order: STRIPE is half of their channels.
    """
    launch_dependents(WHEN)
    x = described(staged, most, D, TOKENS, STEP)
    q = described(pointer(row, WQ, TYPE), H * C, D, ROWS, STEP)
    k = described(pointer(row, WK, TYPE), K * C, D, ROWS, STEP)
    v = described(pointer(row, WV, TYPE), K * C, D, ROWS, STEP)
    wait_for_previous(WHEN)
    tokens = integer(row, T)
    m_tiles = tl.cdiv(tokens, TOKENS)
    whole = whole_of(N_TILES * m_tiles, PIECES, WAVE)
    for i in tl.range(tl.program_id(0), whole, WAVE, num_stages=1):
        n_tile, m_tile = tile_at(i, N_TILES, m_tiles, GROUP)
        part, first, heads = part_of(n_tile, FIRST, H, K, PADDED, ROWS)
        w = q
        if part == 1:
            w = k
        if part == 2:
            w = v
        y = described_dots(x, w, m_tile * TOKENS, first, D, TOKENS, ROWS, STEP)
        m = m_tile * TOKENS + tl.arange(0, TOKENS)
        _finish(
            row, y, part, first, heads, m, m < tokens, angles,
            BIAS, HEAD_NORM, H, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES, PADDED, ROWS, TOKENS, STRIPE,
        )  # fmt: skip
    if PIECES > 1:
        each: tl.constexpr = ROWS // PIECES
        for i in tl.range(tl.program_id(0), (N_TILES * m_tiles - whole) * PIECES, WAVE, num_stages=1):
            n_piece, m_tile = piece_at(i, whole, N_TILES, m_tiles, PIECES, GROUP)
            part, first, heads = part_of(n_piece // PIECES, FIRST, H, K, PADDED, ROWS)
            first += n_piece % PIECES * each
            weight = tl.multiple_of(tl.load(row + word_of(part, WQ, WK, WV)).to(tl.pointer_type(TYPE)), 16)
            w = described(weight, heads * C, D, each, STEP)
            y = described_dots(x, w, m_tile * TOKENS, first, D, TOKENS, each, STEP)
            m = m_tile * TOKENS + tl.arange(0, TOKENS)
            _finish(
                row, y, part, first, heads, m, m < tokens, angles,
                BIAS, HEAD_NORM, H, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES, PADDED, each, TOKENS, STRIPE,
            )  # fmt: skip


@triton.jit
def _finish(
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
    TOKENS: tl.constexpr,
    STRIPE: tl.constexpr,
):
    """Products [tokens, rows] to q and pages, a few whole heads at a time: registers cannot hold all."""
    if ROWS > PADDED and ROWS > MIN_ROWS:
        half: tl.constexpr = ROWS // 2
        y, later = left_and_right(y)
        _finish(
            row, y, part, first, heads, m, mask_M, angles,
            BIAS, HEAD_NORM, H, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES, PADDED, half, TOKENS, STRIPE,
        )  # fmt: skip
        _finish(
            row, later, part, first + half, heads, m, mask_M, angles,
            BIAS, HEAD_NORM, H, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES, PADDED, half, TOKENS, STRIPE,
        )  # fmt: skip
    else:
        finish_heads(
            row, tl.permute(y, [1, 0]), part, first, heads, m, mask_M, angles,
            BIAS, HEAD_NORM, H, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES, PADDED, ROWS, TOKENS, STRIPE,
        )  # fmt: skip

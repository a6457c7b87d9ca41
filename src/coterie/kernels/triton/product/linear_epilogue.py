"""The end of linear and its relatives: bias, scale, gelu or residual, and the store.

Knows nothing about how rows are multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import INTERPRETED, gelu_of, pointer, prefetch, real
from coterie.kernels.triton.product.described import left_and_right
from coterie.kernels.triton.product.few_tokens import LINE_BYTES

MAX_ADDED = tl.constexpr(128 * 128)  # elements of a tile that a residual is added to at once


@triton.jit
def prefetch_residual(residual, n, m, tokens, N: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """Prefetch the residual of a tile from token m and row n on, while tensor cores work."""
    if not INTERPRETED:
        line: tl.constexpr = LINE_BYTES // 4
        lines = tl.minimum(n + tl.arange(0, max(ROWS // line, 1)) * line, N - 1)
        m_M = tl.minimum(m + tl.arange(0, TOKENS), tokens - 1).to(tl.int64)
        prefetch(residual + m_M[:, None] * N + lines[None, :])


@triton.jit
def scaled(row, y, SCALE: tl.constexpr):
    """Products times the instruction's scale, if it has one."""
    if SCALE is not None:
        y *= real(row, SCALE).to(tl.float32)
    return y


@triton.jit
def linear_epilogue(
    row,
    y,
    n,
    mask_n,
    m,
    mask_m,
    BIAS_AT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCALE: tl.constexpr,
    Y: tl.constexpr,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
):
    """Store products after bias, scale, gelu and residual, each of which is optional."""
    if BIAS is not None:
        y += tl.load(pointer(row, BIAS_AT, BIAS) + n, mask=mask_n, other=0.0).to(tl.float32)
    y = scaled(row, y, SCALE)
    if GELU is not None:
        y = gelu_of(y, GELU)
    at = m.to(tl.int64) * N + n
    mask = mask_m & mask_n
    if RESIDUAL is not None:
        y += tl.load(pointer(row, RESIDUAL, tl.float32) + at, mask=mask, other=0.0)
    tl.store(pointer(row, Y, tl.float32) + at, y, mask=mask)


@triton.jit
def tile_epilogue(
    row,
    y,
    n,
    m,
    tokens,
    BIAS_AT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCALE: tl.constexpr,
    Y: tl.constexpr,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
):
    """Store products [tokens, rows] of a tile that begins at token m and row n."""
    half: tl.constexpr = y.shape[1] // 2
    if y.numel > MAX_ADDED:  # registers cannot hold all of it and of the residual
        y, later = left_and_right(y)
        tile_epilogue(row, y, n, m, tokens, BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, GELU)
        tile_epilogue(row, later, n + half, m, tokens, BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, GELU)
    else:
        m_M = m + tl.arange(0, y.shape[0])[:, None]
        n_N = n + tl.arange(0, y.shape[1])[None, :]
        linear_epilogue(row, y, n_N, n_N < N, m_M, m_M < tokens, BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, GELU)

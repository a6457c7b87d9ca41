"""What becomes of products of linear and linear_add: bias, scale and residual, and then they are stored.

Knows nothing about how rows are multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import INTERPRETED, ask, pointer, real
from coterie.kernels.triton.few import LINE_BYTES


@triton.jit
def ask_for(residual, n, m, tokens, N: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """What a tile from token m and row n on is added to comes from memory while tensor cores work."""
    if not INTERPRETED:
        line: tl.constexpr = LINE_BYTES // 4
        lines = tl.minimum(n + tl.arange(0, max(ROWS // line, 1)) * line, N - 1)
        m_M = tl.minimum(m + tl.arange(0, TOKENS), tokens - 1).to(tl.int64)
        ask(residual + m_M[:, None] * N + lines[None, :])


@triton.jit
def scaled(row, y, SCALE: tl.constexpr):
    """Products times what the row says, where it says something."""
    if SCALE is not None:
        y *= real(row, SCALE).to(tl.float32)
    return y


@triton.jit
def put(
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
):
    """Store products, with the bias, the scale and the residual where there are such."""
    if BIAS is not None:
        y += tl.load(pointer(row, BIAS_AT, BIAS) + n, mask=mask_n, other=0.0).to(tl.float32)
    y = scaled(row, y, SCALE)
    at = m.to(tl.int64) * N + n
    mask = mask_m & mask_n
    if RESIDUAL is not None:
        y += tl.load(pointer(row, RESIDUAL, tl.float32) + at, mask=mask, other=0.0)
    tl.store(pointer(row, Y, tl.float32) + at, y, mask=mask)

"""linear: y = x @ weight.T + bias; and linear_add, which adds a residual before it stores.

Knows nothing about where x comes from.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import integer, pointer
from coterie.kernels.triton.dots import few_dots, many_dots, rows_at, stage, staged_bytes, tile_at
from coterie.kernels.triton.rows import Call, places

X, WEIGHT, BIAS_AT, Y, T = places("linear", "x", "weight", "bias", "y", "T")  # the same words in linear_add


@triton.jit
def _few(
    row,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TYPE: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    m = tl.arange(0, M)
    mask_M = m < integer(row, T)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask_N = n < N
    x = pointer(row, X, tl.float32) + m * K
    rows_N = rows_at(pointer(row, WEIGHT, TYPE), n, STRIDE, ALIGN)
    y = few_dots(x, mask_M, rows_N, mask_N, x, 0.0, K, COLUMNS, TYPE, None, M, ROWS, STEP, UNROLL)
    _put(row, y, n[None, :], mask_N[None, :], m[:, None], mask_M[:, None], N, BIAS, RESIDUAL)


@triton.jit
def _many(
    row,
    staged,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TYPE: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    DOT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    GROUP: tl.constexpr,
):
    tokens = integer(row, T)
    n_tiles, m_tiles = tl.cdiv(N, ROWS), tl.cdiv(tokens, TOKENS)
    if tl.program_id(0) < n_tiles * m_tiles:
        n_tile, m_tile = tile_at(tl.program_id(0), n_tiles, m_tiles, GROUP)
        m = m_tile * TOKENS + tl.arange(0, TOKENS)
        n = n_tile * ROWS + tl.arange(0, ROWS)
        mask_M = m < tokens
        mask_N = n < N
        rows_N = rows_at(pointer(row, WEIGHT, TYPE), n, STRIDE, ALIGN)
        y = many_dots(staged, m, mask_M, rows_N, mask_N, K, COLUMNS, TYPE, DOT, TOKENS, ROWS, STEP)
        _put(row, y, n[:, None], mask_N[:, None], m[None, :], mask_M[None, :], N, BIAS, RESIDUAL)


@triton.jit
def _put(row, y, n, mask_n, m, mask_m, N: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr):
    """Store products, with the bias and the residual where there are such."""
    if BIAS is not None:
        y += tl.load(pointer(row, BIAS_AT, BIAS) + n, mask=mask_n, other=0.0).to(tl.float32)
    at = m.to(tl.int64) * N + n
    mask = mask_m & mask_n
    if RESIDUAL is not None:
        y += tl.load(pointer(row, RESIDUAL, tl.float32) + at, mask=mask, other=0.0)
    tl.store(pointer(row, Y, tl.float32) + at, y, mask=mask)


def launch(call: Call) -> None:
    """Multiply in float32 where the step has few tokens, else on tensor cores."""
    N, K, tokens = call.integer("N"), call.integer("K"), call.bucket.tokens
    matrix = call.matrix("weight", K)
    residual = OPCODES[call.name].words.get("residual")
    shared = {"N": N, "BIAS": call.type("bias"), "RESIDUAL": residual, **matrix.constants()}
    if tokens <= call.tiles.few_tokens:
        few = call.tiles.few(N, tokens, matrix.group, matrix.is_wide)
        grid = (triton.cdiv(N, few.rows),)
        _few[grid](call.row, **shared, **few.constants(tokens), num_warps=few.warps)
        return
    staged = stage(call, [matrix])
    many = call.tiles.many_of(tokens, matrix.group, matrix.is_wide)
    grid = (triton.cdiv(N, many.rows) * triton.cdiv(tokens, many.tokens),)
    how = {"num_warps": many.warps, "num_stages": many.stages}
    _many[grid](call.row, staged, **shared, DOT=matrix.dot_type, GROUP=call.tiles.group, **many.constants(), **how)


def scratch_bytes(call: Call) -> int:
    """What staged activations take."""
    return staged_bytes(call, [call.matrix("weight", call.integer("K"))])

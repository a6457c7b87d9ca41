"""take_norm_linear: y = rms_norm(x[rows]) @ weight.T + bias.

Knows nothing about what the products are: logits, as a rule.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, pointer, real
from coterie.kernels.triton.dots import few_dots, many_dots, rows_at, stage, staged_bytes, tile_at
from coterie.kernels.triton.rows import Call, places

X, NORM_AT, EPS, ROWS_AT, WEIGHT, BIAS_AT, Y, R = places(
    "take_norm_linear", "x", "norm", "eps", "rows", "weight", "bias", "y", "R"
)


@triton.jit
def _few(
    row,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
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
    mask_M = m < integer(row, R)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask_N = n < N
    source = tl.load(pointer(row, ROWS_AT, tl.int32) + m, mask=mask_M, other=0).to(tl.int64)
    x = pointer(row, X, tl.float32) + source * K
    norm = pointer(row, NORM_AT, NORM)
    eps = real(row, EPS).to(tl.float32)
    rows_N = rows_at(pointer(row, WEIGHT, TYPE), n, STRIDE, ALIGN)
    y = few_dots(x, mask_M, rows_N, mask_N, norm, eps, K, COLUMNS, TYPE, NORM, M, ROWS, STEP, UNROLL)
    _put(row, y, n[None, :], mask_N[None, :], m[:, None], mask_M[:, None], N, BIAS)


@triton.jit
def _many(
    row,
    staged,
    N: tl.constexpr,
    BIAS: tl.constexpr,
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
    tokens = integer(row, R)
    n_tiles, m_tiles = tl.cdiv(N, ROWS), tl.cdiv(tokens, TOKENS)
    if tl.program_id(0) < n_tiles * m_tiles:
        n_tile, m_tile = tile_at(tl.program_id(0), n_tiles, m_tiles, GROUP)
        m = m_tile * TOKENS + tl.arange(0, TOKENS)
        n = n_tile * ROWS + tl.arange(0, ROWS)
        mask_M = m < tokens
        mask_N = n < N
        rows_N = rows_at(pointer(row, WEIGHT, TYPE), n, STRIDE, ALIGN)
        y = many_dots(staged, m, mask_M, rows_N, mask_N, K, COLUMNS, TYPE, DOT, TOKENS, ROWS, STEP)
        _put(row, y, n[:, None], mask_N[:, None], m[None, :], mask_M[None, :], N, BIAS)


@triton.jit
def _put(row, y, n, mask_n, m, mask_m, N: tl.constexpr, BIAS: tl.constexpr):
    """Store products, with the bias where there is one."""
    if BIAS is not None:
        y += tl.load(pointer(row, BIAS_AT, BIAS) + n, mask=mask_n, other=0.0).to(tl.float32)
    tl.store(pointer(row, Y, tl.float32) + m.to(tl.int64) * N + n, y, mask=mask_m & mask_n)


def launch(call: Call) -> None:
    """Norm and multiply in one pass where the step samples few rows; else norm to scratch, then on tensor cores."""
    N, K, sampled = call.integer("N"), call.integer("D"), call.bucket.sampled
    matrix = call.matrix("weight", K)
    shared = {"N": N, "BIAS": call.type("bias"), **matrix.constants()}
    if sampled <= call.tiles.few_tokens:
        few = call.tiles.few(N, sampled, matrix.group, matrix.is_wide)
        grid = (triton.cdiv(N, few.rows),)
        _few[grid](call.row, **shared, NORM=call.type("norm"), **few.constants(sampled), num_warps=few.warps)
        return
    staged = stage(call, [matrix], normed=True, gathered=True)
    many = call.tiles.many_of(sampled, matrix.group, matrix.is_wide)
    grid = (triton.cdiv(N, many.rows) * triton.cdiv(sampled, many.tokens),)
    how = {"num_warps": many.warps, "num_stages": many.stages}
    _many[grid](call.row, staged, **shared, DOT=matrix.dot_type, GROUP=call.tiles.group, **many.constants(), **how)


def scratch_bytes(call: Call) -> int:
    """What staged activations take."""
    return staged_bytes(call, [call.matrix("weight", call.integer("D"))], gathered=True)

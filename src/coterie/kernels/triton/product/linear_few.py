"""linear for few tokens: a program has a few weight rows. Neighbouring products of the same x share one launch.

Knows nothing about which products are neighbours (neighbours.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import ROW_WORDS as _ROW_WORDS
from coterie.kernels.triton.arithmetic import (
    AHEAD,
    gelu_of,
    integer,
    launch_dependents,
    pointer,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.norms import norm_at
from coterie.kernels.triton.product.dots import rows_at
from coterie.kernels.triton.product.few_tokens import few_dots, prefetch_rows
from coterie.kernels.triton.product.linear_epilogue import scaled
from coterie.kernels.triton.product.one_token import one_dot, tokens_of, weights_ahead
from coterie.kernels.triton.product.sums import appended

ROW_WORDS = tl.constexpr(_ROW_WORDS)


@triton.jit
def _one_by_one(weight, first, count, ROWS: tl.constexpr, STRIDE: tl.constexpr, ALIGN: tl.constexpr):
    """ROWS separate pointers to weight rows, and whether each row exists."""
    rows, there = (), ()
    for r in tl.static_range(ROWS):
        rows = appended(rows, rows_at(weight, first + r, STRIDE, ALIGN))
        there = appended(there, first + r < count)
    return rows, there


@triton.jit
def _source(row, m, mask_M, ROWS_AT: tl.constexpr):
    """Rows of x to multiply, gathered where ROWS_AT is given."""
    if ROWS_AT is not None:
        m = tl.load(pointer(row, ROWS_AT, tl.int32) + m, mask=mask_M, other=0).to(tl.int64)
    return m


@triton.jit
def _tokens(row, x, count, K: tl.constexpr, ROWS_AT: tl.constexpr, M: tl.constexpr):
    """Separate pointers to M rows of x, gathered where ROWS_AT is given."""
    if ROWS_AT is None:
        each = tokens_of(x, count, K, M)
    else:
        each, places = (), tokens_of(pointer(row, ROWS_AT, tl.int32), count, 1, M)
        for t in tl.static_range(M):
            own = tl.load(places[t], mask=count > 0, other=0)  # with no rows there may be no indices
            each = appended(each, x + own.to(tl.int64) * K)
    return each


@triton.jit
def _own_of(
    row, place, N: tl.constexpr, N_AT: tl.constexpr, END_1: tl.constexpr, END_2: tl.constexpr, END_3: tl.constexpr
):
    """The instruction row that a program works for, its place among that row's programs, and the rows of its weight."""
    if N is None:
        own = tl.where(place >= END_3, 3, tl.where(place >= END_2, 2, tl.where(place >= END_1, 1, 0)))
        row += own * ROW_WORDS
        place -= tl.where(own == 3, END_3, tl.where(own == 2, END_2, tl.where(own == 1, END_1, 0)))
        count = integer(row, N_AT)
    else:
        count = N
    return row, place, count


@triton.jit
def few(
    row, X: tl.constexpr, COUNT: tl.constexpr, ROWS_AT: tl.constexpr, NORM_AT: tl.constexpr, EPS: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS_AT: tl.constexpr, RESIDUAL: tl.constexpr, SCALE: tl.constexpr, Y: tl.constexpr,
    N: tl.constexpr, N_AT: tl.constexpr, END_1: tl.constexpr, END_2: tl.constexpr, END_3: tl.constexpr,
    BIAS: tl.constexpr, GELU: tl.constexpr, NORM: tl.constexpr, SHIFT: tl.constexpr, TYPE: tl.constexpr,
    K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, ALIGN: tl.constexpr, M: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, UNROLL: tl.constexpr, LINES: tl.constexpr, ONE: tl.constexpr,
    WHEN: tl.constexpr, unit=None,
):  # fmt: skip
    """y [T, N]: products with the N rows of one weight or, where N is None, with those of up to four weights.

    Their instruction rows are consecutive; the second one's programs begin at END_1, and so on. A program has ROWS
    weight rows and up to M tokens, in float32.
    """
    launch_dependents(WHEN)
    row, place, count = _own_of(row, unit_index(unit, 0), N, N_AT, END_1, END_2, END_3)
    first = place * ROWS
    n = first + tl.arange(0, ROWS)
    mask_N = n < count
    weight = pointer(row, WEIGHT, TYPE)
    rows_N = rows_at(weight, n, STRIDE, ALIGN)
    if WHEN == AHEAD:
        prefetch_rows(rows_N, mask_N, STRIDE, LINES)
        return
    if ONE:
        rows, there = _one_by_one(weight, first, count, ROWS, STRIDE, ALIGN)
        ahead = weights_ahead(rows, there, K, STRIDE, COLUMNS, STEP, M, NORM)
    x = pointer(row, X, tl.float32)
    norm = norm_at(row, x, NORM_AT, EPS, NORM, SHIFT)
    m = tl.arange(0, M)
    mask_M = m < integer(row, COUNT)
    if ONE:
        xs = _tokens(row, x, integer(row, COUNT), K, ROWS_AT, M)
    x += _source(row, m, mask_M, ROWS_AT) * K
    at = m.to(tl.int64)[:, None] * count + n[None, :]
    mask = mask_M[:, None] & mask_N[None, :]
    y = pointer(row, Y, tl.float32) + at
    if BIAS is not None:
        bias = tl.load(pointer(row, BIAS_AT, BIAS) + n, mask=mask_N, other=0.0).to(tl.float32)
    if RESIDUAL is not None:
        residual = pointer(row, RESIDUAL, tl.float32) + at
    wait_for_previous(WHEN)
    if RESIDUAL is not None:  # loads while the products are computed
        added = tl.load(residual, mask=mask, other=0.0)
    if ONE:
        dots = one_dot(ahead, xs, rows, there, norm, K, STRIDE, COLUMNS, NORM, SHIFT, STEP)
    else:
        dots = few_dots(x, mask_M, rows_N, mask_N, norm, K, STRIDE, COLUMNS, TYPE, NORM, SHIFT, M, ROWS, STEP, UNROLL)
    if BIAS is not None:
        dots += bias[None, :]
    dots = scaled(row, dots, SCALE)
    if GELU is not None:
        dots = gelu_of(dots, GELU)
    if RESIDUAL is not None:
        dots += added
    tl.store(y, dots, mask=mask)

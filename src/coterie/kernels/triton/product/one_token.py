"""Products of one token with a weight, on CUDA cores, in float32; for packed weights, of up to four tokens.

A program has a few weight rows, and each thread the same columns of all of them: it loads an activation once for all
rows, in loads as wide as the weights', and only sums go through shared memory. The first weights are loaded before the
token is ready.
Knows nothing about what becomes of the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.norms import moments, scaled_and_shifted
from coterie.kernels.triton.product.few_tokens import MAX_AHEAD, ONCE
from coterie.kernels.triton.product.one_token_packed import (
    add_packed,
    bytes_ahead,
    bytes_per_thread,
    from_units,
    packed_dots,
)
from coterie.kernels.triton.product.packed import bytes_per_block
from coterie.kernels.triton.product.sums import all_totals, appended, no_sums, row_totals, stacked
from coterie.kernels.triton.product.sums import totals as totals_of


@triton.jit
def weights_ahead(
    rows, there, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, M: tl.constexpr = 1,
    NORM: tl.constexpr = None,
):  # fmt: skip
    """The first weights of rows, as many steps as registers hold next to M tokens: loaded before the tokens are ready.

    They stay unconverted: a thread that widened them would wait for the load. `NORM` is the type of the tokens' norm.
    """
    ahead = ()
    if bytes_per_block(rows[0].dtype.element_ty, K, COLUMNS):
        ahead = bytes_ahead(rows, there, K, STRIDE, COLUMNS, STEP, M, NORM)
    else:
        for first in tl.static_range(0, min(K, MAX_AHEAD * STEP), STEP):
            for r in tl.static_range(len(rows)):
                ahead = appended(ahead, _weights(rows[r], there[r], first, K, STEP))
    return ahead


@triton.jit
def _weights(row, there, first, K: tl.constexpr, STEP: tl.constexpr):
    k = first + tl.arange(0, STEP)
    return tl.load(row + k, mask=there & (k < K), other=0, eviction_policy=ONCE)


@triton.jit
def tokens_of(x, count, K: tl.constexpr, M: tl.constexpr):
    """Pointers to M tokens of x [count, K]; those past the end point to the last one."""
    each = (x,)
    for t in tl.static_range(1, M):
        each = appended(each, x + tl.maximum(tl.minimum(count - 1, t), 0).to(tl.int64) * K)
    return each


@triton.jit
def one_dot(
    ahead, xs, rows, there, norm, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, NORM: tl.constexpr,
    SHIFT: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """[M, N] products of M tokens with N weight rows (both pointers); norm as in few_dots. M is 1 for unpacked weights.

    `ahead` comes from weights_ahead.
    """
    if bytes_per_block(rows[0].dtype.element_ty, K, COLUMNS):
        y = packed_dots(ahead, xs, rows, there, norm, K, STRIDE, COLUMNS, NORM, SHIFT, STEP)
    else:
        y = _dot(ahead, xs[0], rows, there, norm, K, NORM, SHIFT, STEP)
    return y


@triton.jit
def _dot(ahead, x, rows, there, norm, K: tl.constexpr, NORM: tl.constexpr, SHIFT: tl.constexpr, STEP: tl.constexpr):
    """The same for one token and unpacked rows."""
    N: tl.constexpr = len(rows)
    sums = no_sums(N, STEP)
    squares = tl.zeros([STEP], tl.float32)
    if SHIFT is not None:
        mean, factor = moments(x, norm[2], K, STEP)
    for i in tl.static_range((K + STEP - 1) // STEP):
        k = i * STEP + tl.arange(0, STEP)
        values = tl.load(x + k, mask=k < K, other=0.0)
        if SHIFT is not None:
            values = scaled_and_shifted((values - mean) * factor, norm, k, K, SHIFT)
        elif NORM is not None:
            squares += values * values
            values = scaled_and_shifted(values, norm, k, K, SHIFT)
        more = ()
        for r in tl.static_range(N):
            if (i * N + r) < len(ahead):
                w = ahead[i * N + r]
            else:
                w = _weights(rows[r], there[r], i * STEP, K, STEP)
            more = appended(more, sums[r] + w.to(tl.float32) * values)
        sums = more
    divided: tl.constexpr = NORM is not None and SHIFT is None
    if divided:
        sums = appended(sums, squares)
    totals = totals_of(sums)
    y = stacked(totals, N)
    if divided:
        y = y / tl.sqrt(totals[N] / K + norm[2])
    return y[None, :]


@triton.jit
def sums_of(
    N: tl.constexpr, TYPE: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """Zeroed partial sums of N rows, for add_products."""
    if bytes_per_block(TYPE, K, COLUMNS):
        sums = no_sums(N, STEP // bytes_per_thread(STRIDE, TYPE, None))
    else:
        sums = no_sums(N, STEP)
    return sums


@triton.jit
def add_products(
    sums, x, rows, there, times, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr
):
    """Partial sums of each row, plus the products of `times` x (one token) with the rows."""
    if bytes_per_block(rows[0].dtype.element_ty, K, COLUMNS):
        sums, _ = add_packed(  # sums stand in for squares, which are not used
            sums, sums, (), (x,), rows, there, None, (), times, K, STRIDE, COLUMNS, None, None, STEP
        )  # fmt: skip
    else:
        for i in tl.static_range((K + STEP - 1) // STEP):
            k = i * STEP + tl.arange(0, STEP)
            values = tl.load(x + k, mask=k < K, other=0.0) * times
            more = ()
            for r in tl.static_range(len(rows)):
                w = _weights(rows[r], there[r], i * STEP, K, STEP)
                more = appended(more, sums[r] + w.to(tl.float32) * values)
            sums = more
    return sums


@triton.jit
def product_totals(sums, TYPE: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr):
    """[1, N] totals of the sums that add_products returned."""
    if bytes_per_block(TYPE, K, COLUMNS):
        y = from_units(all_totals(sums), TYPE, K, COLUMNS)[None, :]
    else:
        y = row_totals(sums)
    return y

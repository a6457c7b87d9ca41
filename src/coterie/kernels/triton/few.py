"""Dot products of few rows of activations with rows of a weight, on ordinary cores, in float32.

A program has a few rows of the weight and all tokens: each byte of the weight is read once. One token is a case of its
own, whose first weights may be loaded before the token is there.
Knows nothing about what becomes of the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import INTERPRETED, ask
from coterie.kernels.triton.norms import moments, moments_of_rows, scaled_and_shifted
from coterie.kernels.triton.packed import (
    BLOCK,
    GROUP_Q2,
    GROUP_Q4,
    GROUP_Q8,
    high_half,
    low_half,
    no_weights,
    of_block,
    scales_of,
    two_bits,
    zeros_of,
)

LINE_BYTES = tl.constexpr(128)  # of the second-level cache
# Weights that are read once a step leave the caches first: rows, tables and activations stay.
ONCE = tl.constexpr("evict_first")
MOST_AHEAD = tl.constexpr(3)  # steps of a product whose weights wait in registers for the token


@triton.jit
def bring_nearer(rows_N, mask_N, STRIDE: tl.constexpr, LINES: tl.constexpr):
    """Ask for rows of a weight before what they meet is known. `LINES` of a row are asked for at once.

    Rows beyond the weight count as its first.
    """
    if not INTERPRETED:
        each: tl.constexpr = LINE_BYTES * 8 // rows_N.dtype.element_ty.primitive_bitwidth
        for first in tl.static_range(0, STRIDE, each * LINES):
            c = tl.minimum(first + tl.arange(0, LINES) * each, STRIDE - 1)
            ask(rows_N[:, None] + tl.where(mask_N[:, None], c[None, :], 0))


@triton.jit
def _read(x, mask_M, k, K: tl.constexpr, norm, mean, factor, NORM: tl.constexpr, SHIFT: tl.constexpr):
    """Columns k of rows of x [M, len(k)] as they are, and as their norm has them; an RMS norm divides the products."""
    values = tl.load(x[:, None] + k[None, :], mask=mask_M[:, None] & (k < K)[None, :], other=0.0)
    scaled = values
    if SHIFT is not None:
        scaled = scaled_and_shifted((values - mean[:, None]) * factor[:, None], norm, k, K, SHIFT)
    elif NORM is not None:
        scaled = scaled_and_shifted(values, norm, k, K, SHIFT)
    return values, scaled


@triton.jit
def and_one(those, one):
    """A tuple, and one more."""
    those += (one,)
    return those


@triton.jit
def weights_ahead(rows, there, K: tl.constexpr, STEP: tl.constexpr):
    """Of rows of a weight that meet one token, step by step, as much as registers hold: loaded before the token is.

    As they are: a thread that widened them would wait for them.
    """
    ahead = ()
    for first in tl.static_range(0, min(K, MOST_AHEAD * STEP), STEP):
        for r in tl.static_range(len(rows)):
            ahead = and_one(ahead, _weights(rows[r], there[r], first, K, STEP))
    return ahead


@triton.jit
def _weights(row, there, first, K: tl.constexpr, STEP: tl.constexpr):
    k = first + tl.arange(0, STEP)
    return tl.load(row + k, mask=there & (k < K), other=0, eviction_policy=ONCE)


@triton.jit
def one_dot(ahead, x, rows, there, norm, K: tl.constexpr, NORM: tl.constexpr, SHIFT: tl.constexpr, STEP: tl.constexpr):
    """[1, N] products of a token x (a pointer) with N rows (pointers) of a weight that is not packed; norm as few_dots.

    Each thread loads the values that its own weights meet, as wide as those, once for all rows: nothing but sums goes
    through shared memory, and those all at once. `ahead` is what weights_ahead gave.
    """
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
            more = and_one(more, sums[r] + w.to(tl.float32) * values)
        sums = more
    divided: tl.constexpr = NORM is not None and SHIFT is None
    if divided:
        sums = and_one(sums, squares)
    totals = _totals(sums)
    y = _stacked(totals, N)
    if divided:
        y = y / tl.sqrt(totals[N] / K + norm[2])
    return y[None, :]


@triton.jit
def add_products(sums, x, rows, there, times, K: tl.constexpr, STEP: tl.constexpr):
    """Sums of each row by threads, as those of one_dot, and the products of `times` a token x with them."""
    for i in tl.static_range((K + STEP - 1) // STEP):
        k = i * STEP + tl.arange(0, STEP)
        values = tl.load(x + k, mask=k < K, other=0.0) * times
        more = ()
        for r in tl.static_range(len(rows)):
            more = and_one(more, sums[r] + _weights(rows[r], there[r], i * STEP, K, STEP).to(tl.float32) * values)
        sums = more
    return sums


@triton.jit
def no_sums(N: tl.constexpr, STEP: tl.constexpr):
    """Sums of N rows by threads, to be added to."""
    sums = ()
    for _r in tl.static_range(N):
        sums = and_one(sums, tl.zeros([STEP], tl.float32))
    return sums


@triton.jit
def added_up(sums):
    """[1, N] of sums by threads."""
    return _stacked(_totals(sums), len(sums))[None, :]


@triton.jit
def _stacked(totals, N: tl.constexpr):
    """The first N as one tensor."""
    y = tl.zeros([N], tl.float32)
    for r in tl.static_range(N):
        y = tl.where(tl.arange(0, N) == r, totals[r], y)
    return y


@triton.jit
def _totals(sums):
    """The sums of up to five tensors [STEP], all at once: each by itself would wait for all threads."""
    totals = ()
    if INTERPRETED or len(sums) == 1:
        for i in tl.static_range(len(sums)):
            totals = and_one(totals, tl.sum(sums[i], axis=0))
    elif len(sums) == 2:
        totals = tl.reduce(sums, 0, _add_2)
    elif len(sums) == 3:
        totals = tl.reduce(sums, 0, _add_3)
    elif len(sums) == 4:
        totals = tl.reduce(sums, 0, _add_4)
    else:
        totals = tl.reduce(sums, 0, _add_5)
    return totals


@triton.jit
def _add_2(a, b, p, q):
    return a + p, b + q


@triton.jit
def _add_3(a, b, c, p, q, r):
    return a + p, b + q, c + r


@triton.jit
def _add_4(a, b, c, d, p, q, r, s):
    return a + p, b + q, c + r, d + s


@triton.jit
def _add_5(a, b, c, d, e, p, q, r, s, t):
    return a + p, b + q, c + r, d + s, e + t


@triton.jit
def few_dots(
    x,
    mask_M,
    rows_N,
    mask_N,
    norm,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    TYPE: tl.constexpr,
    NORM: tl.constexpr,
    SHIFT: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """[M, N] products of rows x (pointers) with rows of a weight, of norm(x) where there is a norm.

    A row's root mean square divides all of its products alike, so one pass over the weight serves the norm as well. A
    layer norm's mean and variance take two passes over the row before, so that nothing large is taken off the products.
    """
    packed: tl.constexpr = of_block(TYPE, K, COLUMNS)
    acc = tl.zeros([M, N, STEP], tl.float32)
    squares = tl.zeros([M, STEP], tl.float32)
    mean, factor = 0.0, 1.0
    if SHIFT is not None:
        mean, factor = moments_of_rows(x, mask_M, norm[2], K, M, STEP)
    for first in tl.range(0, COLUMNS, STEP, loop_unroll_factor=UNROLL):
        c = first + tl.arange(0, STEP)
        mask = mask_N[:, None] & (c < COLUMNS)[None, :]
        if packed == GROUP_Q2:
            four = tl.load(rows_N[:, None] + c[None, :], mask=mask, other=0, eviction_policy=ONCE).to(tl.int32)
            scale = scales_of(rows_N, mask_N, first, COLUMNS, N, STEP, GROUP_Q2)
            k = 2 * first + tl.arange(0, 2 * STEP)  # two that follow one another meet a byte
            k = k // (BLOCK // 2) * BLOCK + k % (BLOCK // 2)
            for half in tl.static_range(2):
                raw, scaled = _read(x, mask_M, k + half * (BLOCK // 2), K, norm, mean, factor, NORM, SHIFT)
                even, odd = tl.split(tl.reshape(scaled, [M, STEP, 2]))
                acc += two_bits(four >> 2 * half, scale)[None, :, :] * even[:, None, :]
                acc += two_bits(four >> 2 * half + 4, scale)[None, :, :] * odd[:, None, :]
                even, odd = tl.split(tl.reshape(raw * raw, [M, STEP, 2]))
                squares += even + odd
        elif packed == GROUP_Q4:
            both = tl.load(rows_N[:, None] + c[None, :], mask=mask, other=no_weights(TYPE), eviction_policy=ONCE).to(
                tl.int32
            )
            scale = scales_of(rows_N, mask_N, first, COLUMNS, N, STEP, GROUP_Q4)
            zero = zeros_of(rows_N, mask_N, first, COLUMNS, STRIDE, N, STEP)
            k = c // GROUP_Q4 * (2 * GROUP_Q4) + c % GROUP_Q4
            raw, scaled = _read(x, mask_M, k, K, norm, mean, factor, NORM, SHIFT)
            acc += low_half(both, scale, zero, TYPE)[None, :, :] * scaled[:, None, :]
            squares += raw * raw
            raw, scaled = _read(x, mask_M, k + GROUP_Q4, K, norm, mean, factor, NORM, SHIFT)
            acc += high_half(both, scale, zero, TYPE)[None, :, :] * scaled[:, None, :]
            squares += raw * raw
        else:
            w = tl.load(rows_N[:, None] + c[None, :], mask=mask, other=0, eviction_policy=ONCE).to(tl.float32)
            if packed:
                w *= scales_of(rows_N, mask_N, first, COLUMNS, N, STEP, GROUP_Q8)
            raw, scaled = _read(x, mask_M, c, K, norm, mean, factor, NORM, SHIFT)
            acc += w[None, :, :] * scaled[:, None, :]
            squares += raw * raw
    sums = tl.sum(acc, axis=2)
    if NORM is not None and SHIFT is None:
        sums = sums / tl.sqrt(tl.sum(squares, axis=1) / K + norm[2])[:, None]
    return sums

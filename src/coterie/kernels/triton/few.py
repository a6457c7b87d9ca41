"""Dot products of few rows of activations with rows of a weight, on ordinary cores, in float32.

A program has a few rows of the weight and all tokens: each byte of the weight is read once. One token is a case of its
own, whose first weights may be loaded before the token is there.
Knows nothing about what becomes of the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import INTERPRETED, ask
from coterie.kernels.triton.dots import GROUP_Q4, GROUP_Q8, scales_of

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
def _read(x, mask_M, k, K: tl.constexpr, norm, NORM: tl.constexpr):
    """Columns k of rows of x [M, len(k)] as they are, and times the norm's weight."""
    values = tl.load(x[:, None] + k[None, :], mask=mask_M[:, None] & (k < K)[None, :], other=0.0)
    scaled = values
    if NORM is not None:
        scaled = values * tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    return values, scaled


@triton.jit
def weights_ahead(
    rows_N, mask_N, K: tl.constexpr, TYPE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr
):
    """Rows of a weight that meet one token, STEP columns each, as far as registers go: loaded before the token is.

    As they are: a thread that widened them would wait for them.
    """
    ahead = ()
    if M == 1 and TYPE != tl.uint8 and TYPE != tl.int8:
        none = tl.zeros([N, 1], tl.int32)
        for first in tl.static_range(0, min(K, MOST_AHEAD * STEP), STEP):
            k = first + tl.arange(0, STEP)[None, :] + none
            ahead += (_weights(rows_N, mask_N, k, K),)  # type: ignore[assignment]
    return ahead


@triton.jit
def _weights(rows_N, mask_N, k, K: tl.constexpr):
    return tl.load(rows_N[:, None] + k, mask=mask_N[:, None] & (k < K), other=0, eviction_policy=ONCE)


@triton.jit
def _add_one(acc, squares, w, x, mask_M, k, norm, K: tl.constexpr, NORM: tl.constexpr):
    """Add products of weights [N, STEP] and a token's values at columns k to their sums, and squares of the values."""
    values = tl.load(x[:, None] + k, mask=mask_M[:, None] & (k < K), other=0.0)
    if NORM is not None:
        squares += values * values
        values *= tl.load(norm + k, mask=k < K, other=0.0).to(tl.float32)
    return acc + w.to(tl.float32) * values, squares


@triton.jit
def one_dot(
    ahead,
    x,
    mask_M,
    rows_N,
    mask_N,
    norm,
    eps,
    K: tl.constexpr,
    NORM: tl.constexpr,
    N: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """[1, N] products of the one row x (a pointer) with rows of a weight that is not packed; norm as in few_dots.

    Each thread loads the values that its own weights meet, as wide as those: nothing goes through shared memory.
    """
    none = tl.zeros([N, 1], tl.int32)
    sums, squares = tl.zeros([N, STEP], tl.float32), tl.zeros([N, STEP], tl.float32)
    for i in tl.static_range(len(ahead)):
        k = i * STEP + tl.arange(0, STEP)[None, :] + none
        sums, squares = _add_one(sums, squares, ahead[i], x, mask_M, k, norm, K, NORM)
    for first in tl.range(len(ahead) * STEP, K, STEP, loop_unroll_factor=UNROLL):
        k = first + tl.arange(0, STEP)[None, :] + none
        w = _weights(rows_N, mask_N, k, K)
        sums, squares = _add_one(sums, squares, w, x, mask_M, k, norm, K, NORM)
    y = tl.sum(sums, axis=1)
    if NORM is not None:
        y = y / tl.sqrt(tl.sum(squares, axis=1) / K + eps)
    return y[None, :]


@triton.jit
def few_dots(
    ahead,
    x,
    mask_M,
    rows_N,
    mask_N,
    norm,
    eps,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    TYPE: tl.constexpr,
    NORM: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """[M, N] products of rows x (pointers) with rows of a weight, of rms_norm(x) where there is a norm.

    A row's root mean square divides all of its products alike, so one pass over the weight serves the norm as well.
    `ahead` is what weights_ahead gave.
    """
    if M == 1 and TYPE != tl.uint8 and TYPE != tl.int8:
        return one_dot(ahead, x, mask_M, rows_N, mask_N, norm, eps, K, NORM, N, STEP, UNROLL)
    acc = tl.zeros([M, N, STEP], tl.float32)
    squares = tl.zeros([M, STEP], tl.float32)
    for first in tl.range(0, COLUMNS, STEP, loop_unroll_factor=UNROLL):
        c = first + tl.arange(0, STEP)
        mask = mask_N[:, None] & (c < COLUMNS)[None, :]
        if TYPE == tl.uint8:
            both = tl.load(rows_N[:, None] + c[None, :], mask=mask, other=0x88, eviction_policy=ONCE).to(tl.int32)
            scale = scales_of(rows_N, mask_N, first, COLUMNS, N, STEP, GROUP_Q4)
            k = c // GROUP_Q4 * (2 * GROUP_Q4) + c % GROUP_Q4
            raw, scaled = _read(x, mask_M, k, K, norm, NORM)
            acc += (((both & 15) - 8).to(tl.float32) * scale)[None, :, :] * scaled[:, None, :]
            squares += raw * raw
            raw, scaled = _read(x, mask_M, k + GROUP_Q4, K, norm, NORM)
            acc += (((both >> 4) - 8).to(tl.float32) * scale)[None, :, :] * scaled[:, None, :]
            squares += raw * raw
        else:
            w = tl.load(rows_N[:, None] + c[None, :], mask=mask, other=0, eviction_policy=ONCE).to(tl.float32)
            if TYPE == tl.int8:
                w *= scales_of(rows_N, mask_N, first, COLUMNS, N, STEP, GROUP_Q8)
            raw, scaled = _read(x, mask_M, c, K, norm, NORM)
            acc += w[None, :, :] * scaled[:, None, :]
            squares += raw * raw
    sums = tl.sum(acc, axis=2)
    if NORM is not None:
        sums = sums / tl.sqrt(tl.sum(squares, axis=1) / K + eps)[:, None]
    return sums

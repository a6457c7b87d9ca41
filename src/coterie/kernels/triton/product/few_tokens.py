"""Products of few tokens with a weight, on CUDA cores, in float32.

A program has a few weight rows and all tokens, so each byte of the weight is read once. A single token has kernels of
its own: one_token.py.
Knows nothing about what becomes of the products.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import INTERPRETED, prefetch
from coterie.kernels.triton.norms import moments_of_rows, scaled_and_shifted
from coterie.kernels.triton.product.bytes_to_floats import int8_to_float
from coterie.kernels.triton.product.packed import (
    BLOCK,
    GROUP_Q2,
    GROUP_Q4,
    GROUP_Q8,
    SIX_BITS,
    bytes_per_block,
    high_half,
    low_half,
    no_weights,
    scales_of,
    two_bits,
    zeros_of,
)
from coterie.kernels.triton.product.six_bits import PARTS, columns_of, part_of, weights_at

LINE_BYTES = tl.constexpr(128)  # of the L2 cache
# Weights are read once per step and evicted first; instruction rows, tables and activations stay cached.
ONCE = tl.constexpr("evict_first")
MAX_AHEAD = tl.constexpr(3)  # steps whose weights are loaded to registers before the token is ready


@triton.jit
def prefetch_rows(rows_N, mask_N, STRIDE: tl.constexpr, LINES: tl.constexpr, WHOLE: tl.constexpr = True):
    """Prefetch weight rows to L2 before their activations are ready: LINES cache lines of each row at a time.

    The whole row if WHOLE, else only the first LINES. Never past the weight's end, where memory may not be mapped.
    """
    if not INTERPRETED:
        each: tl.constexpr = LINE_BYTES * 8 // rows_N.dtype.element_ty.primitive_bitwidth
        for first in tl.static_range(0, STRIDE if WHOLE else 1, each * LINES):
            c = tl.minimum(first + tl.arange(0, LINES) * each, STRIDE - 1)
            prefetch(rows_N[:, None] + c[None, :], mask_N[:, None])


@triton.jit
def _read(x, mask_M, k, K: tl.constexpr, norm, mean, factor, NORM: tl.constexpr, SHIFT: tl.constexpr):
    """Columns k of rows of x [M, len(k)], raw and normed. An RMS norm's division is left out: the products get it."""
    values = tl.load(x[:, None] + k[None, :], mask=mask_M[:, None] & (k < K)[None, :], other=0.0)
    scaled = values
    if SHIFT is not None:
        scaled = scaled_and_shifted((values - mean[:, None]) * factor[:, None], norm, k, K, SHIFT)
    elif NORM is not None:
        scaled = scaled_and_shifted(values, norm, k, K, SHIFT)
    return values, scaled


@triton.jit
def few_dots(
    x, mask_M, rows_N, mask_N, norm, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, TYPE: tl.constexpr,
    NORM: tl.constexpr, SHIFT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """[M, N] products of M tokens with N weight rows (both pointers); of norm(x) where there is a norm (`norm_at`).

    Sums are [M, N, STEP], reduced once at the end. An RMS norm divides all products of a token alike, so one pass over
    the weight serves the norm as well. For a layer norm, mean and variance take two passes over the token first:
    subtracting the mean from the products would cancel large values.
    """
    packed: tl.constexpr = bytes_per_block(TYPE, K, COLUMNS)
    acc = tl.zeros([M, N, STEP], tl.float32)
    squares = tl.zeros([M, STEP], tl.float32)
    mean, factor = 0.0, 1.0
    if SHIFT is not None:
        mean, factor = moments_of_rows(x, mask_M, norm[2], K, M, STEP)
    for first in tl.range(0, COLUMNS, STEP, loop_unroll_factor=UNROLL):
        c = first + tl.arange(0, STEP)
        mask = mask_N[:, None] & (c < COLUMNS)[None, :]
        if packed == SIX_BITS:
            columns = columns_of(rows_N, mask_N, first, STRIDE, COLUMNS, N, STEP, ONCE)
            for part in tl.static_range(PARTS):
                raw, scaled = _read(x, mask_M, weights_at(c, part), K, norm, mean, factor, NORM, SHIFT)
                acc += part_of(columns, part)[None, :, :] * scaled[:, None, :]
                squares += raw * raw
        elif packed == GROUP_Q2:
            four = tl.load(rows_N[:, None] + c[None, :], mask=mask, other=0, eviction_policy=ONCE).to(tl.int32)
            scale = scales_of(rows_N, mask_N, first, COLUMNS, N, STEP, GROUP_Q2)
            k = 2 * first + tl.arange(0, 2 * STEP)  # each byte has two adjacent weights here
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
            w = tl.load(rows_N[:, None] + c[None, :], mask=mask, other=0, eviction_policy=ONCE)
            if packed:
                w = int8_to_float(w) * scales_of(rows_N, mask_N, first, COLUMNS, N, STEP, GROUP_Q8)
            raw, scaled = _read(x, mask_M, c, K, norm, mean, factor, NORM, SHIFT)
            acc += w.to(tl.float32)[None, :, :] * scaled[:, None, :]
            squares += raw * raw
    sums = tl.sum(acc, axis=2)
    if NORM is not None and SHIFT is None:
        sums = sums / tl.sqrt(tl.sum(squares, axis=1) / K + norm[2])[:, None]
    return sums

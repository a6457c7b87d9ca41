"""Norms of both kinds inside other kernels: mean and factor of the values, and the norm's weight and bias.

    RMS norm     x * factor * (weight + offset)             SHIFT None
    layer norm   (x - mean) * factor * weight + bias        SHIFT the type of its bias; void if it has none

In an instruction row, the norm's eps is followed by the offset of its weight, then by its bias.
Knows nothing about what the values are multiplied by.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import pointer, real

if TYPE_CHECKING:
    from coterie.kernels.triton.rows import Call

BARE = tl.constexpr(tl.void)  # SHIFT of a layer norm without a bias


def shift_of(call: Call) -> object:
    """SHIFT of the norm that a call begins with."""
    return (call.type("norm_bias") or BARE.value) if call.integer("centred") else None


@triton.jit
def norm_at(row, x, NORM_AT: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, SHIFT: tl.constexpr):
    """A norm's weight, bias, eps and offset; `x` is a placeholder for pointers that do not exist."""
    weight, bias, eps, offset = x, x, 0.0, 0.0
    if NORM is not None:
        weight = pointer(row, NORM_AT, NORM)
        eps, offset = real(row, EPS).to(tl.float32), real(row, EPS + 1).to(tl.float32)
        if SHIFT is not None:
            if SHIFT != BARE:
                bias = pointer(row, EPS + 2, SHIFT)
    return weight, bias, eps, offset


@triton.jit
def scaled_and_shifted(values, norm, k, K: tl.constexpr, SHIFT: tl.constexpr):
    """Columns k of values [.., len(k)], centred and divided if need be, times the weight, plus the bias."""
    y = values * (tl.load(norm[0] + k, mask=k < K, other=0.0).to(tl.float32) + norm[3])
    if SHIFT is not None:
        if SHIFT != BARE:
            y += tl.load(norm[1] + k, mask=k < K, other=0.0).to(tl.float32)
    return y


@triton.jit
def norm_factor(x, eps, K: tl.constexpr, STEP: tl.constexpr):
    """1 / root mean square of K values. If they are one step, the compiler reuses their registers for later loads."""
    squares = tl.zeros([STEP], tl.float32)
    for first in tl.static_range(0, K, STEP):
        k = first + tl.arange(0, STEP)
        values = tl.load(x + k, mask=k < K, other=0.0)
        squares += values * values
    return 1.0 / tl.sqrt(tl.sum(squares, axis=0) / K + eps)


@triton.jit
def moments(x, eps, K: tl.constexpr, STEP: tl.constexpr):
    """The mean of K values, and 1 / their standard deviation."""
    sums = tl.zeros([STEP], tl.float32)
    for first in tl.static_range(0, K, STEP):
        k = first + tl.arange(0, STEP)
        sums += tl.load(x + k, mask=k < K, other=0.0)
    mean = tl.sum(sums, axis=0) / K
    squares = tl.zeros([STEP], tl.float32)
    for first in tl.static_range(0, K, STEP):
        k = first + tl.arange(0, STEP)
        apart = tl.where(k < K, tl.load(x + k, mask=k < K, other=0.0) - mean, 0.0)
        squares += apart * apart
    return mean, 1.0 / tl.sqrt(tl.sum(squares, axis=0) / K + eps)


@triton.jit
def moments_of_rows(x, mask_M, eps, K: tl.constexpr, M: tl.constexpr, STEP: tl.constexpr):
    """The same for each of M rows (pointers)."""
    sums = tl.zeros([M, STEP], tl.float32)
    for first in tl.range(0, K, STEP):
        k = first + tl.arange(0, STEP)
        sums += tl.load(x[:, None] + k[None, :], mask=mask_M[:, None] & (k < K)[None, :], other=0.0)
    mean = tl.sum(sums, axis=1) / K
    squares = tl.zeros([M, STEP], tl.float32)
    for first in tl.range(0, K, STEP):
        k = first + tl.arange(0, STEP)
        values = tl.load(x[:, None] + k[None, :], mask=mask_M[:, None] & (k < K)[None, :], other=0.0)
        apart = tl.where((k < K)[None, :], values - mean[:, None], 0.0)
        squares += apart * apart
    return mean, 1.0 / tl.sqrt(tl.sum(squares, axis=1) / K + eps)

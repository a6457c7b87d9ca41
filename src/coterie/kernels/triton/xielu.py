"""xielu: y = a * x * x + beta * x where x > 0, else b * (exp(min(x, eps)) - 1 - x) + beta * x.

    a = softplus(alpha_p), b = beta + softplus(alpha_n); all four parameters are single numbers

Source: Huang and Schlag 2024 (arXiv 2411.13010). Knows nothing about shapes: values are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, pointer, softplus_of, unit_index
from coterie.kernels.triton.rows import Call, operand_words

X, Y, T, ALPHA_P, ALPHA_N, BETA, EPS = operand_words("xielu", "x", "y", "T", "alpha_p", "alpha_n", "beta", "eps")
PARAMETERS = ("alpha_p", "alpha_n", "beta", "eps")


@triton.jit
def _parameter(row, at: tl.constexpr, TYPE: tl.constexpr):
    return tl.load(pointer(row, at, TYPE)).to(tl.float32)


@triton.jit
def _expm1_minus_x(x):
    """exp(x) - 1 - x for x <= 0: near 0 by its Taylor polynomial of degree 9, to avoid cancellation."""
    p = x * (1.0 / 362880.0) + 1.0 / 40320.0
    p = p * x + 1.0 / 5040.0
    p = p * x + 1.0 / 720.0
    p = p * x + 1.0 / 120.0
    p = p * x + 1.0 / 24.0
    p = p * x + 1.0 / 6.0
    p = p * x + 0.5
    return tl.where(x > -0.5, p * x * x, tl.exp(x) - 1.0 - x)


@triton.jit
def _map(
    row,
    N: tl.constexpr,
    P_TYPE: tl.constexpr,
    N_TYPE: tl.constexpr,
    BETA_TYPE: tl.constexpr,
    EPS_TYPE: tl.constexpr,
    STEP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    unit=None,
):
    beta, eps = _parameter(row, BETA, BETA_TYPE), _parameter(row, EPS, EPS_TYPE)
    above, below = softplus_of(_parameter(row, ALPHA_P, P_TYPE)), beta + softplus_of(_parameter(row, ALPHA_N, N_TYPE))
    count = integer(row, T).to(tl.int64) * N
    for first in tl.range(unit_index(unit, 0).to(tl.int64) * STEP, count, PROGRAMS * STEP):
        i = first + tl.arange(0, STEP)
        x = tl.load(pointer(row, X, tl.float32) + i, mask=i < count, other=0.0)
        clamped = tl.minimum(x, eps)
        y = tl.where(x > 0, above * x * x, below * (_expm1_minus_x(clamped) + (clamped - x))) + beta * x
        tl.store(pointer(row, Y, tl.float32) + i, y, mask=i < count)


def launch(call: Call) -> None:
    """Programs in a loop over all values."""
    N, step, tiles = call.integer("N"), call.tiles.elements, call.tiles
    programs = min(triton.cdiv(call.bucket.tokens * N, step), tiles.mapping * tiles.multiprocessors)
    types = zip(("P_TYPE", "N_TYPE", "BETA_TYPE", "EPS_TYPE"), map(call.type, PARAMETERS), strict=True)
    call.launch(_map, (programs,), call.row, N=N, **dict(types), STEP=step, PROGRAMS=programs)

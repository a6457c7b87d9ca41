"""norm_add: y = residual + norm(x), optionally times one number; x, y and the residual are [T, D].

Knows nothing about what the residual is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, pointer, unit_index
from coterie.kernels.triton.norms import moments, norm_at, norm_factor, scaled_and_shifted, shift_of
from coterie.kernels.triton.rows import Call, operand_words

X, NORM, Y, RESIDUAL, T, EPS, FACTOR_AT = operand_words("norm_add", "x", "norm", "y", "residual", "T", "eps", "factor")


@triton.jit
def _norm_add(
    row,
    D: tl.constexpr,
    TYPE: tl.constexpr,
    SHIFT: tl.constexpr,
    FACTOR: tl.constexpr,
    STEP: tl.constexpr,
    unit=None,
):
    """A program norms one token, with sums in float32, and adds its residual."""
    t = unit_index(unit, 0)
    if t < integer(row, T):
        start = t.to(tl.int64) * D
        x = pointer(row, X, tl.float32) + start
        norm = norm_at(row, x, NORM, EPS, TYPE, SHIFT)
        if SHIFT is None:
            factor = norm_factor(x, norm[2], D, STEP)
        else:
            mean, factor = moments(x, norm[2], D, STEP)
        for first in tl.range(0, D, STEP):
            d = first + tl.arange(0, STEP)
            residual = tl.load(pointer(row, RESIDUAL, tl.float32) + start + d, mask=d < D, other=0.0)
            values = tl.load(x + d, mask=d < D, other=0.0)
            if SHIFT is not None:
                values -= mean
            normed = scaled_and_shifted(values * factor, norm, d, D, SHIFT)
            y = residual + normed
            if FACTOR is not None:
                y *= tl.load(pointer(row, FACTOR_AT, FACTOR)).to(tl.float32)
            tl.store(pointer(row, Y, tl.float32) + start + d, y, mask=d < D)


def launch(call: Call) -> None:
    """A program per row."""
    D = call.integer("D")
    how = {"TYPE": call.type("norm"), "SHIFT": shift_of(call), "FACTOR": call.type("factor")}
    call.launch(_norm_add, (call.bucket.tokens,), call.row, D=D, **how, STEP=call.tiles.step(D))

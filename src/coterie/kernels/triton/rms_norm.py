"""rms_norm: y = x / rms(x, last axis) * (weight + offset), with y [T, per_token, C].

Rows of x are `x_step` apart, from `x_first` on; a step of 0 means contiguous rows.
Knows nothing about what the rows are: tokens, or heads of tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, real, unit_index, wait_for_previous
from coterie.kernels.triton.norms import norm_factor
from coterie.kernels.triton.rows import Call, operand_words

X, WEIGHT, Y, T, EPS, OFFSET = operand_words("rms_norm", "x", "weight", "y", "T", "eps", "offset")


@triton.jit
def _norm(
    row,
    PER_TOKEN: tl.constexpr,
    C: tl.constexpr,
    X_FIRST: tl.constexpr,
    X_STEP: tl.constexpr,
    TYPE: tl.constexpr,
    STEP: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """A program norms one row of C values: a pass for the sum of squares, in float32, and one for the results."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    i = unit_index(unit, 0)
    if i < integer(row, T) * PER_TOKEN:
        x = pointer(row, X, tl.float32) + i.to(tl.int64) * X_STEP + X_FIRST
        y = pointer(row, Y, tl.float32) + i.to(tl.int64) * C
        weight = pointer(row, WEIGHT, TYPE)
        offset = real(row, OFFSET).to(tl.float32)
        factor = norm_factor(x, real(row, EPS).to(tl.float32), C, STEP)
        for first in tl.range(0, C, STEP):
            c = first + tl.arange(0, STEP)
            scale = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32) + offset
            tl.store(y + c, tl.load(x + c, mask=c < C, other=0.0) * factor * scale, mask=c < C)


def launch(call: Call) -> None:
    """A program per row."""
    per_token, C = call.integer("per_token"), call.integer("C")
    step = call.tiles.step(C)
    grid = (call.bucket.tokens * per_token,)
    apart = {"X_FIRST": call.integer("x_first"), "X_STEP": call.integer("x_step") or C}
    call.launch(_norm, grid, call.row, PER_TOKEN=per_token, C=C, **apart, TYPE=call.type("weight"), STEP=step)

"""layer_norm: y = (x - mean) / std * weight + bias, over the last axis of x [T, per_token, C]; the bias is optional.

Knows nothing about what the rows are: tokens, or heads of tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, pointer, real, unit_index
from coterie.kernels.triton.norms import moments
from coterie.kernels.triton.rows import Call, operand_words

X, WEIGHT, BIAS_AT, Y, T, EPS = operand_words("layer_norm", "x", "weight", "bias", "y", "T", "eps")


@triton.jit
def _layer_norm(
    row,
    PER_TOKEN: tl.constexpr,
    C: tl.constexpr,
    TYPE: tl.constexpr,
    BIAS: tl.constexpr,
    STEP: tl.constexpr,
    unit=None,
):
    """A program norms one row of C values: two passes for its moments, in float32, and one for the results."""
    i = unit_index(unit, 0)
    if i < integer(row, T) * PER_TOKEN:
        x = pointer(row, X, tl.float32) + i.to(tl.int64) * C
        y = pointer(row, Y, tl.float32) + i.to(tl.int64) * C
        mean, factor = moments(x, real(row, EPS).to(tl.float32), C, STEP)
        for first in tl.range(0, C, STEP):
            c = first + tl.arange(0, STEP)
            scale = tl.load(pointer(row, WEIGHT, TYPE) + c, mask=c < C, other=0.0).to(tl.float32)
            values = (tl.load(x + c, mask=c < C, other=0.0) - mean) * factor * scale
            if BIAS is not None:
                values += tl.load(pointer(row, BIAS_AT, BIAS) + c, mask=c < C, other=0.0).to(tl.float32)
            tl.store(y + c, values, mask=c < C)


def launch(call: Call) -> None:
    """A program per row."""
    per_token, C = call.integer("per_token"), call.integer("C")
    grid = (call.bucket.tokens * per_token,)
    types = {"TYPE": call.type("weight"), "BIAS": call.type("bias")}
    call.launch(_layer_norm, grid, call.row, PER_TOKEN=per_token, C=C, **types, STEP=call.tiles.step(C))

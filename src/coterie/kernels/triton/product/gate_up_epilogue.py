"""The end of products with gate and up: biases, the gate's activation, their product, and the store.

Knows nothing about how rows are multiplied.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import gelu_of, narrow, pointer, silu_of
from coterie.kernels.triton.rows import operand_words

GATE_BIAS_AT, UP_BIAS_AT = operand_words("norm_gate_up_silu_mul", "gate_bias", "up_bias")


@triton.jit
def gate_up_epilogue(
    row,
    to,
    gate,
    up,
    f,
    m,
    mask_m,
    F: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    ahead,
    AHEAD: tl.constexpr,
):
    """Store activation(gate) * up at `to`, each with its bias if any; and, rounded, at `ahead` for the next launch.

    GELU is the form of gelu; without one the activation is silu.
    """
    if GATE_BIAS is not None:
        gate += tl.load(pointer(row, GATE_BIAS_AT, GATE_BIAS) + f, mask=f < F, other=0.0).to(tl.float32)
    if UP_BIAS is not None:
        up += tl.load(pointer(row, UP_BIAS_AT, UP_BIAS) + f, mask=f < F, other=0.0).to(tl.float32)
    at = m.to(tl.int64) * F + f
    if GELU is None:
        y = silu_of(gate) * up
    else:
        y = gelu_of(gate, GELU) * up
    store_value(to, ahead, at, y, mask_m & (f < F), AHEAD)


@triton.jit
def store_value(to, ahead, at, y, mask, AHEAD: tl.constexpr):
    """Store values at `to` unless it is None, and rounded to AHEAD at `ahead` unless AHEAD is None."""
    if to is not None:
        tl.store(to + at, y, mask=mask)
    if AHEAD is not None:
        tl.store(ahead + at, narrow(y, AHEAD), mask=mask)

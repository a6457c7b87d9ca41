"""The end of a branch's products with gate and up: silu(gate) * up, gelu(gate) * up, or clipped, with biases.

    clipped: (u + 1) * g * sigmoid(alpha * g)       g = min(gate + its bias, limit)
                                                    u = up + its bias, clamped to [-limit, limit]

Rows of the variants are those of branch_gate_up with more words at the end. Biases of all branches are contiguous.
Knows nothing about how rows are multiplied, or which tokens take which branch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import pointer, real
from coterie.kernels.triton.product.gate_up_epilogue import gate_up_epilogue, store_value
from coterie.kernels.triton.rows import Call, operand_words

CLIPPED, GELU = "branch_gate_up_clipped", "branch_gate_up_gelu"
GATE_BIAS_AT, UP_BIAS_AT, ALPHA, LIMIT = operand_words(CLIPPED, "gate_bias", "up_bias", "alpha", "limit")


@triton.jit
def _clipped(row, gate, up, at, mask, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr):
    """The clipped product, with biases from element `at` on; NaN stays NaN."""
    gate += tl.load(pointer(row, GATE_BIAS_AT, GATE_BIAS) + at, mask=mask, other=0.0).to(tl.float32)
    up += tl.load(pointer(row, UP_BIAS_AT, UP_BIAS) + at, mask=mask, other=0.0).to(tl.float32)
    alpha, limit = real(row, ALPHA).to(tl.float32), real(row, LIMIT).to(tl.float32)
    gate = tl.where(gate > limit, limit, gate)
    up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    return (up + 1.0) * (gate / (1.0 + tl.exp(-alpha * gate)))


@triton.jit
def branch_epilogue(
    row,
    to,
    gate,
    up,
    branch,
    f,
    pair,
    mask,
    F: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    ahead,
    AHEAD: tl.constexpr,
):
    """Store outputs of a branch's pairs at `to`, as gate_up_epilogue does. Types of biases are None unless clipped."""
    if GATE_BIAS is None:
        gate_up_epilogue(row, to, gate, up, f, pair, mask, F, None, None, GELU, ahead, AHEAD)
    else:
        y = _clipped(row, gate, up, branch * F + f, f < F, GATE_BIAS, UP_BIAS)
        store_value(to, ahead, pair.to(tl.int64) * F + f, y, mask & (f < F), AHEAD)


def biases_of(call: Call) -> dict[str, object]:
    """Compile-time parameters for kernels that end in branch_epilogue."""
    if call.name != CLIPPED:
        return {"GATE_BIAS": None, "UP_BIAS": None, "GELU": call.integer("form") if call.name == GELU else None}
    return {"GATE_BIAS": call.type("gate_bias"), "UP_BIAS": call.type("up_bias"), "GELU": None}

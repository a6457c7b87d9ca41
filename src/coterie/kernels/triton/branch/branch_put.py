"""What becomes of products with gate and up of a branch: silu(gate) * up, gelu(gate) * up, or with biases and clipped.

    clipped: (u + 1) * g * sigmoid(alpha * g)       g = gate + its bias, at most limit
                                                    u = up + its bias, within -limit and limit

Rows of the others are that of branch_gate_up with more words behind. Of all branches the biases lie one after another.
Knows nothing about how rows are multiplied, or who takes which branch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import pointer, real
from coterie.kernels.triton.product.gate_up_put import put, put_value
from coterie.kernels.triton.rows import Call, places

CLIPPED, GELU = "branch_gate_up_clipped", "branch_gate_up_gelu"
GATE_BIAS_AT, UP_BIAS_AT, ALPHA, LIMIT = places(CLIPPED, "gate_bias", "up_bias", "alpha", "limit")


@triton.jit
def _clipped(row, gate, up, at, mask, GATE_BIAS: tl.constexpr, UP_BIAS: tl.constexpr):
    """The gated product, where biases begin at element `at`; what is no number stays so."""
    gate += tl.load(pointer(row, GATE_BIAS_AT, GATE_BIAS) + at, mask=mask, other=0.0).to(tl.float32)
    up += tl.load(pointer(row, UP_BIAS_AT, UP_BIAS) + at, mask=mask, other=0.0).to(tl.float32)
    alpha, limit = real(row, ALPHA).to(tl.float32), real(row, LIMIT).to(tl.float32)
    gate = tl.where(gate > limit, limit, gate)
    up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    return (up + 1.0) * (gate / (1.0 + tl.exp(-alpha * gate)))


@triton.jit
def put_pairs(
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
    """Store what pairs of a branch have from `to` on, as `put` does. The types of biases are None but where clipped."""
    if GATE_BIAS is None:
        put(row, to, gate, up, f, pair, mask, F, None, None, GELU, ahead, AHEAD)
    else:
        y = _clipped(row, gate, up, branch * F + f, f < F, GATE_BIAS, UP_BIAS)
        put_value(to, ahead, pair.to(tl.int64) * F + f, y, mask & (f < F), AHEAD)


def biases_of(call: Call) -> dict[str, object]:
    """What a kernel is compiled for that ends in put_pairs."""
    if call.name != CLIPPED:
        return {"GATE_BIAS": None, "UP_BIAS": None, "GELU": call.integer("form") if call.name == GELU else None}
    return {"GATE_BIAS": call.type("gate_bias"), "UP_BIAS": call.type("up_bias"), "GELU": None}

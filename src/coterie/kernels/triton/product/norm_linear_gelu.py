"""norm_linear_gelu: y = gelu(n @ weight.T + bias) with n = norm(x), or x without a norm: linear's kernels, then gelu.

Knows nothing about layers.
"""

from __future__ import annotations

from coterie.kernels.triton.product.dots import staged_bytes
from coterie.kernels.triton.product.linear import multiply
from coterie.kernels.triton.rows import Call


def launch(call: Call) -> None:
    """Norm and multiply in one pass where the step has few tokens; else norm to scratch, then on tensor cores."""
    multiply(call, call.integer("D"), call.bucket.tokens)


def scratch_bytes(call: Call) -> int:
    """What staged activations take."""
    return staged_bytes(call, [call.matrix("weight", call.integer("D"))])

"""norm_linear_gelu: y = gelu(n @ weight.T + bias) with n = norm(x), or x without a norm, by linear's kernels.

Knows nothing about layers.
"""

from __future__ import annotations

from coterie.kernels.triton.product.dots import staged_bytes
from coterie.kernels.triton.product.linear import multiply
from coterie.kernels.triton.rows import Call


def launch(call: Call) -> None:
    """Norm and multiply in one pass for few tokens; else norm to scratch, then multiply on tensor cores."""
    multiply(call, call.integer("D"), call.bucket.tokens)


def scratch_bytes(call: Call) -> int:
    """Bytes of staged activations."""
    return staged_bytes(call, [call.matrix("weight", call.integer("D"))])

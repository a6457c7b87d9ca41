"""take_norm_linear: y = (norm(x[rows]) @ weight.T + bias) * scale: linear's, on rows gathered and normed.

Knows nothing about what the products are: logits, as a rule.
"""

from __future__ import annotations

from coterie.kernels.triton.product.dots import staged_bytes
from coterie.kernels.triton.product.linear import multiply
from coterie.kernels.triton.rows import Call


def launch(call: Call) -> None:
    """Norm and multiply in one pass where the step samples few rows; else norm to scratch, then on tensor cores."""
    multiply(call, call.integer("D"), call.bucket.sampled)


def scratch_bytes(call: Call) -> int:
    """What staged activations take."""
    return staged_bytes(call, [call.matrix("weight", call.integer("D"))], gathered=True)

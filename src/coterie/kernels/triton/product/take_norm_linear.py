"""take_norm_linear: y = (norm(x[rows]) @ weight.T + bias) * scale, by linear's kernels.

Knows nothing about what the products are: usually logits.
"""

from __future__ import annotations

from coterie.kernels.triton.product.dots import staged_bytes
from coterie.kernels.triton.product.linear import multiply
from coterie.kernels.triton.rows import Call


def launch(call: Call) -> None:
    """Norm and multiply in one pass for few sampled rows; else norm to scratch, then multiply on tensor cores."""
    multiply(call, call.integer("D"), call.bucket.sampled)


def scratch_bytes(call: Call) -> int:
    """Bytes of staged activations."""
    return staged_bytes(call, [call.matrix("weight", call.integer("D"))], gathered=True)

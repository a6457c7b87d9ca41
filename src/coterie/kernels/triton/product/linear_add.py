"""linear_add: y = (x @ weight.T + bias) * scale + residual, by linear's kernels.

Knows nothing about what the residual is.
"""

from __future__ import annotations

from coterie.kernels.triton.product.linear import launch, scratch_bytes

__all__ = ["launch", "scratch_bytes"]

"""All cases of kernels for GPUs, of every file that has some, as docs/triton.md shows them.

Knows nothing about what a case is.
"""

from __future__ import annotations

from tests.device import triton_cases, triton_clipped_cases, triton_delta_cases, triton_layer_cases

QUICK = [*triton_cases.QUICK, *triton_clipped_cases.QUICK, *triton_delta_cases.QUICK, *triton_layer_cases.QUICK]
LONG = [*triton_cases.LONG, *triton_clipped_cases.LONG, *triton_delta_cases.LONG, *triton_layer_cases.LONG]

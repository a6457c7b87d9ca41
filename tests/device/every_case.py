"""All cases of kernels for GPUs, of every file that has some, as docs/triton_tables.md shows them.

Knows nothing about what a case is.
"""

from __future__ import annotations

from tests.device import (
    triton_attention_cases,
    triton_branch_cases,
    triton_cases,
    triton_latent_cases,
    triton_plain_cases,
    triton_recurrence_cases,
)

FILES = (
    triton_cases,
    triton_attention_cases,
    triton_plain_cases,
    triton_branch_cases,
    triton_latent_cases,
    triton_recurrence_cases,
)
QUICK = [case for file in FILES for case in file.QUICK]
LONG = [case for file in FILES for case in file.LONG]

"""mul_part: y = a * N columns of b, from a given column on.

Knows nothing about what the columns are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, pointer, unit_index
from coterie.kernels.triton.rows import Call, operand_words

A, B, Y, T, FIRST = operand_words("mul_part", "a", "b", "y", "T", "b_first")


@triton.jit
def _mul_part(row, N: tl.constexpr, B_STEP: tl.constexpr, STEP: tl.constexpr, unit=None):
    t = unit_index(unit, 0)
    if t < integer(row, T):
        a = pointer(row, A, tl.float32) + t.to(tl.int64) * N
        b = pointer(row, B, tl.float32) + t.to(tl.int64) * B_STEP + integer(row, FIRST)
        y = pointer(row, Y, tl.float32) + t.to(tl.int64) * N
        for first in tl.range(0, N, STEP):
            n = first + tl.arange(0, STEP)
            both = tl.load(a + n, mask=n < N, other=0.0) * tl.load(b + n, mask=n < N, other=0.0)
            tl.store(y + n, both, mask=n < N)


def launch(call: Call) -> None:
    """A program per token."""
    N = call.integer("N")
    how = {"N": N, "B_STEP": call.integer("b_step"), "STEP": call.tiles.step(N)}
    call.launch(_mul_part, (call.bucket.tokens,), call.row, **how)

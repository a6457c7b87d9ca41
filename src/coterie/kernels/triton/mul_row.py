"""mul_row: y = x * row, with one factor per channel.

Knows nothing about what the channels are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, pointer, unit_index
from coterie.kernels.triton.rows import Call, operand_words

X, ROW, Y, T = operand_words("mul_row", "x", "row", "y", "T")


@triton.jit
def _mul_row(row, N: tl.constexpr, STEP: tl.constexpr, unit=None):
    t = unit_index(unit, 0)
    if t < integer(row, T):
        at = t.to(tl.int64) * N
        x, y, factors = (
            pointer(row, X, tl.float32) + at,
            pointer(row, Y, tl.float32) + at,
            pointer(row, ROW, tl.float32),
        )
        for first in tl.range(0, N, STEP):
            n = first + tl.arange(0, STEP)
            both = tl.load(x + n, mask=n < N, other=0.0) * tl.load(factors + n, mask=n < N, other=0.0)
            tl.store(y + n, both, mask=n < N)


def launch(call: Call) -> None:
    """A program per token."""
    N = call.integer("N")
    call.launch(_mul_row, (call.bucket.tokens,), call.row, N=N, STEP=call.tiles.step(N))

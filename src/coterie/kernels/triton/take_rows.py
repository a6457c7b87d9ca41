"""take_rows: y [R, D] = x[rows].

Knows nothing about what rows are taken for.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import integer, pointer, unit_index
from coterie.kernels.triton.rows import Call, operand_words

X, ROWS, Y, R = operand_words("take_rows", "x", "rows", "y", "R")


@triton.jit
def _take(row, D: tl.constexpr, STEP: tl.constexpr, unit=None):
    r = unit_index(unit, 0)
    if r < integer(row, R):
        source = tl.load(pointer(row, ROWS, tl.int32) + r).to(tl.int64)
        d = unit_index(unit, 1) * STEP + tl.arange(0, STEP)
        values = tl.load(pointer(row, X, tl.float32) + source * D + d, mask=d < D)
        tl.store(pointer(row, Y, tl.float32) + r.to(tl.int64) * D + d, values, mask=d < D)


def launch(call: Call) -> None:
    """A program per row and piece of it."""
    D, step = call.integer("D"), call.tiles.elements
    call.launch(_take, (call.bucket.sampled, triton.cdiv(D, step)), call.row, D=D, STEP=step)

"""norm_add: y = residual + rms_norm(x).

Knows nothing about what the residual is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import along, integer, pointer, real
from coterie.kernels.triton.dots import norm_factor
from coterie.kernels.triton.rows import Call, places

X, NORM, Y, RESIDUAL, T, EPS, OFFSET = places("norm_add", "x", "norm", "y", "residual", "T", "eps", "offset")


@triton.jit
def _norm_add(row, D: tl.constexpr, TYPE: tl.constexpr, STEP: tl.constexpr, unit=None):
    t = along(unit, 0)
    if t < integer(row, T):
        start = t.to(tl.int64) * D
        x = pointer(row, X, tl.float32) + start
        offset = real(row, OFFSET).to(tl.float32)
        factor = norm_factor(x, real(row, EPS).to(tl.float32), D, STEP)
        for first in tl.range(0, D, STEP):
            d = first + tl.arange(0, STEP)
            scale = tl.load(pointer(row, NORM, TYPE) + d, mask=d < D, other=0.0).to(tl.float32) + offset
            residual = tl.load(pointer(row, RESIDUAL, tl.float32) + start + d, mask=d < D, other=0.0)
            normed = tl.load(x + d, mask=d < D, other=0.0) * factor * scale
            tl.store(pointer(row, Y, tl.float32) + start + d, residual + normed, mask=d < D)


def launch(call: Call) -> None:
    """A program for each row."""
    D = call.integer("D")
    call.launch(_norm_add, (call.bucket.tokens,), call.row, D=D, TYPE=call.type("norm"), STEP=call.tiles.step(D))

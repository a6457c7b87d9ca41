"""sigmoid: y = 1 / (1 + exp(-x)), and sigmoid_mul: y = a * sigmoid(x).

x is read in rows of C values, `x_step` apart, from `x_first` on: some heads of a projection that interleaves them with
others.
Knows nothing about what is gated.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import integer, launch_dependents, narrow, pointer, unit_index, wait_for_previous
from coterie.kernels.triton.product.staged_ahead import is_stored, stage_for_next, staged_ahead_bytes
from coterie.kernels.triton.rows import Call, operand_words

X, Y, T = operand_words("sigmoid", "x", "y", "T")
A = tl.constexpr(OPCODES["sigmoid_mul"].words["a"])


@triton.jit
def sigmoid_of(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _sigmoid(
    row,
    ahead,
    N: tl.constexpr,
    C: tl.constexpr,
    X_FIRST: tl.constexpr,
    X_STEP: tl.constexpr,
    MUL: tl.constexpr,
    STEP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    AHEAD: tl.constexpr,
    STORED: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    count = integer(row, T).to(tl.int64) * N
    for first in tl.range(unit_index(unit, 0).to(tl.int64) * STEP, count, PROGRAMS * STEP):
        i = first + tl.arange(0, STEP)
        x = pointer(row, X, tl.float32) + i // C * X_STEP + (X_FIRST + i % C)
        y = sigmoid_of(tl.load(x, mask=i < count, other=0.0))
        if MUL:
            y *= tl.load(pointer(row, A, tl.float32) + i, mask=i < count, other=0.0)
        if STORED:
            tl.store(pointer(row, Y, tl.float32) + i, y, mask=i < count)
        if AHEAD is not None:
            tl.store(ahead + i, narrow(y, AHEAD), mask=i < count)


def launch(call: Call) -> None:
    """Programs in a loop over all values."""
    N, step, tiles = call.integer("N"), call.tiles.elements, call.tiles
    programs = min(triton.cdiv(call.bucket.tokens * N, step), tiles.mapping * tiles.multiprocessors)
    how: dict[str, object] = {"N": N, "C": call.integer("C"), "X_FIRST": call.integer("x_first")}
    how |= {"X_STEP": call.integer("x_step"), "MUL": call.name == "sigmoid_mul", "STEP": step, "PROGRAMS": programs}
    ahead, how["AHEAD"] = stage_for_next(call, N)
    call.launch(_sigmoid, (programs,), call.row, ahead, **how, STORED=is_stored(call, N))


def scratch_bytes(call: Call) -> int:
    """Bytes of what is staged for the next launch."""
    return staged_ahead_bytes(call, call.integer("N"))

"""add_branch_bias: y[t] = x[t] + the sum over the branches that token t takes of weight * bias.

If x is the output of the previous row, branch_down, that row's kernels add the biases as well, reading this row's
operands, and this row launches nothing. The sum without biases is then stored only if something else reads it.

    branch_down    x, weights, matrices -> sum  .             next row: x = that sum, the same weights, biases
                                                 `-> its y    -----------------------------------------------

Knows nothing about what branches compute.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.cpu import ROW_WORDS as _ROW_WORDS
from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, unit_index, wait_for_previous
from coterie.kernels.triton.product.staged_ahead import BRANCH_CONSUMERS, is_read_later
from coterie.kernels.triton.rows import Call, operand_words
from coterie.kernels.triton.tiles import power_of_two

NAME = "add_branch_bias"
X, WEIGHTS, BIAS_AT, Y, T = operand_words(NAME, "x", "weights", "bias", "y", "T")
SUM_AT = tl.constexpr(OPCODES["branch_down"].words["y"])
NEXT_ROW = tl.constexpr(_ROW_WORDS)  # words from an instruction row to the next one
VALUES = 4096  # biases per tile, over all branches; only those of branches taken are read


@triton.jit
def next_row_bias(row, branch, n, mask, N: tl.constexpr, BIAS: tl.constexpr):
    """Biases n of a branch, found through the next instruction row."""
    at = pointer(row + NEXT_ROW, BIAS_AT, BIAS) + branch * N + n
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_sum(row, at, y, biased, mask, BIAS: tl.constexpr, SUMMED: tl.constexpr):
    """Store a sum of branch_down, if SUMMED, and the next row's y, if its biases were added here."""
    if SUMMED:
        tl.store(pointer(row, SUM_AT, tl.float32) + at, y, mask=mask)
    if BIAS is not None:
        tl.store(pointer(row + NEXT_ROW, Y, tl.float32) + at, biased, mask=mask)


@triton.jit
def _add(
    row,
    E: tl.constexpr,
    WIDE: tl.constexpr,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    STEP: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """y of one token and STEP channels."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    t = unit_index(unit, 1)
    if t < integer(row, T):
        e, n = tl.arange(0, WIDE), unit_index(unit, 0) * STEP + tl.arange(0, STEP)
        weights = tl.load(pointer(row, WEIGHTS, tl.float32) + t.to(tl.int64) * E + e, mask=e < E, other=0.0)
        taken = (weights != 0)[:, None] & (n < N)[None, :]
        biases = tl.load(pointer(row, BIAS_AT, BIAS) + e[:, None] * N + n[None, :], mask=taken, other=0.0)
        added = tl.sum(tl.where(taken, weights[:, None] * biases.to(tl.float32), 0.0), axis=0)
        at = t.to(tl.int64) * N + n
        y = tl.load(pointer(row, X, tl.float32) + at, mask=n < N, other=0.0)
        tl.store(pointer(row, Y, tl.float32) + at, y + added, mask=n < N)


def bias_constants(call: Call) -> dict[str, object]:
    """Compile-time parameters for kernels of branch_down, which end in store_sum."""
    if not _is_added_before(call, call.next):
        return {"BIAS": None, "SUMMED": True}
    return {"BIAS": call.next and call.next.type("bias"), "SUMMED": is_read_later(call, call.integer("D"))}


def launch(call: Call) -> None:
    """A program per token and tile of channels; nothing if the previous row adds the biases."""
    if call.previous is not None and _is_added_before(call.previous, call):
        return
    E, N = call.integer("E"), call.integer("D")
    wide = power_of_two(E)
    step = min(call.tiles.step(N), max(VALUES // wide, 1))
    grid = (triton.cdiv(N, step), call.bucket.tokens)
    call.launch(_add, grid, call.row, E=E, WIDE=wide, N=N, BIAS=call.type("bias"), STEP=step)


def _is_added_before(down: Call, call: Call | None) -> bool:
    """Whether a row of branch_down adds the biases of the next row."""
    if call is None or call.name != NAME or down.name not in BRANCH_CONSUMERS or not down.tiles.stages_ahead:
        return False
    alike = all(down.integer(size) == call.integer(size) for size in ("weights", "E", "D"))
    return alike and down.integer("y") == call.integer("x") and _is_apart(down, call)


def _is_apart(down: Call, call: Call) -> bool:
    """Whether y may be written while branch_down's programs run: no program reads there what another one writes.

    A residual may be replaced in place: each of its values is read by the program that overwrites it.
    """
    tokens, D = call.bucket.tokens, call.integer("D")
    start, size = call.integer("y"), 4 * tokens * D

    def is_apart(at: int, size_of: int) -> bool:
        return at + size_of <= start or start + size <= at

    residual = down.integer("residual") if "residual" in OPCODES[down.name].words else start
    x_bytes = 4 * tokens * down.integer("taken") * down.integer("F")
    return is_apart(down.integer("x"), x_bytes) and (residual == start or is_apart(residual, size))

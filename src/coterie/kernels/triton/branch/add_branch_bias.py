"""add_branch_bias: y[t] = x[t] + the sum over the branches that token t takes of weight * bias.

Where x is what the row before, of branch_down, sums up, that row's launches add the biases as they go, and this one has
none: they read the row behind theirs, and a sum that nobody else reads is not stored.

    branch_down    x, weights, matrices -> sum  .                  behind it: x = that sum, the same weights, biases
                                                 `-> y of this     -------------------------------------------------

Knows nothing about what branches compute.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.cpu import ROW_WORDS as _ROW_WORDS
from coterie.kernels.triton.arithmetic import along, integer, let_next_begin, pointer, wait_for_last
from coterie.kernels.triton.product.staged_ahead import TAKERS_OF_BRANCHES, is_read_later
from coterie.kernels.triton.rows import Call, places
from coterie.kernels.triton.tiles import power_of_two

NAME = "add_branch_bias"
X, WEIGHTS, BIAS_AT, Y, T = places(NAME, "x", "weights", "bias", "y", "T")
SUM_AT = tl.constexpr(OPCODES["branch_down"].words["y"])
BEHIND = tl.constexpr(_ROW_WORDS)  # words from a row to the next one
VALUES = 4096  # of biases in a tile, of all branches, of which those that are taken are read


@triton.jit
def bias_behind(row, branch, n, mask, N: tl.constexpr, BIAS: tl.constexpr):
    """Biases n of a branch, of the row behind this one."""
    at = pointer(row + BEHIND, BIAS_AT, BIAS) + branch * N + n
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def put_sum(row, at, y, biased, mask, BIAS: tl.constexpr, SUMMED: tl.constexpr):
    """Store a sum of branch_down, if SUMMED, and what the row behind makes of it, if it has biases."""
    if SUMMED:
        tl.store(pointer(row, SUM_AT, tl.float32) + at, y, mask=mask)
    if BIAS is not None:
        tl.store(pointer(row + BEHIND, Y, tl.float32) + at, biased, mask=mask)


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
    let_next_begin(WHEN)
    wait_for_last(WHEN)
    t = along(unit, 1)
    if t < integer(row, T):
        e, n = tl.arange(0, WIDE), along(unit, 0) * STEP + tl.arange(0, STEP)
        weights = tl.load(pointer(row, WEIGHTS, tl.float32) + t.to(tl.int64) * E + e, mask=e < E, other=0.0)
        taken = (weights != 0)[:, None] & (n < N)[None, :]
        biases = tl.load(pointer(row, BIAS_AT, BIAS) + e[:, None] * N + n[None, :], mask=taken, other=0.0)
        added = tl.sum(tl.where(taken, weights[:, None] * biases.to(tl.float32), 0.0), axis=0)
        at = t.to(tl.int64) * N + n
        y = tl.load(pointer(row, X, tl.float32) + at, mask=n < N, other=0.0)
        tl.store(pointer(row, Y, tl.float32) + at, y + added, mask=n < N)


def behind_of(call: Call) -> dict[str, object]:
    """What kernels of branch_down are compiled for that end in put_sum."""
    if not _is_added_before(call, call.after):
        return {"BIAS": None, "SUMMED": True}
    return {"BIAS": call.after and call.after.type("bias"), "SUMMED": is_read_later(call, call.integer("D"))}


def launch(call: Call) -> None:
    """A program a token and tile of numbers; nothing where the row before has added the biases."""
    if call.before is not None and _is_added_before(call.before, call):
        return
    E, N = call.integer("E"), call.integer("D")
    wide = power_of_two(E)
    step = min(call.tiles.step(N), max(VALUES // wide, 1))
    grid = (triton.cdiv(N, step), call.bucket.tokens)
    call.launch(_add, grid, call.row, E=E, WIDE=wide, N=N, BIAS=call.type("bias"), STEP=step)


def _is_added_before(down: Call, call: Call | None) -> bool:
    """Whether a row of branch_down adds the biases of the row behind it."""
    if call is None or call.name != NAME or down.name not in TAKERS_OF_BRANCHES or not down.tiles.stages_ahead:
        return False
    alike = all(down.integer(size) == call.integer(size) for size in ("weights", "E", "D"))
    return alike and down.integer("y") == call.integer("x") and _is_apart(down, call)


def _is_apart(down: Call, call: Call) -> bool:
    """Whether y may be written while that row's programs run: where it lies, none reads anything else than its own.

    A value of the residual is read by the program that replaces it.
    """
    tokens, D = call.bucket.tokens, call.integer("D")
    start, size = call.integer("y"), 4 * tokens * D

    def is_apart(at: int, size_of: int) -> bool:
        return at + size_of <= start or start + size <= at

    residual = down.integer("residual") if "residual" in OPCODES[down.name].words else start
    x_bytes = 4 * tokens * down.integer("taken") * down.integer("F")
    return is_apart(down.integer("x"), x_bytes) and (residual == start or is_apart(residual, size))

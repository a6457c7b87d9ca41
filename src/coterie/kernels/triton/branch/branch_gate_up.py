"""branch_gate_up: y[t, p] = silu(x[t] @ gate.T) * (x[t] @ up.T), for the p-th branch that token t takes.

x is [T, D], each branch's gate and up are [F, D], y is [T, A, F] for A branches per token. branch_gate_up_gelu uses
gelu; branch_gate_up_clipped adds biases and gates differently, see branch_epilogue.py.
A tile alternates rows of gate and of up, as in norm_gate_up_silu_mul.
Knows nothing about layers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import launch_dependents, pointer, unit_index, wait_for_previous
from coterie.kernels.triton.branch.branch_epilogue import biases_of, branch_epilogue
from coterie.kernels.triton.branch.branches import (
    Sizes,
    X,
    Y,
    as_int32,
    few_constants,
    ids_of,
    many_tile,
    matrix_at,
    pairs_of,
    slot_of,
    slots_of,
    tile_of,
)
from coterie.kernels.triton.norms import norm_at
from coterie.kernels.triton.product.dots import STRIPE, deinterleave, interleaved_rows, many_dots, stage
from coterie.kernels.triton.product.few_tokens import few_dots
from coterie.kernels.triton.product.one_token import one_dot, weights_ahead
from coterie.kernels.triton.product.staged_ahead import is_stored, stage_for_next, staged_ahead_bytes
from coterie.kernels.triton.product.sums import appended
from coterie.kernels.triton.rows import Call


@triton.jit
def _few(
    row,
    ids,
    E: tl.constexpr,
    WIDE: tl.constexpr,
    TAKEN: tl.constexpr,
    F: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    K: tl.constexpr,
    TYPE: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
    ONE: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """A program has ROWS / 2 rows of gate and of up of the branch in one slot, and all tokens, in float32."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    weights, counts, count = slots_of(row, as_int32(ids), E, TAKEN, M, WIDE)
    slot = unit_index(unit, 1)
    if slot < count:
        branch, weight, place = slot_of(row, weights, counts, slot, M, WIDE)
        gate, up = matrix_at(row, branch, TYPE), matrix_at(row, E + branch, TYPE)
        first = unit_index(unit, 0) * ROWS
        m = tl.arange(0, M)
        x = pointer(row, X, tl.float32)
        norm = norm_at(row, x, None, None, None, None)
        if ONE:
            each, have = (), ()
            for i in tl.static_range(ROWS):
                one_row, is_there = interleaved_rows(gate, up, first + i, F, STRIDE, ALIGN, 1)
                each = appended(each, one_row)
                have = appended(have, is_there)
            ahead = weights_ahead(each, have, K, STRIDE, COLUMNS, STEP)
            both = one_dot(ahead, (x + m * K,), each, have, norm, K, STRIDE, COLUMNS, None, None, STEP)
        else:
            rows, there = interleaved_rows(gate, up, first + tl.arange(0, ROWS), F, STRIDE, ALIGN, 1)
            both = few_dots(
                x + m * K, weight != 0, rows, there, norm, K, STRIDE, COLUMNS, TYPE, None, None, M, ROWS, STEP, UNROLL
            )
        gate_M, up_M = tl.split(tl.reshape(both, [M, ROWS // 2, 2]))
        f = unit_index(unit, 0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
        pair, mask_M = m * TAKEN + place, (weight != 0)[:, None]
        y = pointer(row, Y, tl.float32)
        branch_epilogue(
            row, y, gate_M, up_M, branch, f[None, :], pair[:, None], mask_M, F, GATE_BIAS, UP_BIAS, GELU, None, None
        )  # fmt: skip


@triton.jit
def _many(
    row,
    first,
    pairs,
    staged,
    ahead,
    AHEAD: tl.constexpr,
    STORED: tl.constexpr,
    E: tl.constexpr,
    WIDE: tl.constexpr,
    TAKEN: tl.constexpr,
    F: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    K: tl.constexpr,
    TYPE: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    DOT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STRIPE: tl.constexpr,
    WHEN: tl.constexpr,
):
    """A program has ROWS / 2 rows of gate and of up of one branch, and TOKENS of its pairs, on tensor cores."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    branch, pair, mask_M = tile_of(first, pairs, tl.program_id(1), E, WIDE, TOKENS)
    if branch < E:
        n_tile = tl.program_id(0)
        gate, up = matrix_at(row, branch, TYPE), matrix_at(row, E + branch, TYPE)
        rows, there = interleaved_rows(gate, up, n_tile * ROWS + tl.arange(0, ROWS), F, STRIDE, ALIGN, STRIPE)
        both = many_dots(staged, pair // TAKEN, mask_M, rows, there, K, STRIDE, COLUMNS, TYPE, DOT, TOKENS, ROWS, STEP)
        gate_N, up_N = deinterleave(both, ROWS, TOKENS, STRIPE)
        f = n_tile * (ROWS // 2) + tl.arange(0, ROWS // 2)
        to = None
        if STORED:
            to = pointer(row, Y, tl.float32)
        pair_M, mask = pair[None, :], mask_M[None, :]
        branch_epilogue(
            row, to, gate_N, up_N, branch, f[:, None], pair_M, mask, F, GATE_BIAS, UP_BIAS, GELU, ahead, AHEAD
        )


def launch(call: Call) -> None:
    """Multiply in float32 for few tokens; else list the pairs by branch, then multiply on tensor cores."""
    sizes, F, matrix = Sizes.of(call), call.integer("F"), call.matrix("branches", call.integer("D"))
    shared = {**sizes.constants, "F": F, **biases_of(call), **matrix.constants()}
    if sizes.tokens <= call.tiles.few_tokens:
        how = few_constants(call, matrix, 2 * F, 2)
        call.launch(_few, (triton.cdiv(2 * F, how["ROWS"]), sizes.slots), call.row, ids_of(call), **shared, **how)
        return
    first, pairs = pairs_of(call)
    staged = stage(call, [matrix], start=sizes.list_bytes)
    ahead, element = stage_for_next(call, sizes.taken * F)
    many, how = many_tile(call, matrix)
    grid = (triton.cdiv(2 * F, many.rows), sizes.tiles(many.tokens))
    how |= {"STRIPE": STRIPE.value, "AHEAD": element, "STORED": is_stored(call, sizes.taken * F)}
    call.launch(_many, grid, call.row, first, pairs, staged, ahead, **shared, **how)


def scratch_bytes(call: Call) -> int:
    """Bytes of lists, staged activations, and what is staged ahead; of lists alone for few tokens."""
    return staged_ahead_bytes(call, call.integer("taken") * call.integer("F"))

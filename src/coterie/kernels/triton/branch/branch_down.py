"""branch_down: y[t] = the sum over the branches that token t takes, in their order, of weight * (x[t, p] @ down.T).

x is [T, A, F], each branch's down is [D, F], y is [T, D]. branch_down_add adds a residual. Biases of the next row may
be added here too: see add_branch_bias.py.

    few tokens    a program has some rows of all matrices, and loops over the branches
    more          the products of each (token, branch) pair go to scratch, in tiles of a branch's pairs; a second launch
                  sums them up per token

No output is accumulated by several programs, so a sum has one order.
Knows nothing about layers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, unit_index, wait_for_previous
from coterie.kernels.triton.branch.add_branch_bias import bias_constants, next_row_bias, store_sum
from coterie.kernels.triton.branch.branches import (
    WEIGHTS,
    Sizes,
    T,
    X,
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
from coterie.kernels.triton.product.dots import many_dots, rows_at, stage
from coterie.kernels.triton.product.few_tokens import few_dots
from coterie.kernels.triton.product.one_token import add_products, product_totals, sums_of
from coterie.kernels.triton.product.staged_ahead import staged_ahead_end, staged_by_previous
from coterie.kernels.triton.product.sums import appended
from coterie.kernels.triton.product.tile import Q2_GROUP, Q6_GROUP
from coterie.kernels.triton.rows import TORCH, Call, Matrix, aligned

# Registers per thread where biases are added, by (format, several tokens): for 2-bit and 6-bit weights, where ptxas by
# itself takes 80 and 128, and spills 24 and 28 bytes.
REGISTERS = {(Q2_GROUP, False): 96, (Q6_GROUP, True): 160}
BRANCHES_IN_FLIGHT = 2  # branches of one token whose weights are in flight at once: registers have no room for more
MAX_SIX_BIT_COLUMNS = 2048  # most columns of 6-bit weights with room for two branches


@triton.jit
def _few(
    row,
    ids,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    SUMMED: tl.constexpr,
    E: tl.constexpr,
    WIDE: tl.constexpr,
    TAKEN: tl.constexpr,
    N: tl.constexpr,
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
    """A program has ROWS rows of each branch's matrix, and all tokens, in float32."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    first, m = unit_index(unit, 0) * ROWS, tl.arange(0, M)
    n = first + tl.arange(0, ROWS)
    x = pointer(row, X, tl.float32)
    weights, counts, count = slots_of(row, as_int32(ids), E, TAKEN, M, WIDE)
    y, biased = tl.zeros([M, ROWS], tl.float32), tl.zeros([M, ROWS], tl.float32)
    if ONE:
        sums = sums_of(ROWS, TYPE, K, STRIDE, COLUMNS, STEP)
        for slot in tl.range(0, count, loop_unroll_factor=UNROLL):
            branch = tl.load(as_int32(ids) + slot)
            weight, down = tl.load(pointer(row, WEIGHTS, tl.float32) + branch), matrix_at(row, branch, TYPE)
            rows, there = (), ()
            for r in tl.static_range(ROWS):
                rows = appended(rows, rows_at(down, first + r, STRIDE, ALIGN))
                there = appended(there, first + r < N)
            if BIAS is not None:
                biased += weight * next_row_bias(row, branch, n, n < N, N, BIAS)[None, :]
            sums = add_products(sums, x + slot * K, rows, there, weight, K, STRIDE, COLUMNS, STEP)
        y = product_totals(sums, TYPE, K, COLUMNS)
        biased += y
    else:
        norm = norm_at(row, x, None, None, None, None)
        for slot in tl.range(0, count):
            branch, weight, place = slot_of(row, weights, counts, slot, M, WIDE)
            rows_N = rows_at(matrix_at(row, branch, TYPE), n, STRIDE, ALIGN)
            x_M, mask_M = m * TAKEN + place, weight != 0
            dots = few_dots(
                x + x_M * K, mask_M, rows_N, n < N, norm, K, STRIDE, COLUMNS, TYPE, None, None, M, ROWS, STEP, UNROLL
            )
            if SUMMED:
                y += tl.where(mask_M[:, None], weight[:, None] * dots, 0.0)
            if BIAS is not None:
                dots += next_row_bias(row, branch, n, n < N, N, BIAS)[None, :]
                biased += tl.where(mask_M[:, None], weight[:, None] * dots, 0.0)
    at = m[:, None] * N + n[None, :]
    mask = (m < integer(row, T))[:, None] & (n < N)[None, :]
    if RESIDUAL is not None:
        residual = tl.load(pointer(row, RESIDUAL, tl.float32) + at, mask=mask, other=0.0)
        y += residual
        biased += residual
    store_sum(row, at, y, biased, mask, BIAS, SUMMED)


@triton.jit
def _many(
    row,
    first,
    pairs,
    staged,
    parts,
    E: tl.constexpr,
    WIDE: tl.constexpr,
    TAKEN: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    TYPE: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    DOT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    WHEN: tl.constexpr,
):
    """A program has a tile of ROWS rows x TOKENS pairs of one branch, on tensor cores.

    parts [T x A, N] = weight * product.
    """
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    branch, pair, mask_M = tile_of(first, pairs, tl.program_id(1), E, WIDE, TOKENS)
    if branch < E:
        n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        row_M = pair.to(tl.int64)  # 64-bit: activations may exceed 4 GiB
        rows_N = rows_at(matrix_at(row, branch, TYPE), n, STRIDE, ALIGN)
        y = many_dots(staged, row_M, mask_M, rows_N, n < N, K, STRIDE, COLUMNS, TYPE, DOT, TOKENS, ROWS, STEP)
        weights = pointer(row, WEIGHTS, tl.float32) + row_M // TAKEN * E + branch
        y *= tl.load(weights, mask=mask_M, other=0.0)[None, :]
        tl.store(parts + row_M[None, :] * N + n[:, None], y, mask=mask_M[None, :] & (n < N)[:, None])


@triton.jit
def _sum(
    row,
    parts,
    ids,
    RESIDUAL: tl.constexpr,
    BIAS: tl.constexpr,
    SUMMED: tl.constexpr,
    E: tl.constexpr,
    TAKEN: tl.constexpr,
    N: tl.constexpr,
    STEP: tl.constexpr,
    WHEN: tl.constexpr,
):
    """The sum of a token's parts, in the order of its branches."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    t = tl.program_id(0)
    if t < integer(row, T):
        n = tl.program_id(1) * STEP + tl.arange(0, STEP)
        parts += t.to(tl.int64) * TAKEN * N
        y, biases = tl.zeros([STEP], tl.float32), tl.zeros([STEP], tl.float32)
        for place in tl.range(0, TAKEN):
            y += tl.load(parts + place * N + n, mask=n < N, other=0.0)
            if BIAS is not None:
                branch = tl.load(as_int32(ids) + t * TAKEN + place)
                weight = tl.load(pointer(row, WEIGHTS, tl.float32) + t.to(tl.int64) * E + branch)
                biases += weight * next_row_bias(row, branch, n, n < N, N, BIAS)
        at = t.to(tl.int64) * N + n
        if RESIDUAL is not None:
            y += tl.load(pointer(row, RESIDUAL, tl.float32) + at, mask=n < N, other=0.0)
        store_sum(row, at, y, y + biases, n < N, BIAS, SUMMED)


def launch(call: Call) -> None:
    """Multiply in float32 for few tokens, else on tensor cores."""
    sizes, N, matrix = Sizes.of(call), call.integer("D"), call.matrix("branches", call.integer("F"))
    shared = {**sizes.constants, "N": N, **matrix.constants()}
    epilogue = {"RESIDUAL": OPCODES[call.name].words.get("residual"), **bias_constants(call)}
    if sizes.tokens <= call.tiles.few_tokens:
        how = few_constants(call, matrix, N, 1)
        how["UNROLL"] = (
            BRANCHES_IN_FLIGHT
            if how["ONE"] and not (matrix.group == Q6_GROUP and matrix.COLUMNS > MAX_SIX_BIT_COLUMNS)
            else 1
        )
        registers = REGISTERS.get((matrix.group, sizes.tokens > 1)) if epilogue["BIAS"] is not None else None
        how |= {"maxnreg": registers} if registers else {}
        call.launch(_few, (triton.cdiv(N, how["ROWS"]),), call.row, ids_of(call), **epilogue, **shared, **how)
        return
    first, pairs = pairs_of(call)
    staged = staged_by_previous(call)
    if staged is None:
        staged = stage(call, [matrix], start=sizes.list_bytes, each=sizes.taken)
    parts = call.scratch_as(tl.float32, sizes.pairs * N, _parts_at(call, sizes, matrix))
    many, how = many_tile(call, matrix)
    grid = (triton.cdiv(N, many.rows), sizes.tiles(many.tokens))
    call.launch(_many, grid, call.row, first, pairs, staged, parts, **shared, **how)
    step = call.tiles.step(N)
    grid = (sizes.tokens, triton.cdiv(N, step))
    ids = call.scratch_as(tl.float32, sizes.pairs)
    call.launch(_sum, grid, call.row, parts, ids, **epilogue, E=sizes.E, TAKEN=sizes.taken, N=N, STEP=step)


def _parts_at(call: Call, sizes: Sizes, matrix: Matrix) -> int:
    """Where the products of pairs begin in scratch: after the lists and the staged activations.

    The latter were staged by this row's launches or by the previous row's.
    """
    staged = sizes.pairs * matrix.K * TORCH[matrix.dot_type].itemsize
    return staged_ahead_end(call) or sizes.list_bytes + aligned(staged)


def scratch_bytes(call: Call) -> int:
    """Bytes of lists, staged activations and products of pairs; of lists alone for few tokens."""
    sizes = Sizes.of(call)
    matrix = call.matrix("branches", call.integer("F"))
    if sizes.tokens <= call.tiles.few_tokens:
        return sizes.list_bytes
    return _parts_at(call, sizes, matrix) + 4 * sizes.pairs * call.integer("D")

"""linear_each, linear_add_each: linear and linear_add of rows in shares, each of which has a weight of its own.

    rows      | 0 1 2 3 4 | 5       | 6 7     |        first 0 5 6 8
    weight    | each[0]   | each[1] | each[2] |

    up to 4   a program for a share and a few rows of its weight
    more      tiles of a share's rows, behind those of the shares before it

How many shares there are, and where they begin, is known on the GPU alone, so a launch serves every way to share a
step: grids are made for the most that there can be, and programs look up what is theirs, or end.
Knows nothing about whose weights these are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import integer, let_next_begin, pointer, wait_for_last
from coterie.kernels.triton.dots import many_dots, rows_at, stage, staged_bytes
from coterie.kernels.triton.few import few_dots
from coterie.kernels.triton.linear_put import put
from coterie.kernels.triton.norms import norm_at
from coterie.kernels.triton.rows import Call, Matrix
from coterie.kernels.triton.tiles import power_of_two


@triton.jit
def weight_of(row, share, EACH: tl.constexpr, TYPE: tl.constexpr):
    """The weight of a share, out of the table of addresses that the row points to."""
    at = tl.load(pointer(row, EACH, tl.int64) + share)
    return tl.multiple_of(at.to(tl.pointer_type(TYPE)), 16)


@triton.jit
def rows_of_share(row, share, COUNT: tl.constexpr, FIRST: tl.constexpr, SHARES: tl.constexpr):
    """Where the rows of a share begin and end; none of a share that there is not, or when a run is over."""
    there = share < integer(row, SHARES)
    first = pointer(row, FIRST, tl.int32) + share
    begin = tl.load(first, mask=there, other=0)
    end = tl.load(first + 1, mask=there, other=0)
    return begin, tl.minimum(end, integer(row, COUNT))


@triton.jit
def tile_of_share(
    row, tile, COUNT: tl.constexpr, FIRST: tl.constexpr, SHARES: tl.constexpr, WIDE: tl.constexpr, TOKENS: tl.constexpr
):
    """The share of a tile; its first row, and where its rows end, not beyond the first where there are fewer tiles.

    Each share has as many tiles as its rows fill, behind those of the shares before it.
    """
    s = tl.arange(0, WIDE)
    begins, ends = rows_of_share(row, s, COUNT, FIRST, SHARES)
    tiles = tl.maximum(tl.cdiv(ends - begins, TOKENS), 0)
    share = tl.sum((tl.cumsum(tiles, axis=0) <= tile).to(tl.int32), axis=0)
    within = tile - tl.sum(tl.where(s < share, tiles, 0), axis=0)
    begin = tl.sum(tl.where(s == share, begins, 0), axis=0) + within * TOKENS
    return share, begin, tl.sum(tl.where(s == share, ends, 0), axis=0)


@triton.jit
def _few_each(
    row,
    X: tl.constexpr,
    COUNT: tl.constexpr,
    EACH: tl.constexpr,
    FIRST: tl.constexpr,
    SHARES: tl.constexpr,
    BIAS_AT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCALE: tl.constexpr,
    Y: tl.constexpr,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    TYPE: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
    WHEN: tl.constexpr,
):
    let_next_begin(WHEN)
    share = tl.program_id(1)
    begin, end = rows_of_share(row, share, COUNT, FIRST, SHARES)
    wait_for_last(WHEN)
    if begin < end:
        n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        m = begin + tl.arange(0, M)
        mask_N, mask_M = n < N, m < end
        x = pointer(row, X, tl.float32)
        norm = norm_at(row, x, None, None, None, None)
        rows_N = rows_at(weight_of(row, share, EACH, TYPE), n, STRIDE, ALIGN)
        y = few_dots(
            x + m * K, mask_M, rows_N, mask_N, norm, K, STRIDE, COLUMNS, TYPE, None, None, M, ROWS, STEP, UNROLL
        )
        put(
            row, y, n[None, :], mask_N[None, :], m[:, None], mask_M[:, None],
            BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, None,
        )  # fmt: skip


@triton.jit
def _many_each(
    row,
    staged,
    X: tl.constexpr,
    COUNT: tl.constexpr,
    EACH: tl.constexpr,
    FIRST: tl.constexpr,
    SHARES: tl.constexpr,
    WIDE: tl.constexpr,
    BIAS_AT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCALE: tl.constexpr,
    Y: tl.constexpr,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    TYPE: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    DOT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    WHEN: tl.constexpr,
):
    let_next_begin(WHEN)
    share, begin, end = tile_of_share(row, tl.program_id(1), COUNT, FIRST, SHARES, WIDE, TOKENS)
    wait_for_last(WHEN)
    if begin < end:
        n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        m = begin + tl.arange(0, TOKENS)
        mask_N, mask_M = n < N, m < end
        x = staged
        if X is not None:
            x = pointer(row, X, tl.float32)
        rows_N = rows_at(weight_of(row, share, EACH, TYPE), n, STRIDE, ALIGN)
        y = many_dots(x, m, mask_M, rows_N, mask_N, K, STRIDE, COLUMNS, TYPE, DOT, TOKENS, ROWS, STEP)
        put(
            row, y, n[:, None], mask_N[:, None], m[None, :], mask_M[None, :],
            BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, None,
        )  # fmt: skip


def most_shares(call: Call) -> int:
    """The most that a step may have: sampled rows of a sequence need not follow one another, as its tokens do."""
    bucket = call.bucket
    return min(bucket.tokens, max(bucket.sequences, bucket.sampled))


def most_tiles(shares: int, rows: int, tile: int) -> int:
    """The most tiles of so many rows in shares: one of each share may be filled by a single row."""
    return (rows + shares * (tile - 1)) // tile


def launch(call: Call) -> None:
    """Multiply in float32 where the step has few tokens, else on tensor cores."""
    words, K, N, matrix = OPCODES[call.name].words, call.integer("K"), call.integer("N"), _matrix(call)
    most, shares = call.bucket.tokens, most_shares(call)
    places: dict[str, int | None] = {"COUNT": words["T"], "EACH": words["each"], "FIRST": words["first"]}
    places |= {"SHARES": words["shares"], "BIAS_AT": words["bias"], "RESIDUAL": words.get("residual"), "Y": words["y"]}
    scale = words["scale"] if call.real("scale") != 1.0 else None
    shared = {"N": N, "BIAS": call.type("bias"), "SCALE": scale, **places, **matrix.constants()}
    if most <= call.tiles.few_tokens:
        few = call.tiles.few_by_itself(N, K, most, matrix.group, matrix.is_wide)
        grid = (triton.cdiv(N, few.rows), shares)
        tile = {"M": power_of_two(most), "ROWS": few.rows, "STEP": few.columns, "UNROLL": few.unroll}
        call.launch(_few_each, grid, call.row, X=words["x"], **shared, **tile, num_warps=few.warps)
        return
    many = call.tiles.many_in_shares(N, K, most, call.bucket.sequences, matrix.group, matrix.is_wide)
    direct = _reads_once(call)
    x: torch.Tensor = call.scratch if direct else stage(call, [matrix])
    grid = (triton.cdiv(N, many.rows), most_tiles(shares, most, many.tokens))
    how = {"X": words["x"] if direct else None, "WIDE": power_of_two(max(shares, 2)), "DOT": matrix.dot_type}
    tile = {"ROWS": many.rows, "TOKENS": many.tokens, "STEP": many.columns}
    tile |= {"num_warps": many.warps, "num_stages": many.stages}
    call.launch(_many_each, grid, call.row, x, **how, **shared, **tile)


def scratch_bytes(call: Call) -> int:
    """What staged activations take; none where tiles round what they meet themselves."""
    return 0 if _reads_once(call) else staged_bytes(call, [_matrix(call)])


def _reads_once(call: Call) -> bool:
    """Whether a token is read by one program, or is short: as either half of a change of low rank has it.

    It is rounded where it is met then, and a launch that stages it would cost more than it spares.
    """
    return min(call.integer("N"), call.integer("K")) <= call.tiles.low_rank


def _matrix(call: Call) -> Matrix:
    return call.matrix("weight", call.integer("K"))

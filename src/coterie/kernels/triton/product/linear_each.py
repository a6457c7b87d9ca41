"""linear_each, linear_add_each: linear and linear_add where each share of the rows of x has its own weight.

    rows      | 0 1 2 3 4 | 5       | 6 7     |        first 0 5 6 8
    weight    | each[0]   | each[1] | each[2] |        tiles: a share's follow those of earlier shares

How many shares there are, and where they begin, is known on the GPU alone, so one launch serves every split of a step:
the grid has the most tiles that there can be, and programs look up their own, or end. A low-rank update common to all
rows of a step is a single share.
Knows nothing about whose weights these are.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, wait_for_previous
from coterie.kernels.triton.norms import norm_at
from coterie.kernels.triton.product.dots import many_dots, rows_at, stage, staged_bytes
from coterie.kernels.triton.product.few_tokens import MAX_AHEAD, ONCE, few_dots
from coterie.kernels.triton.product.linear_epilogue import linear_epilogue
from coterie.kernels.triton.product.sums import appended
from coterie.kernels.triton.rows import Call, Matrix
from coterie.kernels.triton.tiles import power_of_two


@triton.jit
def tile_of(
    row,
    tile,
    COUNT: tl.constexpr,
    FIRST: tl.constexpr,
    SHARES: tl.constexpr,
    WIDE: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """The share of a tile, its first row, and the end of the share's rows: an empty range beyond the last tile."""
    tokens = integer(row, COUNT)
    if FIRST is None:
        share, begin, end = 0, tile * TOKENS, tokens
    else:
        s = tl.arange(0, WIDE)
        there = s < integer(row, SHARES)
        first = pointer(row, FIRST, tl.int32) + s
        begins = tl.load(first, mask=there, other=0)
        ends = tl.minimum(tl.load(first + 1, mask=there, other=0), tokens)
        tiles = tl.maximum(tl.cdiv(ends - begins, TOKENS), 0)
        share = tl.sum((tl.cumsum(tiles, axis=0) <= tile).to(tl.int32), axis=0)
        within = tile - tl.sum(tl.where(s < share, tiles, 0), axis=0)
        begin = tl.sum(tl.where(s == share, begins, 0), axis=0) + within * TOKENS
        end = tl.sum(tl.where(s == share, ends, 0), axis=0)
    return share, begin, end


@triton.jit
def weight_of(row, share, there, WEIGHT: tl.constexpr, EACH: tl.constexpr, TYPE: tl.constexpr):
    """The weight of a share, from the table of addresses at EACH; without a table, the one weight.

    `there`: whether the share exists.
    """
    if EACH is None:
        weight = pointer(row, WEIGHT, TYPE)
    else:
        at = tl.load(pointer(row, EACH, tl.int64) + share, mask=there, other=0)
        weight = tl.multiple_of(at.to(tl.pointer_type(TYPE)), 16)
    return weight


@triton.jit
def _weights(rows_N, mask_N, first, K: tl.constexpr, STEP: tl.constexpr):
    k = first + tl.arange(0, STEP)
    mask = mask_N[:, None] & (k < K)[None, :]
    return tl.load(rows_N[:, None] + k[None, :], mask=mask, other=0, eviction_policy=ONCE)


@triton.jit
def tiles_ahead(rows_N, mask_N, K: tl.constexpr, STEP: tl.constexpr):
    """The first weights of rows, as many steps as registers hold: loaded before the activations are ready."""
    ahead = ()
    for first in tl.static_range(0, min(K, MAX_AHEAD * STEP), STEP):
        ahead = appended(ahead, _weights(rows_N, mask_N, first, K, STEP))
    return ahead


@triton.jit
def dots_ahead(ahead, x, mask_M, rows_N, mask_N, K: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr):
    """As few_dots, in the same order, for unpacked weights; `ahead` comes from tiles_ahead."""
    acc = tl.zeros([M, N, STEP], tl.float32)
    for i in tl.static_range((K + STEP - 1) // STEP):
        if i < len(ahead):
            w = ahead[i]
        else:
            w = _weights(rows_N, mask_N, i * STEP, K, STEP)
        k = i * STEP + tl.arange(0, STEP)
        values = tl.load(x[:, None] + k[None, :], mask=mask_M[:, None] & (k < K)[None, :], other=0.0)
        acc += w.to(tl.float32)[None, :, :] * values[:, None, :]
    return tl.sum(acc, axis=2)


@triton.jit
def _few_each(
    row,
    X: tl.constexpr,
    COUNT: tl.constexpr,
    WEIGHT: tl.constexpr,
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
    M: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
    LOW: tl.constexpr,
    WHEN: tl.constexpr,
):
    """A program has ROWS weight rows and a tile of up to M tokens of one share, in float32 on CUDA cores."""
    launch_dependents(WHEN)
    share, begin, end = tile_of(row, tl.program_id(1), COUNT, FIRST, SHARES, WIDE, M)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask_N = (n < N) & (begin < end)
    rows_N = rows_at(weight_of(row, share, begin < end, WEIGHT, EACH, TYPE), n, STRIDE, ALIGN)
    x = pointer(row, X, tl.float32)
    if LOW:
        ahead = tiles_ahead(rows_N, mask_N, K, STEP)
    wait_for_previous(WHEN)
    if begin < end:
        m = begin + tl.arange(0, M)
        mask_M = m < end
        if LOW:
            y = dots_ahead(ahead, x + m * K, mask_M, rows_N, mask_N, K, M, ROWS, STEP)
        else:
            norm = norm_at(row, x, None, None, None, None)
            y = few_dots(
                x + m * K, mask_M, rows_N, mask_N, norm, K, STRIDE, COLUMNS, TYPE, None, None, M, ROWS, STEP, UNROLL
            )
        linear_epilogue(
            row, y, n[None, :], mask_N[None, :], m[:, None], mask_M[:, None],
            BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, None,
        )  # fmt: skip


@triton.jit
def _many_each(
    row,
    staged,
    X: tl.constexpr,
    COUNT: tl.constexpr,
    WEIGHT: tl.constexpr,
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
    """A program has ROWS weight rows and a tile of TOKENS tokens of one share, on tensor cores."""
    launch_dependents(WHEN)
    share, begin, end = tile_of(row, tl.program_id(1), COUNT, FIRST, SHARES, WIDE, TOKENS)
    weight = weight_of(row, share, begin < end, WEIGHT, EACH, TYPE)
    wait_for_previous(WHEN)
    if begin < end:
        n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        m = begin + tl.arange(0, TOKENS)
        mask_N, mask_M = n < N, m < end
        x = staged
        if X is not None:
            x = pointer(row, X, tl.float32)
        rows_N = rows_at(weight, n, STRIDE, ALIGN)
        y = many_dots(x, m, mask_M, rows_N, mask_N, K, STRIDE, COLUMNS, TYPE, DOT, TOKENS, ROWS, STEP)
        linear_epilogue(
            row, y, n[:, None], mask_N[:, None], m[None, :], mask_M[None, :],
            BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, None,
        )  # fmt: skip


def most_shares(call: Call) -> int:
    """Most shares of a step. Sampled rows of a sequence need not be adjacent, as its tokens are."""
    bucket = call.bucket
    return min(bucket.tokens, max(bucket.sequences, bucket.sampled)) if "each" in OPCODES[call.name].words else 1


def most_tiles(shares: int, rows: int, tile: int) -> int:
    """Most tiles of `tile` rows each, given `rows` in `shares`: each share may have a tile with a single row."""
    return (rows + shares * (tile - 1)) // tile


def is_low(call: Call) -> bool:
    """Whether this is half of a low-rank update: a token is read by few programs, or is short.

    It is rounded as it is loaded then, if at all: a launch that stages it would cost more than it saves.
    """
    return min(call.integer("N"), call.integer("K")) <= call.tiles.low_rank


def launch(call: Call) -> None:
    """Multiply in float32 where shares have few tokens, else on tensor cores."""
    words, K, N, matrix = OPCODES[call.name].words, call.integer("K"), call.integer("N"), _matrix(call)
    bucket, shares = call.bucket, most_shares(call)
    named = {"COUNT": "T", "WEIGHT": "weight", "BIAS_AT": "bias", "RESIDUAL": "residual", "Y": "y"}
    named |= {"EACH": "each", "FIRST": "first", "SHARES": "shares"}
    shared: dict[str, object] = {name: words.get(operand) for name, operand in named.items()}
    shared |= {"N": N, "BIAS": call.type("bias"), "SCALE": words["scale"] if call.real("scale") != 1.0 else None}
    shared |= {"WIDE": power_of_two(max(shares, 2)), **matrix.constants()}
    few = call.tiles.few_in_shares(N, K, bucket.tokens, bucket.sequences, matrix.group, matrix.is_wide)
    if few is not None:
        most = power_of_two(min(bucket.tokens, call.tiles.few_tokens))
        grid = (triton.cdiv(N, few.rows), most_tiles(shares, bucket.tokens, max(most, 1)))
        tile = {"M": most, "ROWS": few.rows, "STEP": few.columns, "UNROLL": few.unroll}
        tile["LOW"] = matrix.group == 1 and is_low(call)
        call.launch(_few_each, grid, call.row, X=words["x"], **shared, **tile, num_warps=few.warps)
        return
    many = call.tiles.many_in_shares(N, K, bucket.tokens, bucket.sequences, matrix.group, matrix.is_wide)
    staged = None if is_low(call) else stage(call, [matrix])
    grid = (triton.cdiv(N, many.rows), most_tiles(shares, bucket.tokens, many.tokens))
    how = {"X": words["x"] if staged is None else None, "DOT": matrix.dot_type}
    tile = {"ROWS": many.rows, "TOKENS": many.tokens, "STEP": many.columns}
    tile |= {"num_warps": many.warps, "num_stages": many.stages}
    x = call.scratch if staged is None else staged
    call.launch(_many_each, grid, call.row, x, **how, **shared, **tile)


def scratch_bytes(call: Call) -> int:
    """Bytes of staged activations; none where tiles load them as they are."""
    return 0 if is_low(call) else staged_bytes(call, [_matrix(call)])


def _matrix(call: Call) -> Matrix:
    return call.matrix("weight", call.integer("K"))

"""Products of many tokens with a weight, in tiles of weight rows x tokens on tensor cores, accumulated in float32.

Activations were rounded to scratch before (stage). Few tokens: few_tokens.py.
The weight is the left operand: packed weights are widened in registers, where a left operand may stay, and a decode
batch may have few tokens but the weight always has enough rows for a tensor core. Pointers to rows are given one by
one, so a tile may mix rows of several places: gate and up, or the two halves of a head.

Knows nothing about what becomes of the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import (
    add_product,
    integer,
    launch_dependents,
    narrow,
    pointer,
    wait_for_previous,
)
from coterie.kernels.triton.norms import moments, norm_at, norm_factor, scaled_and_shifted, shift_of
from coterie.kernels.triton.product.packed import (
    BLOCK,
    GROUP_Q2,
    GROUP_Q4,
    GROUP_Q8,
    SIX_BITS,
    bytes_per_block,
    high_half,
    low_half,
    no_weights,
    scales_of,
    two_bits,
    zeros_of,
)
from coterie.kernels.triton.product.six_bits import PARTS, columns_of, part_of, weights_at
from coterie.kernels.triton.product.slices import MAX_ROWS, slice_of, sliced_dots
from coterie.kernels.triton.rows import TORCH, Call, Matrix
from coterie.kernels.triton.tiles import TensorCoreTile

# Rows of a tile this far apart are in the same thread after a tensor-core product. Source: PTX ISA, wgmma, layout of D.
STRIPE = tl.constexpr(8)


@triton.jit
def rows_at(weight, n, STRIDE: tl.constexpr, ALIGN: tl.constexpr):
    """Pointers to rows n of a weight."""
    return tl.multiple_of(weight + n.to(tl.int64) * STRIDE, ALIGN)


@triton.jit
def many_dots(
    x,
    m,
    mask_M,
    rows_N,
    mask_N,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    TYPE: tl.constexpr,
    DOT: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    STEP: tl.constexpr,
):
    """[N, M] products of weight rows with rows m of staged activations x [T, K], in tiles on tensor cores."""
    SLICE: tl.constexpr = slice_of(TYPE, K, COLUMNS, M, N, STEP, x.dtype.element_ty, DOT)
    if SLICE:
        y = sliced_dots(x, m, mask_M, rows_N, mask_N, K, STRIDE, COLUMNS, TYPE, DOT, M, N, STEP, SLICE)
    else:
        y = _tile_dots(x, m, mask_M, rows_N, mask_N, K, STRIDE, COLUMNS, TYPE, DOT, M, N, STEP)
    return y


@triton.jit
def _tile_dots(
    x, m, mask_M, rows_N, mask_N, K: tl.constexpr, STRIDE: tl.constexpr, COLUMNS: tl.constexpr, TYPE: tl.constexpr,
    DOT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The same where warps split the rows. Packed weights are widened and scaled in registers, then rounded to DOT."""
    packed: tl.constexpr = bytes_per_block(TYPE, K, COLUMNS)
    acc = tl.zeros([N, M], tl.float32)
    columns_M = x + m[None, :] * K
    for first in tl.range(0, COLUMNS, STEP):
        c = first + tl.arange(0, STEP)
        mask = mask_N[:, None] & (c < COLUMNS)[None, :]
        if packed == SIX_BITS:
            columns = columns_of(rows_N, mask_N, first, STRIDE, COLUMNS, N, STEP, "")
            for part in tl.static_range(PARTS):
                k = weights_at(c, part)
                staged = tl.load(columns_M + k[:, None], mask=mask_M[None, :] & (k < K)[:, None], other=0.0)
                acc = add_product(acc, narrow(part_of(columns, part), DOT), narrow(staged, DOT))
        elif packed == GROUP_Q2:
            four = tl.load(rows_N[:, None] + c[None, :], mask=mask, other=0).to(tl.int32)
            scale = scales_of(rows_N, mask_N, first, COLUMNS, N, STEP, GROUP_Q2)
            k = 2 * first + tl.arange(0, 2 * STEP)  # interleaved, the two weights of a byte are in order
            k = k // (BLOCK // 2) * BLOCK + k % (BLOCK // 2)
            for half in tl.static_range(2):
                w = tl.interleave(two_bits(four >> 2 * half, scale), two_bits(four >> 2 * half + 4, scale))
                staged = tl.load(columns_M + k[:, None], mask=mask_M[None, :] & (k < K)[:, None], other=0.0)
                acc = add_product(acc, narrow(w, DOT), narrow(staged, DOT))
                k += BLOCK // 2
        elif packed == GROUP_Q4:
            both = tl.load(rows_N[:, None] + c[None, :], mask=mask, other=no_weights(TYPE)).to(tl.int32)
            scale = scales_of(rows_N, mask_N, first, COLUMNS, N, STEP, GROUP_Q4)
            zero = zeros_of(rows_N, mask_N, first, COLUMNS, STRIDE, N, STEP)
            k = c // GROUP_Q4 * (2 * GROUP_Q4) + c % GROUP_Q4
            low = tl.load(columns_M + k[:, None], mask=mask_M[None, :] & (k < K)[:, None], other=0.0)
            acc = add_product(acc, narrow(low_half(both, scale, zero, TYPE), DOT), narrow(low, DOT))
            k += GROUP_Q4
            high = tl.load(columns_M + k[:, None], mask=mask_M[None, :] & (k < K)[:, None], other=0.0)
            acc = add_product(acc, narrow(high_half(both, scale, zero, TYPE), DOT), narrow(high, DOT))
        else:
            w = tl.load(rows_N[:, None] + c[None, :], mask=mask, other=0)
            if packed:
                w = narrow(w.to(tl.float32) * scales_of(rows_N, mask_N, first, COLUMNS, N, STEP, GROUP_Q8), DOT)
            staged = tl.load(columns_M + c[:, None], mask=mask_M[None, :] & (c < K)[:, None], other=0.0)
            acc = add_product(acc, w, narrow(staged, DOT))
    return acc


@triton.jit
def interleaved_rows(one, other, r, COUNT, STRIDE: tl.constexpr, ALIGN: tl.constexpr, STRIPE: tl.constexpr):
    """Pointers to rows of two weights with COUNT rows each, in alternating stripes of STRIPE rows, and which exist."""
    n = r // (2 * STRIPE) * STRIPE + r % STRIPE
    rows = tl.where(r // STRIPE % 2 == 0, rows_at(one, n, STRIDE, ALIGN), rows_at(other, n, STRIDE, ALIGN))
    return tl.multiple_of(rows, ALIGN), n < COUNT


@triton.jit
def deinterleave(both, ROWS: tl.constexpr, M: tl.constexpr, STRIPE: tl.constexpr):
    """Split the interleaved rows of [ROWS, M], STRIPE of one thing and then of another, into two [ROWS / 2, M]."""
    one, other = tl.split(tl.permute(tl.reshape(both, [ROWS // (2 * STRIPE), 2, STRIPE, M]), [0, 2, 3, 1]))
    return tl.reshape(one, [ROWS // 2, M]), tl.reshape(other, [ROWS // 2, M])


@triton.jit
def tile_at(pid, n_tiles, m_tiles, GROUP: tl.constexpr):
    """Row tile and token tile of a program: GROUP row tiles with all token tiles, then the next GROUP.

    Programs that run together thus share rows and tokens in the L2 cache.
    """
    each = GROUP * m_tiles
    first = pid // each * GROUP
    group = tl.minimum(n_tiles - first, GROUP)
    return first + pid % each % group, pid % each // group


@triton.jit
def work_of(i, n_tiles, m_tiles, TOKENS: tl.constexpr, PIECES: tl.constexpr, GROUP: tl.constexpr, WAVE: tl.constexpr):
    """The work of program i: row tile, first token, and whether it is a whole tile, a piece of one, or nothing.

    Tiles are whole for as many full waves as there are; each of the others is split among PIECES programs.
    """
    tiles = n_tiles * m_tiles
    whole = tiles
    if PIECES > 1:
        whole = tiles // WAVE * WAVE
    piece = tl.maximum(i - whole, 0)
    n_tile, m_tile = tile_at(tl.minimum(i, whole) + piece // PIECES, n_tiles, m_tiles, GROUP)
    first = m_tile * TOKENS + piece % PIECES * (TOKENS // PIECES)
    return n_tile, first, i < whole, (i >= whole) & (piece < (tiles - whole) * PIECES)


@triton.jit
def _stage(
    row,
    y,
    X: tl.constexpr,
    ROWS: tl.constexpr,
    NORM_AT: tl.constexpr,
    EPS: tl.constexpr,
    COUNT: tl.constexpr,
    EACH: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    SHIFT: tl.constexpr,
    TYPE: tl.constexpr,
    STEP: tl.constexpr,
    WHEN: tl.constexpr,
):
    """A program stages one row; `t` counts EACH rows per token."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    t = tl.program_id(0)
    if t < integer(row, COUNT) * EACH:
        stage_row(row, y, t, X, ROWS, NORM_AT, EPS, K, NORM, SHIFT, TYPE, STEP)


@triton.jit
def stage_row(
    row,
    y,
    t,
    X: tl.constexpr,
    ROWS: tl.constexpr,
    NORM_AT: tl.constexpr,
    EPS: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    SHIFT: tl.constexpr,
    TYPE: tl.constexpr,
    STEP: tl.constexpr,
):
    """y[t] = x[t], or x[rows[t]], normed where there is a norm, rounded to TYPE for tensor cores."""
    source = t
    if ROWS is not None:
        source = tl.load(pointer(row, ROWS, tl.int32) + t)
    x = pointer(row, X, tl.float32) + source.to(tl.int64) * K
    y += t.to(tl.int64) * K
    norm = norm_at(row, x, NORM_AT, EPS, NORM, SHIFT)
    mean, factor = 0.0, 1.0
    if SHIFT is not None:
        mean, factor = moments(x, norm[2], K, STEP)
    elif NORM is not None:
        factor = norm_factor(x, norm[2], K, STEP)
    for first in tl.static_range(0, K, STEP):
        k = first + tl.arange(0, STEP)
        values = tl.load(x + k, mask=k < K, other=0.0)
        if SHIFT is not None:
            values -= mean
        if NORM is not None:
            values = scaled_and_shifted(values * factor, norm, k, K, SHIFT)
        tl.store(y + k, narrow(values, TYPE), mask=k < K)


def launch_tiles(
    call: Call, kernel: Any, many: TensorCoreTile, n_tiles: int, tokens: int, *args: object, **constants: object
) -> None:
    """Launch a kernel over tiles of rows x tokens, which `work_of` assigns to programs."""
    wave = call.tiles.multiprocessors
    how = {"GROUP": call.tiles.group, "WAVE": wave, "num_warps": many.warps, "num_stages": many.stages}
    if "LINES" in kernel.arg_names:
        how["LINES"] = 32 * many.warps // many.rows if many.rows <= MAX_ROWS.value and call.tiles.narrow_ahead else 0
    grid = (many.programs(n_tiles, tokens, wave),)
    call.launch(kernel, grid, call.row, *args, **constants, **many.constants(), **how)


def stage(
    call: Call,
    matrices: Sequence[Matrix],
    normed: bool = False,
    gathered: bool = False,
    start: int = 0,
    each: int = 1,
) -> torch.Tensor:
    """Round the activations of a call to scratch, for the weights that they are multiplied by: a program per row.

    They lie from byte `start` on, a multiple of 16; each token has `each` rows.
    """
    y, rows, how = staging(call, matrices, normed, gathered, start, each)
    words = OPCODES[call.name].words
    how |= {"X": words["x"], "NORM_AT": words.get("norm"), "EPS": words.get("eps")}
    how |= {"ROWS": words["rows"] if gathered else None, "COUNT": words["R" if gathered else "T"], "EACH": each}
    call.launch(_stage, (rows,), call.row, y, **how)
    return y


def staging(
    call: Call, matrices: Sequence[Matrix], normed: bool, gathered: bool = False, start: int = 0, each: int = 1
) -> tuple[torch.Tensor, int, dict[str, object]]:
    """Scratch for staged activations, their largest number, and constants of `stage_row` except operand words."""
    rows = each * (call.bucket.sampled if gathered else call.bucket.tokens)
    K, TYPE = matrices[0].K, staged_type(matrices)
    step, warps = call.tiles.row(K)
    norm = {"NORM": call.type("norm"), "SHIFT": shift_of(call)} if normed else {"NORM": None, "SHIFT": None}
    return (
        call.scratch_as(TYPE, rows * K, start),
        rows,
        {"K": K, **norm, "TYPE": TYPE, "STEP": step, "num_warps": warps},
    )


def staged_type(matrices: Sequence[Matrix]) -> tl.dtype:
    """What activations are rounded to for these weights; float32 where the weights' types differ."""
    types = [matrix.dot_type for matrix in matrices]
    return types[0] if all(one == types[0] for one in types) else tl.float32


def staged_bytes(call: Call, matrices: Sequence[Matrix], gathered: bool = False) -> int:
    """Scratch that `stage` takes; none for few tokens, which are multiplied unrounded."""
    count = call.bucket.sampled if gathered else call.bucket.tokens
    return 0 if count <= call.tiles.few_tokens else count * matrices[0].K * TORCH[staged_type(matrices)].itemsize

"""linear: y = (x @ weight.T + bias) * scale, with x [T, K], weight [N, K], y [T, N].

Fused variants also gather and norm rows of x, add a residual, or apply gelu.
Knows nothing about where x comes from.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.cpu import OPCODES
from coterie.kernels.triton.arithmetic import integer, launch_dependents, pointer, wait_for_previous
from coterie.kernels.triton.norms import shift_of
from coterie.kernels.triton.product import linear_each
from coterie.kernels.triton.product.described import (
    described,
    described_dots,
    launch_described,
    piece_at,
    takes,
    whole_of,
)
from coterie.kernels.triton.product.dots import (
    launch_tiles,
    many_dots,
    rows_at,
    stage,
    staged_bytes,
    tile_at,
    work_of,
)
from coterie.kernels.triton.product.few_tokens import prefetch_rows
from coterie.kernels.triton.product.linear_each import is_low
from coterie.kernels.triton.product.linear_epilogue import linear_epilogue, prefetch_residual, tile_epilogue
from coterie.kernels.triton.product.linear_few import few as few_rows
from coterie.kernels.triton.product.neighbours import neighbours, staged_by_neighbour
from coterie.kernels.triton.product.staged_ahead import staged_ahead_end, staged_by_previous
from coterie.kernels.triton.rows import Call


@triton.jit
def _many(
    row,
    staged,
    COUNT: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS_AT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCALE: tl.constexpr,
    Y: tl.constexpr,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    TYPE: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    DOT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    WAVE: tl.constexpr,
    LINES: tl.constexpr,
    WHEN: tl.constexpr,
):
    """A program has one tile of ROWS weight rows x TOKENS tokens, or a piece of one (work_of), on tensor cores.

    `staged` [T, K] is x in the type that these multiply; sums, residual and y [T, N] are float32.
    """
    launch_dependents(WHEN)
    i = tl.program_id(0)
    if LINES > 0:  # a single tile of tokens: this program's rows do not depend on their number
        n = i * ROWS + tl.arange(0, ROWS)
        prefetch_rows(rows_at(pointer(row, WEIGHT, TYPE), n, STRIDE, ALIGN), n < N, STRIDE, LINES, False)
    wait_for_previous(WHEN)
    tokens = integer(row, COUNT)
    n_tiles, m_tiles = tl.cdiv(N, ROWS), tl.cdiv(tokens, TOKENS)
    n_tile, first, whole, piece = work_of(i, n_tiles, m_tiles, TOKENS, PIECES, GROUP, WAVE)
    if whole:
        _tile(
            row, staged, n_tile, first, tokens, WEIGHT, BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, GELU,
            TYPE, K, STRIDE, COLUMNS, ALIGN, DOT, TOKENS, ROWS, STEP,
        )  # fmt: skip
    if PIECES > 1:
        if piece:
            _tile(
                row, staged, n_tile, first, tokens, WEIGHT, BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, GELU,
                TYPE, K, STRIDE, COLUMNS, ALIGN, DOT, TOKENS // PIECES, ROWS, STEP,
            )  # fmt: skip


@triton.jit
def _tile(
    row,
    staged,
    n_tile,
    first,
    tokens,
    WEIGHT: tl.constexpr,
    BIAS_AT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCALE: tl.constexpr,
    Y: tl.constexpr,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    TYPE: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    DOT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Products of a row tile with TOKENS tokens from `first` on, finished and stored."""
    m = first + tl.arange(0, TOKENS)
    n = n_tile * ROWS + tl.arange(0, ROWS)
    mask_M = m < tokens
    mask_N = n < N
    rows_N = rows_at(pointer(row, WEIGHT, TYPE), n, STRIDE, ALIGN)
    if RESIDUAL is not None:
        prefetch_residual(pointer(row, RESIDUAL, tl.float32), n_tile * ROWS, first, tokens, N, ROWS, TOKENS)
    y = many_dots(staged, m, mask_M, rows_N, mask_N, K, STRIDE, COLUMNS, TYPE, DOT, TOKENS, ROWS, STEP)
    if RESIDUAL is not None and TOKENS > 128:  # registers cannot hold all sums and all of the residual
        half: tl.constexpr = TOKENS // 2
        y, later = tl.split(tl.permute(tl.reshape(y, [ROWS, 2, half]), [0, 2, 1]))
        m = first + tl.arange(0, half)
        mask_M = m < tokens
        linear_epilogue(
            row, later, n[:, None], mask_N[:, None], m[None, :] + half, (m + half < tokens)[None, :],
            BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, GELU,
        )  # fmt: skip
    linear_epilogue(
        row, y, n[:, None], mask_N[:, None], m[None, :], mask_M[None, :], BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, GELU
    )


@triton.jit
def _described(
    row,
    most,
    staged,
    COUNT: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS_AT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCALE: tl.constexpr,
    Y: tl.constexpr,
    N: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    TYPE: tl.constexpr,
    K: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    WAVE: tl.constexpr,
    WHEN: tl.constexpr,
):
    """As _many, with operands loaded by tensor descriptors: WAVE programs walk tiles, then pieces of fewer rows.

    `most` is the height of `staged`.
    """
    launch_dependents(WHEN)
    weight = pointer(row, WEIGHT, TYPE)
    x = described(staged, most, K, TOKENS, STEP)
    w = described(weight, N, K, ROWS, STEP)
    wait_for_previous(WHEN)
    tokens = integer(row, COUNT)
    n_tiles, m_tiles = tl.cdiv(N, ROWS), tl.cdiv(tokens, TOKENS)
    whole = whole_of(n_tiles * m_tiles, PIECES, WAVE)
    for i in tl.range(tl.program_id(0), whole, WAVE, num_stages=1):
        n_tile, m_tile = tile_at(i, n_tiles, m_tiles, GROUP)
        if RESIDUAL is not None:
            prefetch_residual(
                pointer(row, RESIDUAL, tl.float32), n_tile * ROWS, m_tile * TOKENS, tokens, N, ROWS, TOKENS
            )
        y = described_dots(x, w, m_tile * TOKENS, n_tile * ROWS, K, TOKENS, ROWS, STEP)
        tile_epilogue(row, y, n_tile * ROWS, m_tile * TOKENS, tokens, BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, GELU)
    if PIECES > 1:
        each: tl.constexpr = ROWS // PIECES
        w = described(weight, N, K, each, STEP)
        for i in tl.range(tl.program_id(0), (n_tiles * m_tiles - whole) * PIECES, WAVE, num_stages=1):
            n_piece, m_tile = piece_at(i, whole, n_tiles, m_tiles, PIECES, GROUP)
            y = described_dots(x, w, m_tile * TOKENS, n_piece * each, K, TOKENS, each, STEP)
            tile_epilogue(row, y, n_piece * each, m_tile * TOKENS, tokens, BIAS_AT, RESIDUAL, SCALE, Y, N, BIAS, GELU)


def launch(call: Call) -> None:
    """Multiply in float32 for few tokens, else on tensor cores.

    A low-rank update of many tokens goes to linear_each, as a single share.
    """
    if _is_share(call):
        linear_each.launch(call)
    else:
        multiply(call, call.integer("K"), call.bucket.tokens)


def _is_share(call: Call) -> bool:
    """Whether this is a low-rank update of many tokens, to be run as a single share (linear_each.py)."""
    return call.bucket.tokens > call.tiles.few_tokens and is_low(call) and not staged_ahead_end(call)


def multiply(call: Call, K: int, most: int) -> None:
    """Launch a product of up to `most` rows of x with K values each, gathered and normed where the instruction says so.

    Few rows are normed and multiplied in one pass; many are first gathered and normed when they are staged.
    """
    N, words, matrix = call.integer("N"), OPCODES[call.name].words, call.matrix("weight", K)
    normed, gathered = "norm" in words, "rows" in words
    named_words = {
        "COUNT": words["R" if gathered else "T"],
        "WEIGHT": words["weight"],
        "BIAS_AT": words["bias"],
        "RESIDUAL": words.get("residual"),
        "SCALE": words["scale"] if "scale" in words and call.real("scale") != 1.0 else None,
        "GELU": call.integer("form") if "form" in words else None,
        "Y": words["y"],
    }
    shared = {"N": N, "BIAS": call.type("bias"), **named_words, **matrix.constants()}
    if most <= call.tiles.few_tokens:
        norm, shift = (call.type("norm"), shift_of(call)) if normed else (None, None)
        how = {"NORM_AT": words.get("norm"), "EPS": words.get("eps"), "NORM": norm, "SHIFT": shift}
        source = {"X": words["x"], "ROWS_AT": words.get("rows"), **how}
        joint = neighbours(call, most, matrix)
        if joint.is_first:
            how = {**source, **shared, **joint.constants(words["N"]), **joint.few.constants(most, matrix.group)}
            call.launch(few_rows, (joint.programs,), call.row, **how)
        return
    staged = None if normed else staged_by_previous(call)
    if staged is None:
        staged = staged_by_neighbour(call, matrix)
    if staged is None:
        staged = stage(call, [matrix], normed=normed, gathered=gathered)
    many = call.tiles.many_of(N, most, matrix.group, matrix.is_wide, takes([matrix]), matrix.has_zeros)
    n_tiles = triton.cdiv(N, many.rows)
    if many.described:
        launch_described(call, _described, many, n_tiles, most, staged, **shared)
    else:
        launch_tiles(call, _many, many, n_tiles, most, staged, **shared, DOT=matrix.dot_type)


def scratch_bytes(call: Call) -> int:
    """Bytes of staged activations."""
    if _is_share(call):
        return linear_each.scratch_bytes(call)
    return staged_bytes(call, [call.matrix("weight", call.integer("K"))])

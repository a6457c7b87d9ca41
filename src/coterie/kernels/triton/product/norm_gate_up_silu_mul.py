"""norm_gate_up_silu_mul: y = silu(n @ gate.T) * (n @ up.T) with n = norm(x); gate and up stay in registers.

x is [T, D], both weights are [F, D], y is [T, F]. Without a norm, n is x. norm_gate_up_gelu_mul is the same with gelu:
its row has the same words, then the form.
A tile alternates `STRIPE` rows of gate with `STRIPE` rows of up, so both products of a value are in one program. Where
the weights' types differ, a program multiplies by one and then by the other.
Knows nothing about layers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import (
    AHEAD,
    integer,
    launch_dependents,
    pointer,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.norms import norm_at, shift_of
from coterie.kernels.triton.product.described import (
    described,
    described_both,
    described_pair,
    launch_described,
    piece_at,
    takes,
    whole_of,
)
from coterie.kernels.triton.product.dots import (
    STRIPE,
    deinterleave,
    interleaved_rows,
    launch_tiles,
    many_dots,
    rows_at,
    stage,
    tile_at,
    work_of,
)
from coterie.kernels.triton.product.few_tokens import few_dots, prefetch_rows
from coterie.kernels.triton.product.gate_up_epilogue import gate_up_epilogue
from coterie.kernels.triton.product.one_token import one_dot, tokens_of, weights_ahead
from coterie.kernels.triton.product.staged_ahead import is_stored, stage_for_next, staged_ahead_bytes
from coterie.kernels.triton.product.sums import appended
from coterie.kernels.triton.rows import Call, Matrix, operand_words
from coterie.kernels.triton.tiles import MIN_DOT

X, NORM_AT, EPS, GATE_AT, UP_AT, Y, T = operand_words(
    "norm_gate_up_silu_mul", "x", "norm", "eps", "gate", "up", "y", "T"
)
GELU_MUL = "norm_gate_up_gelu_mul"


@triton.jit
def gate_up_rows(row, r, F, TYPE: tl.constexpr, STRIDE: tl.constexpr, ALIGN: tl.constexpr, STRIPE: tl.constexpr):
    """Pointers to rows of gate and up, alternating STRIPE of each, and which of them exist."""
    return interleaved_rows(pointer(row, GATE_AT, TYPE), pointer(row, UP_AT, TYPE), r, F, STRIDE, ALIGN, STRIPE)


@triton.jit
def _few(
    row,
    F: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    NORM: tl.constexpr,
    SHIFT: tl.constexpr,
    K: tl.constexpr,
    TYPE: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    UP_TYPE: tl.constexpr,
    UP_STRIDE: tl.constexpr,
    UP_COLUMNS: tl.constexpr,
    UP_ALIGN: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
    LINES: tl.constexpr,
    ONE: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    """A program has ROWS / 2 rows of gate and of up, and all tokens, in float32 on CUDA cores."""
    launch_dependents(WHEN)
    first = unit_index(unit, 0) * ROWS
    r = first + tl.arange(0, ROWS)
    f = unit_index(unit, 0) * (ROWS // 2) + tl.arange(0, ROWS // 2)
    alike: tl.constexpr = TYPE == UP_TYPE and STRIDE == UP_STRIDE
    if alike:
        rows, there = gate_up_rows(row, r, F, TYPE, STRIDE, ALIGN, 1)
    if WHEN == AHEAD:
        if alike:
            prefetch_rows(rows, there, STRIDE, LINES)
        return
    if ONE and alike:
        each, have = (), ()
        for i in tl.static_range(ROWS):
            one_row, is_there = gate_up_rows(row, first + i, F, TYPE, STRIDE, ALIGN, 1)
            each = appended(each, one_row)
            have = appended(have, is_there)
        ahead = weights_ahead(each, have, K, STRIDE, COLUMNS, STEP, M, NORM)
    x = pointer(row, X, tl.float32)
    norm = norm_at(row, x, NORM_AT, EPS, NORM, SHIFT)
    m = tl.arange(0, M)
    mask_M = m < integer(row, T)
    if ONE and alike:
        xs = tokens_of(x, integer(row, T), K, M)
    x += m * K
    y = pointer(row, Y, tl.float32)
    wait_for_previous(WHEN)
    if ONE and alike:
        both = one_dot(ahead, xs, each, have, norm, K, STRIDE, COLUMNS, NORM, SHIFT, STEP)
        gate, up = tl.split(tl.reshape(both, [M, ROWS // 2, 2]))
    elif alike:
        both = few_dots(x, mask_M, rows, there, norm, K, STRIDE, COLUMNS, TYPE, NORM, SHIFT, M, ROWS, STEP, UNROLL)
        gate, up = tl.split(tl.reshape(both, [M, ROWS // 2, 2]))
    else:
        rows = rows_at(pointer(row, GATE_AT, TYPE), f, STRIDE, ALIGN)
        gate = few_dots(x, mask_M, rows, f < F, norm, K, STRIDE, COLUMNS, TYPE, NORM, SHIFT, M, ROWS // 2, STEP, UNROLL)
        rows = rows_at(pointer(row, UP_AT, UP_TYPE), f, UP_STRIDE, UP_ALIGN)
        up = few_dots(
            x, mask_M, rows, f < F, norm, K, UP_STRIDE, UP_COLUMNS, UP_TYPE, NORM, SHIFT, M, ROWS // 2, STEP, UNROLL
        )
    gate_up_epilogue(row, y, gate, up, f[None, :], m[:, None], mask_M[:, None], F, GATE_BIAS, UP_BIAS, GELU, None, None)


@triton.jit
def _many(
    row,
    staged,
    ahead,
    AHEAD: tl.constexpr,
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
    UP_TYPE: tl.constexpr,
    UP_STRIDE: tl.constexpr,
    UP_COLUMNS: tl.constexpr,
    UP_ALIGN: tl.constexpr,
    UP_DOT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STRIPE: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    WAVE: tl.constexpr,
    LINES: tl.constexpr,
    WHEN: tl.constexpr,
):
    """A program has a tile of ROWS / 2 rows of gate and of up x TOKENS tokens, or a piece of one, on tensor cores."""
    launch_dependents(WHEN)
    i = tl.program_id(0)
    if LINES > 0 and TYPE == UP_TYPE and STRIDE == UP_STRIDE:  # a single tile of tokens
        rows, there = gate_up_rows(row, i * ROWS + tl.arange(0, ROWS), F, TYPE, STRIDE, ALIGN, STRIPE)
        prefetch_rows(rows, there, STRIDE, LINES, False)
    wait_for_previous(WHEN)
    tokens = integer(row, T)
    n_tiles, m_tiles = tl.cdiv(2 * F, ROWS), tl.cdiv(tokens, TOKENS)
    n_tile, first, whole, piece = work_of(i, n_tiles, m_tiles, TOKENS, PIECES, GROUP, WAVE)
    if whole:
        _tile(
            row, staged, ahead, n_tile, first, tokens, AHEAD, F, GATE_BIAS, UP_BIAS, GELU, K, TYPE, STRIDE, COLUMNS,
            ALIGN, DOT, UP_TYPE, UP_STRIDE, UP_COLUMNS, UP_ALIGN, UP_DOT, TOKENS, ROWS, STEP, STRIPE,
        )  # fmt: skip
    if PIECES > 1:
        if piece:
            _tile(
                row, staged, ahead, n_tile, first, tokens, AHEAD, F, GATE_BIAS, UP_BIAS, GELU, K, TYPE, STRIDE,
                COLUMNS, ALIGN, DOT, UP_TYPE, UP_STRIDE, UP_COLUMNS, UP_ALIGN, UP_DOT, TOKENS // PIECES, ROWS,
                STEP, STRIPE,
            )  # fmt: skip


@triton.jit
def _tile(
    row,
    staged,
    ahead,
    n_tile,
    first,
    tokens,
    AHEAD: tl.constexpr,
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
    UP_TYPE: tl.constexpr,
    UP_STRIDE: tl.constexpr,
    UP_COLUMNS: tl.constexpr,
    UP_ALIGN: tl.constexpr,
    UP_DOT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STRIPE: tl.constexpr,
):
    """ROWS / 2 values of TOKENS tokens from `first` on."""
    m = first + tl.arange(0, TOKENS)
    mask_M = m < tokens
    f = n_tile * (ROWS // 2) + tl.arange(0, ROWS // 2)
    if TYPE == UP_TYPE and STRIDE == UP_STRIDE:
        r = n_tile * ROWS + tl.arange(0, ROWS)
        rows, there = gate_up_rows(row, r, F, TYPE, STRIDE, ALIGN, STRIPE)
        both = many_dots(staged, m, mask_M, rows, there, K, STRIDE, COLUMNS, TYPE, DOT, TOKENS, ROWS, STEP)
        gate, up = deinterleave(both, ROWS, TOKENS, STRIPE)
    else:
        rows = rows_at(pointer(row, GATE_AT, TYPE), f, STRIDE, ALIGN)
        gate = many_dots(staged, m, mask_M, rows, f < F, K, STRIDE, COLUMNS, TYPE, DOT, TOKENS, ROWS // 2, STEP)
        rows = rows_at(pointer(row, UP_AT, UP_TYPE), f, UP_STRIDE, UP_ALIGN)
        up = many_dots(
            staged, m, mask_M, rows, f < F, K, UP_STRIDE, UP_COLUMNS, UP_TYPE, UP_DOT, TOKENS, ROWS // 2, STEP
        )
    gate_up_epilogue(
        row,
        pointer(row, Y, tl.float32),
        gate,
        up,
        f[:, None],
        m[None, :],
        mask_M[None, :],
        F,
        GATE_BIAS,
        UP_BIAS,
        GELU,
        ahead,
        AHEAD,
    )


@triton.jit
def _described(
    row,
    most,
    staged,
    ahead,
    AHEAD: tl.constexpr,
    STORED: tl.constexpr,
    F: tl.constexpr,
    GATE_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    GELU: tl.constexpr,
    K: tl.constexpr,
    TYPE: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    PIECES: tl.constexpr,
    GROUP: tl.constexpr,
    WAVE: tl.constexpr,
    WHEN: tl.constexpr,
):
    """As _many, with operands loaded by tensor descriptors: WAVE programs walk tiles, then pieces of fewer rows."""
    launch_dependents(WHEN)
    half: tl.constexpr = ROWS // 2  # rows of gate, and of up
    gate_at, up_at = tl.load(row + GATE_AT), tl.load(row + UP_AT)
    x = described(staged, most, K, TOKENS, STEP)
    w = described_both(gate_at, up_at, F, K, half, STEP, TYPE)
    wait_for_previous(WHEN)
    to = None
    if STORED:
        to = pointer(row, Y, tl.float32)
    tokens = integer(row, T)
    n_tiles, m_tiles = tl.cdiv(F, half), tl.cdiv(tokens, TOKENS)
    whole = whole_of(n_tiles * m_tiles, PIECES, WAVE)
    for i in tl.range(tl.program_id(0), whole, WAVE, num_stages=1):
        n_tile, m_tile = tile_at(i, n_tiles, m_tiles, GROUP)
        gate, up = described_pair(x, w, m_tile * TOKENS, n_tile * half, K, TOKENS, half, STEP)
        if gate_at > up_at:
            gate, up = up, gate
        m, f = m_tile * TOKENS + tl.arange(0, TOKENS)[:, None], n_tile * half + tl.arange(0, half)[None, :]
        gate_up_epilogue(row, to, gate, up, f, m, m < tokens, F, GATE_BIAS, UP_BIAS, GELU, ahead, AHEAD)
    if PIECES > 1:
        each: tl.constexpr = half // PIECES
        w = described_both(gate_at, up_at, F, K, each, STEP, TYPE)
        for i in tl.range(tl.program_id(0), (n_tiles * m_tiles - whole) * PIECES, WAVE, num_stages=1):
            n_piece, m_tile = piece_at(i, whole, n_tiles, m_tiles, PIECES, GROUP)
            gate, up = described_pair(x, w, m_tile * TOKENS, n_piece * each, K, TOKENS, each, STEP)
            if gate_at > up_at:
                gate, up = up, gate
            m, f = m_tile * TOKENS + tl.arange(0, TOKENS)[:, None], n_piece * each + tl.arange(0, each)[None, :]
            gate_up_epilogue(row, to, gate, up, f, m, m < tokens, F, GATE_BIAS, UP_BIAS, GELU, ahead, AHEAD)


def _matrices(call: Call) -> tuple[Matrix, Matrix]:
    K = call.integer("D")
    return call.matrix("gate", K), call.matrix("up", K)


def launch(call: Call) -> None:
    """Norm and multiply in one pass for few tokens; else norm to scratch, then multiply on tensor cores."""
    F, tokens, (gate, up) = call.integer("F"), call.bucket.tokens, _matrices(call)
    group, wide = max(gate.group, up.group), gate.is_wide or up.is_wide
    apart = {f"UP_{name}": value for name, value in up.constants().items() if name != "K"}
    gelu = call.integer("form") if call.name == GELU_MUL else None
    shared = {
        "F": F,
        "GELU": gelu,
        "GATE_BIAS": call.type("gate_bias"),
        "UP_BIAS": call.type("up_bias"),
        **gate.constants(),
        **apart,
    }
    if tokens <= call.tiles.few_tokens:
        few = call.tiles.few(2 * F, gate.K, tokens, group, wide, least_rows=2, several=gate == up)
        grid = (triton.cdiv(2 * F, few.rows),)
        norm = {"NORM": call.type("norm"), "SHIFT": shift_of(call)}
        call.launch(_few, grid, call.row, **shared, **norm, **few.constants(tokens, group))
        return
    staged = stage(call, [gate, up], normed=True)
    zeros, least = gate.has_zeros or up.has_zeros, MIN_DOT * (1 + (gate != up))
    many = call.tiles.many_of(2 * F, tokens, group, wide, takes([gate, up]), zeros, least)
    n_tiles = triton.cdiv(2 * F, many.rows)
    ahead, shared["AHEAD"] = stage_for_next(call, F)
    if many.described:
        shared["STORED"] = is_stored(call, F)
        launch_described(call, _described, many, n_tiles, tokens, staged, ahead, **shared)
    else:
        shared |= {"DOT": gate.dot_type, "UP_DOT": up.dot_type, "STRIPE": STRIPE.value}
        launch_tiles(call, _many, many, n_tiles, tokens, staged, ahead, **shared)


def scratch_bytes(call: Call) -> int:
    """Bytes of staged activations, and of what is staged for the next launch."""
    return staged_ahead_bytes(call, call.integer("F"))

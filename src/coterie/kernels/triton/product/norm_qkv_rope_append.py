"""norm_qkv_rope_append: q, k, v = linear(norm(x)), heads of q and k normed (optional) and rotated; k, v to pages.

x is [T, D], q [T, H, C]; wq is [H C, D], wk and wv are [K C, D]. Rows of these are renumbered as heads.py says. A
program has rows of one part: q, k or v; whole heads where heads are normed. Parts whose weights differ in type are
separate launches. With many tokens, the angles of a token are computed once, when its activations are staged.
Knows nothing about attention.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import (
    AHEAD,
    EARLY,
    integer,
    launch_dependents,
    pointer,
    unit_index,
    wait_for_previous,
)
from coterie.kernels.triton.attention.pages import Pages
from coterie.kernels.triton.attention.rope import rotate_pairs
from coterie.kernels.triton.norms import norm_at, shift_of
from coterie.kernels.triton.product.described import launch_described, takes
from coterie.kernels.triton.product.described_heads import WIDEST, described_heads
from coterie.kernels.triton.product.dots import (
    STRIPE,
    deinterleave,
    launch_tiles,
    many_dots,
    stage_row,
    staged_bytes,
    staged_type,
    staging,
    work_of,
)
from coterie.kernels.triton.product.few_tokens import few_dots, prefetch_rows
from coterie.kernels.triton.product.heads import (
    PAGES,
    angles_at,
    channels_of,
    ends_of,
    finish_heads,
    normed_heads,
    pairs_of,
    part_of,
    rows_of_part,
    store_pairs,
)
from coterie.kernels.triton.product.one_token import one_dot, tokens_of, weights_ahead
from coterie.kernels.triton.product.sums import appended
from coterie.kernels.triton.rows import Call, Matrix, aligned, operand_words
from coterie.kernels.triton.tiles import MIN_DOT, power_of_two

X, NORM_AT, EPS, T = operand_words("norm_qkv_rope_append", "x", "norm", "eps", "T")
PARTS = ("q", "k", "v")


@triton.jit
def _few(
    row,
    D: tl.constexpr,
    NORM: tl.constexpr,
    SHIFT: tl.constexpr,
    FIRST: tl.constexpr,
    BIAS: tl.constexpr,
    HEAD_NORM: tl.constexpr,
    H: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    PADDED: tl.constexpr,
    TYPE: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    UNROLL: tl.constexpr,
    LINES: tl.constexpr,
    ONE: tl.constexpr,
    WHEN: tl.constexpr,
    unit=None,
):
    launch_dependents(WHEN)
    part, first, heads = part_of(unit_index(unit, 0), FIRST, H, K, PADDED, ROWS)
    n, _, there = channels_of(first + tl.arange(0, ROWS), heads, C, ROTATED, INTERLEAVED, PADDED, 1)
    rows = rows_of_part(row, part, n, TYPE, STRIDE, ALIGN)
    if WHEN == AHEAD:
        prefetch_rows(rows, there, STRIDE, LINES)
        return
    x = pointer(row, X, tl.float32)
    norm = norm_at(row, x, NORM_AT, EPS, NORM, SHIFT)
    if ONE:
        each, have = (), ()
        for r in tl.static_range(ROWS):
            c, _, is_there = channels_of(first + r, heads, C, ROTATED, INTERLEAVED, PADDED, 1)
            each, have = appended(each, rows_of_part(row, part, c, TYPE, STRIDE, ALIGN)), appended(have, is_there)
        ahead = weights_ahead(each, have, D, STRIDE, COLUMNS, STEP, M, NORM)
        xs = tokens_of(x, integer(row, T), D, M)
    m = tl.arange(0, M)
    x, mask_M = x + m * D, m < integer(row, T)
    head, i, mask = pairs_of(first, heads, mask_M, C, PADDED, ROWS)
    if WHEN == EARLY:  # overlaps with the previous launch
        q, page, cosine, sine = ends_of(
            row, part, head, i, m, mask_M, H, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES
        )
    wait_for_previous(WHEN)
    if ONE:
        y = one_dot(ahead, xs, each, have, norm, D, STRIDE, COLUMNS, NORM, SHIFT, STEP)
    else:
        y = few_dots(x, mask_M, rows, there, norm, D, STRIDE, COLUMNS, TYPE, NORM, SHIFT, M, ROWS, STEP, UNROLL)
    if WHEN != EARLY:  # the persistent kernel is short of registers
        q, page, cosine, sine = ends_of(
            row, part, head, i, m, mask_M, H, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES
        )
    y = normed_heads(
        row, tl.permute(y, [1, 0]), part, first, heads, BIAS, HEAD_NORM, C, ROTATED, INTERLEAVED, PADDED, ROWS, M, 1
    )
    a, b = deinterleave(y, ROWS, M, 1)
    if ROTATED > 0:
        if part < 2:
            a, b = rotate_pairs(a, b, cosine, sine)
    store_pairs(q, page, part, a, b, mask, i, KV_TYPE, C, ROTATED, INTERLEAVED)


@triton.jit
def _stage(
    row,
    y,
    angles,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    HALF: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    SHIFT: tl.constexpr,
    TYPE: tl.constexpr,
    STEP: tl.constexpr,
    WHEN: tl.constexpr,
):
    """Besides staging as in dots.py: C / 2 cosines of each token's angles, then as many sines."""
    launch_dependents(WHEN)
    wait_for_previous(WHEN)
    t = tl.program_id(0)
    if t < integer(row, T):
        stage_row(row, y, t, X, None, NORM_AT, EPS, K, NORM, SHIFT, TYPE, STEP)
        i = tl.arange(0, HALF)
        position = tl.load(pointer(row, PAGES, tl.int32) + t)
        cosine, sine = angles_at(row, position, i, C, ROTATED)
        tl.store(angles + t * C + i, cosine, mask=i < C // 2)
        tl.store(angles + t * C + C // 2 + i, sine, mask=i < C // 2)


@triton.jit
def _many(
    row,
    staged,
    angles,
    D: tl.constexpr,
    FIRST: tl.constexpr,
    BIAS: tl.constexpr,
    HEAD_NORM: tl.constexpr,
    H: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    PADDED: tl.constexpr,
    TYPE: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    DOT: tl.constexpr,
    N_TILES: tl.constexpr,
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
    launch_dependents(WHEN)
    i = tl.program_id(0)
    if LINES > 0:  # a single tile of tokens
        part, first_row, heads = part_of(i, FIRST, H, K, PADDED, ROWS)
        n, _, there = channels_of(first_row + tl.arange(0, ROWS), heads, C, ROTATED, INTERLEAVED, PADDED, STRIPE)
        prefetch_rows(rows_of_part(row, part, n, TYPE, STRIDE, ALIGN), there, STRIDE, LINES, False)
    wait_for_previous(WHEN)
    tokens = integer(row, T)
    m_tiles = tl.cdiv(tokens, TOKENS)
    n_tile, first, whole, piece = work_of(i, N_TILES, m_tiles, TOKENS, PIECES, GROUP, WAVE)
    if whole:
        _tile(
            row, staged, angles, n_tile, first, tokens, D, FIRST, BIAS, HEAD_NORM, H, KV_TYPE, K, C, ROTATED,
            INTERLEAVED, Z, BLOCK_BYTES, PADDED, TYPE, STRIDE, COLUMNS, ALIGN, DOT, TOKENS, ROWS, STEP, STRIPE,
        )  # fmt: skip
    if PIECES > 1:
        if piece:
            _tile(
                row, staged, angles, n_tile, first, tokens, D, FIRST, BIAS, HEAD_NORM, H, KV_TYPE, K, C, ROTATED,
                INTERLEAVED, Z, BLOCK_BYTES, PADDED, TYPE, STRIDE, COLUMNS, ALIGN, DOT, TOKENS // PIECES, ROWS,
                STEP, STRIPE,
            )  # fmt: skip


@triton.jit
def _tile(
    row,
    staged,
    angles,
    tile,
    first_token,
    tokens,
    D: tl.constexpr,
    FIRST: tl.constexpr,
    BIAS: tl.constexpr,
    HEAD_NORM: tl.constexpr,
    H: tl.constexpr,
    KV_TYPE: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    ROTATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    Z: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
    PADDED: tl.constexpr,
    TYPE: tl.constexpr,
    STRIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    DOT: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    STRIPE: tl.constexpr,
):
    """A tile of rows for TOKENS tokens from `first_token` on."""
    part, first, heads = part_of(tile, FIRST, H, K, PADDED, ROWS)
    m = first_token + tl.arange(0, TOKENS)
    mask_M = m < tokens
    n, _, there = channels_of(first + tl.arange(0, ROWS), heads, C, ROTATED, INTERLEAVED, PADDED, STRIPE)
    rows = rows_of_part(row, part, n, TYPE, STRIDE, ALIGN)
    y = many_dots(staged, m, mask_M, rows, there, D, STRIDE, COLUMNS, TYPE, DOT, TOKENS, ROWS, STEP)
    finish_heads(
        row, y, part, first, heads, m, mask_M, angles,
        BIAS, HEAD_NORM, H, KV_TYPE, K, C, ROTATED, INTERLEAVED, Z, BLOCK_BYTES, PADDED, ROWS, TOKENS, STRIPE,
    )  # fmt: skip


def _matrices(call: Call) -> list[Matrix]:
    return [call.matrix(f"w{part}", call.integer("D")) for part in PARTS]


def _launches(call: Call) -> list[tuple[int, ...]]:
    """The parts of each launch: neighbours of equal types."""
    found: list[tuple[int, ...]] = []
    for part in range(len(PARTS)):
        if found and _types(call, part) == _types(call, part - 1):
            found[-1] += (part,)
        else:
            found.append((part,))
    return found


def _types(call: Call, part: int) -> tuple[object, ...]:
    """What a part's kernel is compiled for; heads of v are not normed, but may share a launch with those of k."""
    norm = "q_norm" if part == 0 else "k_norm"
    return call.dtype(f"w{PARTS[part]}"), call.type(f"b{PARTS[part]}"), call.type(norm)


def launch(call: Call) -> None:
    """Norm and multiply in one pass for few tokens; else norm to scratch, then multiply on tensor cores."""
    tokens, matrices, pages = call.bucket.tokens, _matrices(call), Pages.of(call)
    H, padded, rotated = call.integer("H"), power_of_two(pages.C), call.integer("rotated")
    interleaved = call.integer("interleaved")
    few_tokens = tokens <= call.tiles.few_tokens
    staged = None if few_tokens else _staged(call, matrices, pages.C)
    for parts in _launches(call):
        matrix, head_norm = matrices[parts[0]], _head_norm(call, parts)
        shared = {"D": matrix.K, "FIRST": parts[0], "BIAS": call.type(f"b{PARTS[parts[0]]}"), "HEAD_NORM": head_norm}
        shared |= {"H": H, "PADDED": padded, "ROTATED": rotated, "INTERLEAVED": interleaved, **pages.constants()}
        shared |= {name: value for name, value in matrix.constants().items() if name != "K"}
        heads = [(H, pages.K, pages.K)[part] for part in parts]
        if staged is None:
            least, rows = padded if head_norm else 2, sum(heads) * padded
            few = call.tiles.few(rows, matrix.K, tokens, matrix.group, matrix.is_wide, least, heads=True, several=True)
            grid = (sum(triton.cdiv(count * padded, few.rows) for count in heads),)
            call.launch(
                _few,
                grid,
                call.row,
                **shared,
                **{"NORM": call.type("norm"), "SHIFT": shift_of(call)},
                **few.constants(tokens, matrix.group),
            )
            continue
        described = takes([matrix]) and staged_type(matrices) is matrix.TYPE  # float32 if types of parts differ
        whole_heads = described and pages.C == padded <= WIDEST and rotated in (0, pages.C) and not interleaved
        alike = staged_type(matrices) is matrix.dot_type
        rows, least = sum(heads) * padded, MIN_DOT if alike and not head_norm else padded
        many = call.tiles.many_of(
            rows, tokens, matrix.group, matrix.is_wide, whole_heads, matrix.has_zeros, least, padded
        )
        shared["N_TILES"] = n_tiles = sum(triton.cdiv(count * padded, many.rows) for count in heads)
        if many.described:
            launch_described(call, described_heads, many, n_tiles, tokens, *staged, **shared, STRIPE=padded // 2)
            continue
        shared |= {"DOT": matrix.dot_type, "STRIPE": min(STRIPE.value, padded // 2)}
        launch_tiles(call, _many, many, n_tiles, tokens, *staged, **shared)


def _staged(call: Call, matrices: list[Matrix], C: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stage activations, normed and rounded, and angles."""
    y, rows, how = staging(call, matrices, normed=True)
    angles = call.scratch_as(tl.float32, rows * C, _angles_at(call, matrices))
    call.launch(
        _stage, (rows,), call.row, y, angles, C=C, ROTATED=call.integer("rotated"), HALF=power_of_two(C // 2), **how
    )
    return y, angles


def _angles_at(call: Call, matrices: list[Matrix]) -> int:
    return aligned(staged_bytes(call, matrices))


def _head_norm(call: Call, parts: tuple[int, ...]) -> object:
    """The type of the norm of q's or k's heads among these parts, or None."""
    return call.type(f"{PARTS[parts[0]]}_norm") if parts[0] < 2 else None


def scratch_bytes(call: Call) -> int:
    """Bytes of staged activations and angles."""
    start = _angles_at(call, _matrices(call))
    return start + 4 * call.bucket.tokens * call.integer("C") if start else 0

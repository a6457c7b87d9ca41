"""Products of many tokens by tensor descriptors: the GPU copies whole tiles to shared memory by itself (TMA).

Tokens are the left operand here, where dots.py has rows: each thread then has all rows of its tokens, so what pairs of
rows make (gate and up, halves of a head) needs no other thread, wherever the rows lie in a tile. What lies beyond a
tensor is 0 when copied. Programs stay: each walks tiles, as many programs as there are multiprocessors. Only steps
within a tile are pipelined: loops over tiles have one stage.

Knows nothing about what becomes of the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl

from coterie.kernels.triton.arithmetic import add_product
from coterie.kernels.triton.product.dots import tile_at
from coterie.kernels.triton.rows import ALIGN_BYTES, TORCH, Call, Matrix
from coterie.kernels.triton.tiles import Many


@triton.jit
def described(at, COUNT, K: tl.constexpr, HEIGHT: tl.constexpr, STEP: tl.constexpr):
    """What copies HEIGHT rows and STEP columns at once of [COUNT, K] values that lie at an address."""
    return tl.make_tensor_descriptor(at, [COUNT, K], [K, 1], [HEIGHT, STEP])


@triton.jit
def described_dots(x, w, m, n, K: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr):
    """[TOKENS, ROWS] products of tokens from m on with rows of a weight from n on, both described."""
    acc = tl.zeros([TOKENS, ROWS], tl.float32)
    for k in tl.range(0, K, STEP):
        acc = add_product(acc, x.load([m, k]), w.load([n, k]).T)
    return acc


@triton.jit
def described_both(one, other, COUNT, K: tl.constexpr, HEIGHT: tl.constexpr, STEP: tl.constexpr, TYPE: tl.constexpr):
    """Two weights of [COUNT, K] as one of three dimensions: how far they lie apart is the stride of the first.

    The one at the lower address comes first.
    """
    low = tl.minimum(one, other)
    apart = (tl.maximum(one, other) - low) // (TYPE.primitive_bitwidth // 8)
    at = tl.multiple_of(low.to(tl.pointer_type(TYPE)), 16)
    return tl.make_tensor_descriptor(at, [2, COUNT, K], [apart, K, 1], [2, HEIGHT, STEP])


@triton.jit
def described_pair(x, both, m, n, K: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr):
    """Products of tokens with rows of the first and of the second of two weights: one product of twice as many rows."""
    acc = tl.zeros([TOKENS, 2 * ROWS], tl.float32)
    for k in tl.range(0, K, STEP):
        rows = tl.reshape(both.load([0, n, k]), [2 * ROWS, STEP])
        acc = add_product(acc, x.load([m, k]), rows.T)
    return left_and_right(acc)


@triton.jit
def left_and_right(y):
    """Both halves of [M, N], cut along N."""
    return tl.split(tl.permute(tl.reshape(y, [y.shape[0], 2, y.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def whole_of(tiles, PIECES: tl.constexpr, WAVE: tl.constexpr):
    """How many of the tiles stay whole: as many as fill waves, where what is left is cut in pieces."""
    whole = tiles
    if PIECES > 1:
        whole = tiles // WAVE * WAVE
    return whole


@triton.jit
def piece_at(i, whole, n_tiles, m_tiles, PIECES: tl.constexpr, GROUP: tl.constexpr):
    """Where piece i lies, in pieces and in tiles: tiles from `whole` on are cut in PIECES of fewer rows each."""
    n_tile, m_tile = tile_at(whole + i // PIECES, n_tiles, m_tiles, GROUP)
    return n_tile * PIECES + i % PIECES, m_tile


def takes(matrices: Sequence[Matrix]) -> bool:
    """Whether a descriptor takes these weights, and tokens as staged for them: of one type, 16 whole bytes a row."""
    one = matrices[0]
    alike = all(other.TYPE == one.TYPE for other in matrices)
    return alike and one.TYPE in TORCH and not one.is_wide and one.ALIGN == ALIGN_BYTES


def launch_described(
    call: Call, kernel: Any, many: Many, n_tiles: int, tokens: int, *args: object, **constants: object
) -> None:
    """Launch a kernel whose programs walk tiles, and then pieces of tiles, of rows and up to so many tokens.

    It is compiled for those constants that it names: how rows lie is told by descriptors.
    """
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    wave = call.tiles.multiprocessors
    how = {"GROUP": call.tiles.group, "WAVE": wave, "num_warps": many.warps, "num_stages": many.stages}
    programs = min(many.programs(n_tiles, tokens, wave), wave)
    call.launch(kernel, (programs,), call.row, tokens, *args, **constants, **many.constants(), **how)
    call.launches[-1].memory = call.descriptors.take(programs, wave, call.row.device)

"""Products of many tokens by tensor descriptors: the GPU copies whole tiles to shared memory by itself (TMA).

Tokens are the left operand here, not weights as in dots.py: each thread then has all rows of its tokens, so combining
pairs of rows (gate and up, halves of a head) needs no other thread, wherever the rows lie in a tile. Elements outside a
tensor load as 0. Programs are persistent: one per multiprocessor, each walking tiles. Only steps within a tile are
pipelined: loops over tiles have one stage.

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
from coterie.kernels.triton.tiles import TensorCoreTile


@triton.jit
def described(at, COUNT, K: tl.constexpr, HEIGHT: tl.constexpr, STEP: tl.constexpr):
    """A descriptor of [COUNT, K] values at an address, for blocks of [HEIGHT, STEP]."""
    return tl.make_tensor_descriptor(at, [COUNT, K], [K, 1], [HEIGHT, STEP])


@triton.jit
def described_dots(x, w, m, n, K: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr):
    """[TOKENS, ROWS] products, in float32, of tokens from m on with weight rows from n on; x and w are descriptors."""
    acc = tl.zeros([TOKENS, ROWS], tl.float32)
    for k in tl.range(0, K, STEP):
        acc = add_product(acc, x.load([m, k]), w.load([n, k]).T)
    return acc


@triton.jit
def described_both(one, other, COUNT, K: tl.constexpr, HEIGHT: tl.constexpr, STEP: tl.constexpr, TYPE: tl.constexpr):
    """One descriptor of two weights [COUNT, K], as [2, COUNT, K]: their distance is the outer stride.

    The one at the lower address comes first.
    """
    low = tl.minimum(one, other)
    apart = (tl.maximum(one, other) - low) // (TYPE.primitive_bitwidth // 8)
    at = tl.multiple_of(low.to(tl.pointer_type(TYPE)), 16)
    return tl.make_tensor_descriptor(at, [2, COUNT, K], [apart, K, 1], [2, HEIGHT, STEP])


@triton.jit
def described_pair(x, both, m, n, K: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr):
    """Products of tokens with the same rows of two weights, [TOKENS, ROWS] each: one product of twice the rows."""
    acc = tl.zeros([TOKENS, 2 * ROWS], tl.float32)
    for k in tl.range(0, K, STEP):
        rows = tl.reshape(both.load([0, n, k]), [2 * ROWS, STEP])
        acc = add_product(acc, x.load([m, k]), rows.T)
    return left_and_right(acc)


@triton.jit
def left_and_right(y):
    """The left and the right half of [M, N]."""
    return tl.split(tl.permute(tl.reshape(y, [y.shape[0], 2, y.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def whole_of(tiles, PIECES: tl.constexpr, WAVE: tl.constexpr):
    """How many of the tiles stay whole: as many as fill waves, if the rest is cut into pieces."""
    whole = tiles
    if PIECES > 1:
        whole = tiles // WAVE * WAVE
    return whole


@triton.jit
def piece_at(i, whole, n_tiles, m_tiles, PIECES: tl.constexpr, GROUP: tl.constexpr):
    """Place of piece i, in row pieces and token tiles: tiles from `whole` on are cut into PIECES along rows."""
    n_tile, m_tile = tile_at(whole + i // PIECES, n_tiles, m_tiles, GROUP)
    return n_tile * PIECES + i % PIECES, m_tile


def takes(matrices: Sequence[Matrix]) -> bool:
    """Whether descriptors can load these weights and the tokens staged for them.

    They must be of one 16-bit type, with rows of a multiple of 16 bytes.
    """
    one = matrices[0]
    alike = all(other.TYPE == one.TYPE for other in matrices)
    return alike and one.TYPE in TORCH and not one.is_wide and one.ALIGN == ALIGN_BYTES


def launch_described(
    call: Call, kernel: Any, many: TensorCoreTile, n_tiles: int, tokens: int, *args: object, **constants: object
) -> None:
    """Launch a kernel whose programs walk tiles, then pieces, of rows x up to `tokens` tokens.

    The kernel gets only the constants that it declares: descriptors carry the layout.
    """
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    wave = call.tiles.multiprocessors
    how = {"GROUP": call.tiles.group, "WAVE": wave, "num_warps": many.warps, "num_stages": many.stages}
    programs = min(many.programs(n_tiles, tokens, wave), wave)
    call.launch(kernel, (programs,), call.row, tokens, *args, **constants, **many.constants(), **how)
    call.launches[-1].memory = call.descriptors.take(programs, wave, call.row.device)

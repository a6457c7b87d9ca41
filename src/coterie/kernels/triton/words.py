"""Small copies by a kernel, between GPU memory and pinned host memory, in either direction.

A GPU's copy engine works in order, whatever the stream: small copies would wait for all of an expert that was queued
before them. A kernel reads pinned memory over the same bus without waiting.
Knows nothing about what the words mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from coterie.kernels.triton.rows import Launch

WORD_BYTES, PIECE_BYTES = 4, 3 * 8
EMPTY_BLOCK = 0, 0, 0  # an empty block: to, from, words
PROGRAMS = 8  # that share the copy of a piece
WORDS_PER_PROGRAM = tl.constexpr(1024)  # words per program, all read at once, as a read takes over 1 us


@triton.jit
def _words(address):
    """An int32 pointer. Triton's interpreter takes an address below 2^32 for an int32, whatever its type."""
    return address.to(tl.int64).to(tl.pointer_type(tl.int32))


@triton.jit(do_not_specialize=["dst", "src", "count", "then_dst", "then_src", "then_count"])
def _move(dst: tl.int64, src: tl.int64, count: tl.int32, then_dst: tl.int64, then_src: tl.int64, then_count: tl.int32):
    """Copy two blocks: the first programs copy the first block, those after them the second."""
    before = tl.cdiv(count, WORDS_PER_PROGRAM)
    program = tl.program_id(0)
    is_first = program < before
    to, at = _words(tl.where(is_first, dst, then_dst)), _words(tl.where(is_first, src, then_src))
    i = tl.where(is_first, program, program - before) * WORDS_PER_PROGRAM + tl.arange(0, WORDS_PER_PROGRAM)
    mask = i < tl.where(is_first, count, then_count)
    # The host writes the source between launches, so loads must bypass caches.
    tl.store(to + i, tl.load(at + i, mask=mask, cache_modifier=".cv"), mask=mask)


@triton.jit(do_not_specialize=["table"])
def _gather(table: tl.int64, EACH: tl.constexpr):
    """Copy one piece of the table [pieces, 3] (to, from, bytes); a piece is shared by EACH programs."""
    piece = table.to(tl.int64).to(tl.pointer_type(tl.int64)) + 3 * tl.program_id(0)
    to = tl.load(piece, cache_modifier=".cv").to(tl.pointer_type(tl.int32))
    at = tl.load(piece + 1, cache_modifier=".cv").to(tl.pointer_type(tl.int32))
    count = (tl.load(piece + 2, cache_modifier=".cv") // 4).to(tl.int32)
    for first in tl.range(tl.program_id(1) * WORDS_PER_PROGRAM, count, EACH * WORDS_PER_PROGRAM):
        i = first + tl.arange(0, WORDS_PER_PROGRAM)
        tl.store(to + i, tl.load(at + i, mask=i < count, cache_modifier=".cv"), mask=i < count)


class _DirectLauncher:
    """A kernel whose first launch goes through Triton's compiler; later ones start the compiled kernel directly."""

    def __init__(self, kernel: Any, *constants: int) -> None:
        self._kernel, self._constants = kernel, constants
        self._compiled: Any = None
        self._on_grids: dict[tuple[int, int, int], Any] = {}

    def __call__(self, grid: tuple[int, int, int], *given: int) -> None:
        """Launch it on the current stream."""
        if self._compiled is None:
            self._compiled = self._kernel[grid](*given, *self._constants)  # None where it is interpreted
            return
        start = self._on_grids.get(grid)
        if start is None:
            start = self._on_grids[grid] = self._compiled[grid]
        start(*given, *self._constants)


class Mover:
    """Copies words on the current stream of one GPU. Addresses are plain numbers, so two compiled kernels serve all."""

    def __init__(self) -> None:
        self._move, self._gather = _DirectLauncher(_move), _DirectLauncher(_gather, PROGRAMS)

    def gather(self, pieces: torch.Tensor) -> None:
        """Copy pieces, as in Driver.copy_pieces. Raises ValueError unless `pieces` is rows of three numbers."""
        count, odd = divmod(pieces.numel() * pieces.element_size(), PIECE_BYTES)
        if odd:
            raise ValueError(f"{pieces.numel()} numbers are no pieces: each has three")
        if count:
            self._gather((count, PROGRAMS, 1), pieces.data_ptr())

    def move(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy byte tensors (to, from) of equal sizes, multiples of 4. Raises ValueError for other sizes.

        Every two pairs are one launch.
        """
        for i in range(0, len(pairs), 2):
            one = _block(*pairs[i])
            two = _block(*pairs[i + 1]) if i + 1 < len(pairs) else EMPTY_BLOCK
            programs = _programs(one) + _programs(two)
            if programs:
                self._move((programs, 1, 1), *one, *two)


def launches() -> list[Launch]:
    """The launches of a Mover, for compiling them ahead."""
    return [Launch(_move, (1,), (0,) * 6, {}), Launch(_gather, (1,), (0,), {"EACH": PROGRAMS})]


def _block(dst: torch.Tensor, src: torch.Tensor) -> tuple[int, int, int]:
    """Destination, source, and number of words."""
    size_bytes = src.numel()
    if dst.numel() != size_bytes or size_bytes % WORD_BYTES:
        raise ValueError(f"{size_bytes} bytes into {dst.numel()}: words are copied {WORD_BYTES} bytes each")
    return dst.data_ptr(), src.data_ptr(), size_bytes // WORD_BYTES


def _programs(block: tuple[int, int, int]) -> int:
    return -(-block[2] // int(WORDS_PER_PROGRAM.value))

"""A few words copied by a kernel, between memory of the GPU and pinned memory of the host: in either direction.

A GPU's copy engine does what it is given in order, whatever the stream: words that went by it would wait for all of an
expert that was queued before them. A kernel reads pinned memory over the same bus and waits for nobody.
Knows nothing about what the words mean.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

WORD_BYTES, PIECE_BYTES = 4, 3 * 8
PROGRAMS = 8  # that copy a piece, in turns
AT_ONCE = tl.constexpr(1024)  # words of a program, all of whose reads are under way at once: a read takes over 1 us


@triton.jit
def _words(address):
    """A pointer. The interpreter takes an address that fits 32 bits for a number of 32, whatever its parameter says."""
    return address.to(tl.int64).to(tl.pointer_type(tl.int32))


@triton.jit(do_not_specialize=["dst", "src", "count"])
def _move(dst: tl.int64, src: tl.int64, count: tl.int32):
    i = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    to, at = _words(dst), _words(src)
    # The host writes it between two launches: what a cache has of it is not asked.
    tl.store(to + i, tl.load(at + i, mask=i < count, cache_modifier=".cv"), mask=i < count)


@triton.jit(do_not_specialize=["table"])
def _gather(table: tl.int64, EACH: tl.constexpr):
    piece = table.to(tl.int64).to(tl.pointer_type(tl.int64)) + 3 * tl.program_id(0)
    to = tl.load(piece, cache_modifier=".cv").to(tl.pointer_type(tl.int32))
    at = tl.load(piece + 1, cache_modifier=".cv").to(tl.pointer_type(tl.int32))
    count = (tl.load(piece + 2, cache_modifier=".cv") // 4).to(tl.int32)
    for first in tl.range(tl.program_id(1) * AT_ONCE, count, EACH * AT_ONCE):
        i = first + tl.arange(0, AT_ONCE)
        tl.store(to + i, tl.load(at + i, mask=i < count, cache_modifier=".cv"), mask=i < count)


class Mover:
    """Copies words on the current stream of one GPU. Addresses are numbers, so two compiled kernels do all."""

    def __init__(self) -> None:
        self._move: Any = None
        self._gather: Any = None

    def gather(self, pieces: torch.Tensor) -> None:
        """Copy pieces, as Driver.copy_pieces has them. Raises ValueError for what are no rows of three numbers."""
        count, odd = divmod(pieces.numel() * pieces.element_size(), PIECE_BYTES)
        if odd:
            raise ValueError(f"{pieces.numel()} numbers are no pieces: each has three")
        if count and self._gather is None:
            self._gather = _gather[(count, PROGRAMS, 1)](pieces.data_ptr(), EACH=PROGRAMS)
        elif count:
            self._gather[(count, PROGRAMS, 1)](pieces.data_ptr(), PROGRAMS)

    def move(self, dst: torch.Tensor, src: torch.Tensor) -> None:
        """Copy tensors of bytes of equal sizes, which are multiples of 4. Raises ValueError for others."""
        size_bytes = src.numel()
        if dst.numel() != size_bytes or size_bytes % WORD_BYTES:
            raise ValueError(f"{size_bytes} bytes into {dst.numel()}: words are copied {WORD_BYTES} bytes each")
        count = size_bytes // WORD_BYTES
        grid, given = (-(-count // AT_ONCE.value), 1, 1), (dst.data_ptr(), src.data_ptr(), count)
        if self._move is None:
            self._move = _move[grid](*given)
        else:
            self._move[grid](*given)

"""Memory of the CUDA device: arenas on the GPU, a pinned pool on the host, and the places of tensors in an arena.

        file, pinned pool    | header |aaaaaa|bbb|  |cccc|          at the offsets of the layout
        arena                |       aaaaaa |bbb |  cccc |          each moved to a multiple of 16, on the way up

Addresses in an arena are fixed until all of it is given back. What is evicted is dropped; nothing is copied down.
Knows nothing about streams or when something moves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch

from coterie.checkpoint.layout import ALIGN_BYTES, BLOCK_BYTES, aligned_starts
from coterie.core.errors import CapacityError
from coterie.device import Buffer
from coterie.devices.cuda.driver import NAME, WORD_BYTES, Driver, NoRoomError, take
from coterie.devices.real.host_memory import Bytes, Slab
from coterie.kernels.cpu import I64

Tensor: TypeAlias = torch.Tensor
ARENA_LEVERS = ("reserve less", "end other programs that use the GPU")
Move: TypeAlias = tuple[int, int, int]
"""Bytes [start, stop) of a layout, and their shift in an arena (usually slightly negative)."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the tensors of a piece of an arena are: bytes from `offsets[i]` on are shifted by `shifts[i]`."""

    buffer: Buffer
    moves: tuple[Move, ...]
    offsets: I64
    shifts: I64

    @staticmethod
    def of(buffer: Buffer, tensors: Sequence[tuple[int, int]]) -> Placed:
        """Align tensors (offset, size), sorted by offset. Raises ValueError if they no longer fit."""
        starts = aligned_starts(tensors)
        if tensors and starts[-1] + tensors[-1][1] > buffer.size_bytes:
            fact = f"{len(tensors)} tensors aligned to {ALIGN_BYTES} end at {starts[-1] + tensors[-1][1]}"
            raise ValueError(f"{fact}, outside a buffer of {buffer.size_bytes} bytes")
        offsets = np.array([offset for offset, _ in tensors], np.int64)
        shifts = np.array(starts, np.int64) - offsets
        return Placed(buffer, tuple(_runs(tensors, shifts.tolist())), offsets, shifts)

    def moved(self, offsets: I64) -> I64:
        """Arena offsets of the tensors that begin at these layout offsets."""
        if not len(self.offsets):
            return offsets
        return offsets + self.shifts[np.maximum(np.searchsorted(self.offsets, offsets, side="right") - 1, 0)]

    def pieces(self, first: int, size_bytes: int) -> list[Move]:
        """The moves that cover bytes [first, first + size_bytes) of the layout."""
        end, found = first + size_bytes, []
        begin = max(bisect_right(self.moves, first, key=lambda move: move[0]) - 1, 0)
        for start, stop, shift in self.moves[begin:]:
            if start >= end:
                break
            if stop > first:
                found.append((max(start, first), min(stop, end), shift))
        return found


def _runs(tensors: Sequence[tuple[int, int]], shifts: Sequence[int]) -> list[Move]:
    """Neighbouring tensors with the same shift become one move, with the gap between them."""
    runs: list[Move] = []
    for (offset, size), shift in zip(tensors, shifts, strict=True):
        if runs and runs[-1][2] == shift:
            runs[-1] = (runs[-1][0], offset + size, shift)
        else:
            runs.append((offset, offset + size, shift))
    return runs


@dataclass(slots=True)
class _Reserved:
    """A slab, of GPU or host memory, and whether it is pinned.

    `placed` is replaced, never modified, since a lane's thread may be reading it. `version` is replaced by a new object
    whenever the place of anything in the slab may have changed.
    """

    size_bytes: int
    memory: Tensor | None = None  # None after it was given back
    slab: Slab | None = None
    is_pinned: bool = False
    refusal: str = ""  # why the system refused to pin it
    is_released: bool = False
    placed: tuple[Placed, ...] = ()
    version: object = field(default_factory=object)

    @property
    def tensor(self) -> Tensor:
        """The slab's bytes."""
        if self.memory is None:
            raise RuntimeError("an arena is asked for that was given back")
        return self.memory

    def place(self, dst: Buffer, *placed: Placed) -> None:
        """Forget the placements of pieces that overlap this one, and set new ones."""
        self.placed = (*(one for one in self.placed if not _overlap(one.buffer, dst)), *placed)
        self.version = object()


class Memory:
    """All slabs that were reserved."""

    def __init__(self, driver: Driver, run_tier: str) -> None:
        self._driver, self._run_tier = driver, run_tier
        self._slabs: list[_Reserved] = []

    @property
    def unpinned(self) -> tuple[int, str] | None:
        """Size of a pool that the system refused to pin at its last reservation, and the reason; None if there is none.

        Copies from it are correct, but CUDA stages them, and the host waits meanwhile.
        """
        return next(((len(one.slab.bytes), one.refusal) for one in self._slabs if one.slab and one.refusal), None)

    def reserve(self, tier: str, size_bytes: int) -> Buffer:
        """A zeroed arena on the GPU, or a zeroed pool on the host. Raises CapacityError."""
        reserved = _Reserved(size_bytes)
        if tier == self._run_tier:
            reserved.memory = self._arena(size_bytes)
        else:
            reserved.slab = _pool(tier, _whole_blocks(size_bytes))
            reserved.memory = torch.from_numpy(reserved.slab.bytes)
            self._pin(reserved, reserved.slab.bytes)
        self._slabs.append(reserved)
        return Buffer(len(self._slabs) - 1, tier, 0, size_bytes)

    def give_back(self, buffer: Buffer) -> None:
        """Release a slab that is completely unused: GPU memory to other programs, host memory to the system.

        It returns, at another address and zeroed, when it is next used. A part of a slab is not released.
        """
        reserved = self._slabs[buffer.slab_id]
        if reserved.is_released or buffer.size_bytes < reserved.size_bytes:
            return
        if reserved.slab is not None and reserved.is_pinned:
            self._driver.unpin(reserved.slab.bytes)  # if this raises, nothing is released
            reserved.is_pinned = False
        reserved.is_released, reserved.placed, reserved.version = True, (), object()
        if reserved.slab is not None:
            reserved.slab.give_back(0, len(reserved.slab.bytes))
        else:
            reserved.memory = None
            self._driver.trim()

    def _slab_of(self, buffer: Buffer) -> _Reserved:
        """The slab of a buffer, reallocated if it was given back. Raises CapacityError."""
        reserved = self._slabs[buffer.slab_id]
        if reserved.is_released:
            if reserved.slab is None:
                reserved.memory = self._arena(reserved.size_bytes)
            else:
                reserved.slab.bytes[::BLOCK_BYTES] = 0  # touch all pages now, not one by one later
                self._pin(reserved, reserved.slab.bytes)
            reserved.is_released = False
        return reserved

    def _arena(self, size_bytes: int) -> Tensor:
        arena = take(self._driver, "a slab", _whole_blocks(size_bytes), ARENA_LEVERS)
        stream = self._driver.stream()
        self._driver.launch(stream, [arena.zero_])
        self._driver.wait(self._driver.mark(stream))
        return arena

    def _pin(self, reserved: _Reserved, pool: Bytes) -> None:
        """Pin a pool, if the system allows it."""
        try:
            self._driver.pin(pool)
            reserved.is_pinned, reserved.refusal = True, ""
        except NoRoomError as error:
            reserved.refusal = str(error)

    def tensor(self, buffer: Buffer) -> Tensor:
        """The bytes of a buffer, as stored."""
        return self._slab_of(buffer).tensor[buffer.offset : buffer.offset + buffer.size_bytes]

    def host_bytes(self, buffer: Buffer) -> Bytes:
        """The bytes of a buffer on the host."""
        slab = self._slab_of(buffer).slab
        if slab is None:
            raise ValueError(f"slab {buffer.slab_id} is on the GPU")
        return slab.bytes[buffer.offset : buffer.offset + buffer.size_bytes]

    def place(self, dst: Buffer, tensors: Sequence[tuple[int, int]]) -> None:
        """Set where tensors will be; placements of overlapping buffers are forgotten."""
        if dst.tier == self._run_tier:
            self._slab_of(dst).place(dst, *([Placed.of(dst, tensors)] if tensors else []))

    def inherit(self, dst: Buffer, src: Buffer) -> None:
        """After a copy between pieces of arenas, byte for byte: tensors in `dst` are where they were in `src`."""
        found = self._placed(src)
        same = found is not None and (found.buffer.offset, found.buffer.size_bytes) == (src.offset, src.size_bytes)
        moved = [Placed(dst, found.moves, found.offsets, found.shifts)] if found is not None and same else []
        self._slabs[dst.slab_id].place(dst, *moved)

    def version(self, buffer: Buffer) -> object:
        """A token that is replaced when placements in a buffer's slab may have changed, or the slab was given back."""
        return self._slabs[buffer.slab_id].version

    def weights_at(self, weights: Buffer, offsets: I64) -> I64:
        """Addresses of an expert's tensors, given their offsets in its layout."""
        base = self._slab_of(weights).tensor.data_ptr() + weights.offset
        placed = self._placed(weights)
        if placed is None:
            return offsets + base
        inside = weights.offset - placed.buffer.offset
        return placed.moved(offsets + inside) + (base - inside)

    def pairs(self, dst: Buffer, src: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Copies (to, from) that bring the layout's bytes `src` to `dst`, each tensor to its place."""
        arena, placed = self._slab_of(dst).tensor, self._placed(dst)
        if placed is None:
            return [(self.tensor(dst), src)]
        base, found = placed.buffer.offset, []
        first = dst.offset - base
        for start, stop, shift in placed.pieces(first, dst.size_bytes):
            to = base + start + shift
            found.append((arena[to : to + stop - start], src[start - first : stop - first]))
        return found

    def pieces(self, dst: Buffer, src: Buffer, parts: Sequence[tuple[int, int]]) -> I64 | None:
        """The same copies for parts only, as rows (to, from, bytes) of addresses.

        None if GPU kernels cannot do them: the source is not pinned, or they are not whole words.
        """
        if not self._slab_of(src).is_pinned:
            return None
        to, of, placed = self.tensor(dst).data_ptr(), self.tensor(src).data_ptr(), self._placed(dst)
        first = dst.offset - placed.buffer.offset if placed is not None else 0
        spans = np.array(parts, np.int64).reshape(-1, 2)
        starts, stops = spans[:, 0] + first, spans[:, 0] + spans[:, 1] + first
        shifts, inside = np.zeros_like(starts), np.ones(len(starts), bool)
        found: list[Move] = []
        if placed is not None and placed.moves:
            begin, end, shift = np.array(placed.moves, np.int64).T
            at = np.maximum(np.searchsorted(begin, starts, side="right") - 1, 0)
            shifts, inside = shift[at], (begin[at] <= starts) & (stops <= end[at])
            # Only few parts cross the borders of moves.
            for start, stop in zip(starts[~inside].tolist(), stops[~inside].tolist(), strict=True):
                found += placed.pieces(start, stop - start)
        rest = np.array(found, np.int64).reshape(-1, 3)
        moves = np.concatenate([np.stack([starts, stops, shifts], 1)[inside], rest])
        rows = np.stack([moves[:, 0] + moves[:, 2] + (to - first), moves[:, 0] + (of - first)], 1)
        rows = np.concatenate([rows, (moves[:, 1] - moves[:, 0])[:, None]], 1)
        return None if (rows % WORD_BYTES).any() else rows

    def close(self) -> None:
        """Release everything."""
        for slab in self._slabs:
            if slab.slab is not None and slab.is_pinned:
                with suppress(Exception):  # a lost GPU holds no pins
                    self._driver.unpin(slab.slab.bytes)
        self._slabs.clear()

    def _placed(self, buffer: Buffer) -> Placed | None:
        """The placement of the arena piece that contains a buffer."""
        for one in self._slabs[buffer.slab_id].placed:
            inside = one.buffer.offset <= buffer.offset
            if inside and buffer.offset + buffer.size_bytes <= one.buffer.offset + one.buffer.size_bytes:
                return one
        return None


def _whole_blocks(size_bytes: int) -> int:
    """The size rounded up to whole blocks, at least one."""
    return max(-(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES, BLOCK_BYTES)


def _pool(tier: str, size: int) -> Slab:
    try:
        return Slab(size)
    except (OSError, MemoryError) as error:
        levers = ("free memory of this machine", "raise the cgroup's limit")
        raise CapacityError(f"{NAME}: {tier}", "the pool of experts", size, 0, levers) from error


def _overlap(one: Buffer, other: Buffer) -> bool:
    return one.offset < other.offset + other.size_bytes and other.offset < one.offset + one.size_bytes

"""The allocator of a slab: which extents of a reserved buffer are free and which are in use.

        0        used        free      used         free         size
        |---------A---------|.........|---B---|....................|      extents are half open, in blocks of 4096

Knows nothing about experts, tiers or devices: offsets only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

from coterie.checkpoint.layout import BLOCK_BYTES


def round_up(size_bytes: int) -> int:
    """Round up to a multiple of BLOCK_BYTES."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Bytes [offset, offset + size_bytes) of a slab, both multiples of BLOCK_BYTES."""

    offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        """One past the extent's last byte."""
        return self.offset + self.size_bytes


class SlabFullError(Exception):
    """No hole of the slab is large enough. Callers make room first, so users see this only through a bug."""


class Slab:
    """A best-fit allocator of extents that coalesces free neighbours. A partial block at the end stays unused."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes // BLOCK_BYTES * BLOCK_BYTES
        if self.size_bytes <= 0:
            raise ValueError(f"a slab of {size_bytes} bytes is smaller than one block of {BLOCK_BYTES}")
        self._free = [Extent(0, self.size_bytes)]
        self._used: dict[int, Extent] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes in allocated extents."""
        return sum(extent.size_bytes for extent in self._used.values())

    @property
    def free_bytes(self) -> int:
        """Bytes in all holes together."""
        return sum(hole.size_bytes for hole in self._free)

    @property
    def holes(self) -> tuple[Extent, ...]:
        """Free extents, coalesced, by offset."""
        return tuple(self._free)

    @property
    def largest_hole(self) -> int:
        """Bytes of the largest extent that `alloc` could return now."""
        return max((hole.size_bytes for hole in self._free), default=0)

    def alloc(self, size_bytes: int, at: int | None = None) -> Extent:
        """Allocate whole blocks from the smallest hole that fits (the lowest on ties), or at offset `at` if given.

        Raises SlabFullError when no hole fits or the bytes at `at` are in use, ValueError for a size that is not
        positive.
        """
        if size_bytes <= 0:
            raise ValueError(f"an extent of {size_bytes} bytes was asked for but it must have at least one")
        need = round_up(size_bytes)
        fitting = [hole for hole in self._free if hole.size_bytes >= need]
        if at is not None:
            fitting = [hole for hole in fitting if hole.offset <= at and at + need <= hole.end]
        if not fitting:
            where = "" if at is None else f" at {at}"
            raise SlabFullError(f"{need} bytes{where} were asked for but the largest hole has {self.largest_hole}")
        hole = min(fitting, key=lambda h: (h.size_bytes, h.offset))
        extent = Extent(hole.offset if at is None else at, need)
        self._free.remove(hole)
        for start, end in ((hole.offset, extent.offset), (extent.end, hole.end)):
            if start < end:
                insort(self._free, Extent(start, end - start))
        self._used[extent.offset] = extent
        return extent

    def free(self, extent: Extent) -> None:
        """Free an extent. Raises ValueError if it is not allocated (a double free, or only part of an extent)."""
        if self._used.get(extent.offset) != extent:
            raise ValueError(f"{extent} is given back but it is not taken")
        del self._used[extent.offset]
        at = bisect_left(self._free, extent)
        first, last = extent.offset, extent.end
        if at < len(self._free) and self._free[at].offset == last:
            last = self._free.pop(at).end
        if at > 0 and self._free[at - 1].end == first:
            first = self._free.pop(at - 1).offset
        insort(self._free, Extent(first, last - first))

    def check_integrity(self) -> None:
        """Raise RuntimeError unless extents and holes tile the slab: no gap, no overlap, holes sorted and coalesced."""
        if self._free != sorted(self._free):
            raise RuntimeError(f"holes are not sorted: {self._free}")
        holes = set(self._free)
        at, after_hole = 0, False
        for piece in sorted([*self._free, *self._used.values()]):
            is_hole = piece in holes
            if (
                piece.offset != at
                or piece.size_bytes <= 0
                or piece.size_bytes % BLOCK_BYTES
                or (is_hole and after_hole)
            ):
                raise RuntimeError(f"{piece} does not follow a piece that ends at {at} (of {self.size_bytes})")
            at, after_hole = piece.end, is_hole
        if at != self.size_bytes:
            raise RuntimeError(f"free + used is {at} bytes but the slab has {self.size_bytes}")

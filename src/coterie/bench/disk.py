"""The disk's measuring stick: a file read from end to end with direct I/O, best over block size and reads at once.

It reads into as much memory as the file has, as a fetch does: one small buffer, filled again, could stay in a cache.
Knows nothing about what is held against it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from threading import Lock, Thread
from time import perf_counter

from coterie.bench.sticks import drop_page_cache
from coterie.devices.host_memory import Slab

BLOCK_SIZES = (2**20, 2**22, 2**23)
DEPTHS = (1, 2, 4, 8)
SEARCH_BYTES = 512 * 2**20  # of a larger file the search reads this much
SEARCH_ROUNDS = 3


@dataclass(slots=True)
class DiskStick:
    """Finds the way to read that this disk likes best, then reads that way. `direct`: the file system allowed it."""

    block_bytes: int = 0
    depth: int = 0
    direct: bool = True
    _buffer: Slab = field(default_factory=lambda: Slab(0))

    def search(self, file: Path) -> None:
        """Choose block size and depth by the median rate of a few rounds, every way once a round."""
        rates: dict[tuple[int, int], list[float]] = {way: [] for way in product(BLOCK_SIZES, DEPTHS)}
        for _ in range(SEARCH_ROUNDS):
            for way, taken in rates.items():
                taken.append(self._read(file, *way, SEARCH_BYTES))
        self.block_bytes, self.depth = max(rates, key=lambda way: median(rates[way]))

    def read(self, file: Path) -> float:
        """Bytes per second of one reading of the whole file, the best way; its pages are dropped first."""
        return self._read(file, self.block_bytes, self.depth, file.stat().st_size)

    def _read(self, file: Path, block_bytes: int, depth: int, limit_bytes: int) -> float:
        drop_page_cache(file)
        size = min(limit_bytes, file.stat().st_size)
        if len(self._buffer.bytes) < size:
            self._buffer = Slab(-(-size // max(BLOCK_SIZES)) * max(BLOCK_SIZES))
        descriptor = self._open(file)
        try:
            offsets, lock, done = iter(range(0, size, block_bytes)), Lock(), [0] * depth
            threads = [
                Thread(target=self._reads, args=(descriptor, offsets, lock, block_bytes, index, done))
                for index in range(depth)
            ]
            start = perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return sum(done) / (perf_counter() - start)
        finally:
            os.close(descriptor)

    def _reads(
        self, descriptor: int, offsets: Iterator[int], lock: Lock, block_bytes: int, index: int, done: list[int]
    ) -> None:
        while True:
            with lock:
                offset = next(offsets, None)
            if offset is None:
                return
            into = self._buffer.bytes[offset : offset + block_bytes].data
            done[index] += os.preadv(descriptor, [into], offset)

    def _open(self, file: Path) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            if self.direct:
                return os.open(file, flags | getattr(os, "O_DIRECT", 0))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.direct = False
        return os.open(file, flags)

"""The disk's limit: a file read sequentially with direct I/O, at the best block size and queue depth.

    threads    each with one read in flight          queue    one thread with all of them, like a fetch (csrc/reads.h)

Like a fetch, it reads into a buffer as large as the file: a small buffer, used again, could stay in a cache.
Knows nothing about what is compared with it.
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
from typing import Literal, TypeAlias

import numpy as np

from coterie.bench.limits import drop_page_cache
from coterie.core.errors import TransferError
from coterie.devices.real.host_memory import Slab
from coterie.kernels import cpu as kernels

By = Literal["threads", "queue"]
Way: TypeAlias = tuple[By, int, int]
"""Threads or a queue, the bytes per read, and the number of reads in flight."""

BY_THREADS: tuple[Way, ...] = tuple(("threads", *way) for way in product((2**20, 2**22, 2**23), (1, 2, 4, 8)))
BY_QUEUE: tuple[Way, ...] = tuple(("queue", *way) for way in product((2**20, 2**21, 2**22), (2, 4, 8, 16, 32)))
SEARCH_BYTES = 512 * 2**20  # the search reads at most this much of the file
SEARCH_ROUNDS = 3


@dataclass(slots=True)
class DiskLimit:
    """Finds the fastest way to read from this disk, and then reads that way. `direct`: O_DIRECT is supported."""

    way: Way = BY_THREADS[0]
    direct: bool = True
    _buffer: Slab = field(default_factory=lambda: Slab(0))

    def search(self, file: Path) -> None:
        """Choose threads or queue, block size and depth, by the median rate over a few interleaved rounds."""
        os.close(self._open(file))  # sets `direct`; without it a queue brings nothing
        rates: dict[Way, list[float]] = {way: [] for way in self.ways()}
        for _ in range(SEARCH_ROUNDS):
            for way, taken in rates.items():
                taken.append(self._read(file, way, SEARCH_BYTES))
        self.way = max(rates, key=lambda way: median(rates[way]))

    def ways(self) -> tuple[Way, ...]:
        """The ways that are possible on this system."""
        if not self.direct:
            return BY_THREADS
        try:
            kernels.Reads()
        except RuntimeError:  # the system has no such queue
            return BY_THREADS
        return BY_THREADS + BY_QUEUE

    def read(self, file: Path) -> float:
        """Bytes per second of reading the whole file the best way, after dropping it from the page cache."""
        return self._read(file, self.way, file.stat().st_size)

    def _read(self, file: Path, way: Way, limit_bytes: int) -> float:
        drop_page_cache(file)
        by, block_bytes, depth = way
        size = min(limit_bytes, file.stat().st_size)
        if len(self._buffer.bytes) < size:
            largest = max(block for _, block, _ in BY_THREADS)
            self._buffer = Slab(-(-size // largest) * largest)
        # A queue is created before the clock starts and freed after it stops: freeing takes tens of milliseconds.
        queue = kernels.Reads(block_bytes, block_bytes * depth, block_bytes * depth) if by == "queue" else None
        descriptor = self._open(file)
        try:
            start = perf_counter()
            if queue is None:
                done = self._by_threads(descriptor, size, block_bytes, depth)
            else:
                done = self._by_queue(queue, descriptor, size, block_bytes)
            return done / (perf_counter() - start)
        finally:
            os.close(descriptor)

    def _by_queue(self, queue: kernels.Reads, descriptor: int, size_bytes: int, block_bytes: int) -> int:
        blocks = -(-size_bytes // block_bytes) * block_bytes  # direct reads are of whole blocks, even past the end
        parts = np.array([(0, min(blocks, len(self._buffer.bytes)))], np.int64)
        queue.add(0, descriptor, self._buffer.address, 0, size_bytes, parts, False)
        if queue.next() != (0, True):
            raise TransferError("the disk's limit", f"{size_bytes} B were not read whole", "is the file changing?")
        return size_bytes

    def _by_threads(self, descriptor: int, size_bytes: int, block_bytes: int, depth: int) -> int:
        offsets, lock, done = iter(range(0, size_bytes, block_bytes)), Lock(), [0] * depth
        threads = [
            Thread(target=self._reads, args=(descriptor, offsets, lock, block_bytes, index, done))
            for index in range(depth)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done)

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

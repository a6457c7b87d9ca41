"""Measuring sticks: simple reads of memory and disk, to hold measurements against. Not the best that a machine can do.

Knows nothing about what is held against them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from coterie.devices.cpu_memory import Bytes


def read_loops(memory: Bytes, pool: ThreadPoolExecutor, threads: int) -> dict[str, Callable[[], float]]:
    """Read loops over `memory`, by one thread and by all: name -> runs once and returns seconds."""
    words = memory[: len(memory) // 8 * 8].view(np.uint64)
    return {f"numpy sum, {n} thread{'s' if n > 1 else ''}": _summing(words, pool, n) for n in sorted({1, threads})}


def _summing(words: npt.NDArray[np.uint64], pool: ThreadPoolExecutor, threads: int) -> Callable[[], float]:
    parts = np.array_split(words, threads)

    def seconds() -> float:
        start = perf_counter()
        for _ in pool.map(np.sum, parts):
            pass
        return perf_counter() - start

    return seconds


def drop_page_cache(file: Path) -> None:
    """Ask the system to forget a file's pages; all of them must be on the disk already."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def sequential_read(file: Path, into: Bytes) -> tuple[float, bool]:
    """Read a file from end to end, one read of `into`'s size after the other: bytes per second, and if it was direct.

    `into` must be aligned to 4096 bytes. Where the file system refuses O_DIRECT the read is an ordinary one.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        try:
            return _read_all(os.open(file, flags | direct), into), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return _read_all(os.open(file, flags), into), False


def _read_all(descriptor: int, into: Bytes) -> float:
    try:
        start, done = perf_counter(), 0
        while count := os.preadv(descriptor, [into.data], done):
            done += count
            if count < len(into):
                break  # the end of the file; a direct read may not start at an odd place
        return done / (perf_counter() - start)
    finally:
        os.close(descriptor)

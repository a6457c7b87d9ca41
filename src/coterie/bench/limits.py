"""A machine's limits (a roofline): loops that only read memory, multiply and add, or unpack weights (disk.py: disks).

A bench says what share of them it reached. Knows nothing about benches.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from coterie.core.dtypes import DType
from coterie.devices.real.host_memory import Bytes
from coterie.graph.ops import BF16, INT8
from coterie.kernels import cpu as kernels

WAYS = {"": (0, 1), ", 2048 B ahead": (2048, 1), ", 4 streams": (0, 4)}  # bytes prefetched, streams; machines differ
MULTIPLY_ADD_ROUNDS = 200_000  # some 25 ms
CACHED_BYTES = 2 << 20  # of weights: they stay in a cache, and are enough for starting on them not to count
CACHED_ROWS = 64  # instructions of one call, some milliseconds
CACHED_TOKENS = 1024  # of all instructions of one call, where they are of many tokens


def read_loops(memory: Bytes, threads: int) -> dict[str, Callable[[], float]]:
    """Native read loops over `memory`, with and without prefetch, in one stream and four, by one thread to `threads`.

    Name -> runs once and returns seconds. The fastest of them is the limit.
    """
    counts = sorted({1, -(-threads // 2), threads})
    return {
        f"read loop, {count} thread{'s' if count > 1 else ''}{way}": partial(
            kernels.read_seconds, memory, count, ahead, streams
        )
        for count in counts
        for way, (ahead, streams) in WAYS.items()
    }


def multiply_adds(threads: int, activations: str) -> float:
    """Flops per second of the fastest instruction set's multiply-adds in registers, by `threads` threads.

    In float32; for bf16 activations of bfloat16, where a CPU has an instruction for that.
    """
    return kernels.multiply_add_rate(MULTIPLY_ADD_ROUNDS, threads, bf16=activations == BF16)


def multiplied(activations: str) -> str:
    """In which type `multiply_adds` multiplies, for a note."""
    return "of bfloat16" if activations == BF16 and kernels.BF16_PRODUCTS else "in float32"


class CachedProducts:
    """Products of so many tokens with weights of a type that lie in the caches: what the cores do if memory is free.

    Packed weights take several instructions each to become numbers; where these take longer than the bytes, they are
    what a step of one token waits for. What many tokens reach depends on their number (tiles, a kernel for few) and on
    the minute: whoever else is on a core takes from its instructions, but nothing from multiply-adds in registers.
    `activations`: int8 and bf16 ones are rounded further than they are by themselves.
    """

    def __init__(self, threads: int, dtype: DType, columns: int, activations: str, tokens: int = 1) -> None:
        n, count = max(1, CACHED_BYTES // dtype.row_bytes(columns)), min(CACHED_ROWS, max(1, CACHED_TOKENS // tokens))
        self._weight = np.zeros(n * dtype.row_bytes(columns), np.uint8)
        self._x, self._y = np.ones((tokens, columns), np.float32), np.empty((tokens, n), np.float32)
        x, weight, y = (kernels.address(array) for array in (self._x, self._weight, self._y))
        number = kernels.dtype_number(dtype, activations in (INT8, BF16))
        sizes = {"T": tokens, "N": n, "K": columns, "weight_dtype": number}
        plain = {"bias": 0, "bias_dtype": 0, "scale": 1.0}
        row = kernels.encode("linear", {"x": x, "weight": weight, "y": y, **plain, **sizes})
        self._rows = np.tile(row, (count, 1))
        self._flops = 2 * tokens * n * columns * count
        self._team = kernels.Team(threads)

    def flops_per_s(self) -> float:
        """Run once."""
        start = perf_counter()
        self._team.run(self._rows)
        return self._flops / (perf_counter() - start)


def drop_page_cache(*files: Path) -> None:
    """Ask the system to forget files' pages; all of them must be on the disk already."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

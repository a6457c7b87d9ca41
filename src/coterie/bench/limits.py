"""A machine's limits (its roofline): loops that only read memory, multiply-add, or unpack weights. Disks: disk.py.

A bench reports the share of them that it reaches.
Knows nothing about benches.
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

WAYS = {"": (0, 1), ", 2048 B ahead": (2048, 1), ", 4 streams": (0, 4)}  # prefetch distance, streams; machines differ
MULTIPLY_ADD_ROUNDS = 200_000  # some 25 ms
CACHED_BYTES = 2 << 20  # of weights: they fit in a cache, but are large enough to hide the start-up cost of a call
CACHED_ROWS = 64  # instructions per call, some milliseconds
CACHED_TOKENS = 1024  # upper bound on tokens x instructions per call


def read_loops(memory: Bytes, threads: int) -> dict[str, Callable[[], float]]:
    """Native read loops over `memory`: with and without prefetch, in one stream or four, by 1 to `threads` threads.

    Returns name -> a function that runs the loop once and returns seconds. The fastest is the limit.
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
    """Flops per second of multiply-adds in registers, with the fastest instruction set, by `threads` threads.

    In float32, or in bfloat16 for bf16 activations if the CPU has an instruction for that.
    """
    return kernels.multiply_add_rate(MULTIPLY_ADD_ROUNDS, threads, bf16=activations == BF16)


def multiplied(activations: str) -> str:
    """The type in which `multiply_adds` multiplies, in words, for a note."""
    return "of bfloat16" if activations == BF16 and kernels.BF16_PRODUCTS else "in float32"


class CachedProducts:
    """Matrix products of `tokens` rows with cached weights of type `dtype`: the compute rate if memory were free.

    Packed weights take several instructions each to unpack; if that takes longer than reading them, it bounds a step
    of one token. The rate for many tokens depends on their number (tile sizes, kernels for small batches) and varies
    from minute to minute: another process on the core costs it more than it costs multiply-adds in registers.
    `activations`: int8 and bf16 select kernels that round activations further than by default.
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
        """Run once; the rate."""
        start = perf_counter()
        self._team.run(self._rows)
        return self._flops / (perf_counter() - start)


def drop_page_cache(*files: Path) -> None:
    """Drop files from the page cache; they must have been synced to the disk before."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

"""A GPU's measured limits: read bandwidth, matrix-product rate, and the rate of copies from pinned memory.

Times are the GPU's own, between events. Knows nothing about what is compared with them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from coterie.devices.cuda.driver import Driver, Launch, take, take_pinned
from coterie.kernels.triton import read_loop

LEVERS = ("end other programs that use the GPU",)
READERS = ((4, 1 << 13), (8, 1 << 12), (16, 1 << 12))  # programs per multiprocessor, words that each reads at once


class MachineLimits:
    """Measurement loops on their own stream and memory.

    A GPU's caches hold some 50 MB, so the memory should be much larger.
    """

    def __init__(self, driver: Driver, size_bytes: int = 2**30, edge: int = 8192) -> None:
        self._driver, self._stream = driver, driver.stream()
        self._memory = take(driver, "memory to read", size_bytes, LEVERS)
        self._host = take_pinned(driver, "memory to copy", size_bytes)
        self._host.zero_()
        multiprocessors = driver.facts.multiprocessors
        sums = take(driver, "sums", 4 * max(many for many, _ in READERS) * multiprocessors, LEVERS).view(torch.int32)
        self._edge, words = edge, self._memory.view(torch.int32)
        matrices = take(driver, "matrices", 3 * 2 * edge * edge, LEVERS).view(torch.bfloat16).view(3, edge, edge)
        # On this stream, since no other waits for it. Matrices are random: zeros would draw less power and run faster.
        driver.launch(self._stream, [self._memory.zero_, matrices.normal_])
        driver.wait(driver.mark(self._stream))
        self._reads: dict[str, Launch] = {
            "sum": lambda: torch.sum(words, dim=0, dtype=torch.int32, out=sums[0]),
            "maximum": lambda: torch.amax(words, dim=0, out=sums[0]),
        }
        for many, each in READERS:
            name = f"{many} programs a multiprocessor, {4 * each // 2**10} KiB at once"
            self._reads[name] = partial(read_loop.read, words, sums, many * multiprocessors, each)
        self._product: Launch = lambda: torch.mm(matrices[0], matrices[1], out=matrices[2])

    @property
    def size_bytes(self) -> int:
        """Bytes that a read loop reads, and a copy copies."""
        return self._memory.numel()

    @property
    def product_flops(self) -> int:
        """Flops of one product of two square matrices."""
        return 2 * self._edge**3

    def read_loops(self) -> dict[str, Callable[[], float]]:
        """Name -> a function that reads all of the memory once and returns seconds. The fastest is the limit."""
        return {f"read loop, {name}": partial(self._seconds, start) for name, start in self._reads.items()}

    def multiply_seconds(self) -> float:
        """Seconds of one product in bfloat16, accumulated in float32, by cuBLAS."""
        return self._seconds(self._product)

    def copy_seconds(self) -> float:
        """Seconds of one copy of the pinned memory to the GPU."""
        first = self._driver.mark(self._stream)
        self._driver.copy(self._memory, self._host, self._stream)
        return self._until(first)

    def _seconds(self, start: Launch) -> float:
        """Seconds of the second of two launches.

        The host queues it while the first still runs, so only GPU time is measured.
        """
        self._driver.launch(self._stream, [start])
        first = self._driver.mark(self._stream)
        self._driver.launch(self._stream, [start])
        return self._until(first)

    def _until(self, first: object) -> float:
        last = self._driver.mark(self._stream)
        self._driver.wait(last)
        return self._driver.seconds(first, last)

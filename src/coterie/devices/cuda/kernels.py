"""The kernels that the CUDA device launches: from instruction rows to launches, found once per bucket.

Knows nothing about streams or memory. Triton is imported when kernels are first made: the base install lacks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch

from coterie.core.errors import UsageError, install_extra
from coterie.devices.cuda.driver import Facts, Launch
from coterie.kernels.cpu import I64
from coterie.kernels.triton.bucket import Bucket
from coterie.kernels.triton.tiles import H100, Tiles, tiles_for


class Plan(Protocol):
    """How to walk all rows in one launch. `words` must be copied to the GPU before the first walk."""

    @property
    def words(self) -> I64:
        """What the walk reads on the GPU, and updates there from run to run."""

    def walk(
        self, words: torch.Tensor, feed: torch.Tensor, state: torch.Tensor, stops: torch.Tensor, multiprocessors: int
    ) -> Launch:
        """A launch that does the rest of a run, on the current stream."""


class Kernels(Protocol):
    """Turns rows into launches. `host_rows` give sizes and types, `rows` on the GPU the rest; see triton/launch.py."""

    def scratch_bytes(self, host_rows: I64, bucket: Bucket) -> int:
        """Most scratch that any row needs. Raises UnsupportedError naming what has no kernel."""

    def row(
        self, host_rows: I64, rows: torch.Tensor, index: int, bucket: Bucket, scratch: torch.Tensor
    ) -> list[Launch]:
        """Launches of one row on the current stream, valid as long as `rows` and `scratch` stay in place."""

    def feed(self, feed: torch.Tensor, state: torch.Tensor, rows: torch.Tensor, stops: torch.Tensor) -> Launch:
        """The launch that ends a step; see kernels/triton/feed.py."""

    def plan(self, host_rows: I64, rows: torch.Tensor, bucket: Bucket, scratch: torch.Tensor) -> Plan:
        """The plan of a walk; see kernels/triton/persistent.py. Raises UnsupportedError for rows it cannot walk."""


class TritonKernels:
    """The kernels of kernels/triton/. Raises UsageError without triton."""

    def __init__(self, tiles: Tiles = H100) -> None:
        try:
            from coterie.kernels.triton import compile_ahead, feed, launch, persistent
            from coterie.kernels.triton.product.descriptor_memory import DescriptorMemory
        except ImportError as error:
            fact = f"Triton is not installed ({error})"
            raise UsageError("--device cuda", fact, install_extra("cuda")) from error
        compile_ahead.settle_keys()
        self._launch, self._feed, self._persistent, self._tiles = launch, feed, persistent, tiles
        self._descriptors = DescriptorMemory()

    def scratch_bytes(self, host_rows: I64, bucket: Bucket) -> int:
        """Most scratch that any row needs."""
        return self._launch.scratch_bytes(host_rows, bucket, self._tiles)

    def row(
        self, host_rows: I64, rows: torch.Tensor, index: int, bucket: Bucket, scratch: torch.Tensor
    ) -> list[Launch]:
        """Computes grids and constants once, from a complete row. Raises ValueError for unaligned addresses."""
        self._launch.check_aligned(host_rows[index : index + 1])
        found = self._launch.launches(host_rows, rows, index, bucket, scratch, self._tiles, self._descriptors)
        return [*found]

    def feed(self, feed: torch.Tensor, state: torch.Tensor, rows: torch.Tensor, stops: torch.Tensor) -> Launch:
        """A launch of one program."""
        return self._feed.feed_launch(feed, state, rows, stops)

    def plan(self, host_rows: I64, rows: torch.Tensor, bucket: Bucket, scratch: torch.Tensor) -> Plan:
        """A plan with the same kernels, but tiles for the persistent kernel."""
        return self._persistent.plan_of(host_rows, rows, bucket, scratch, self._tiles.for_walk())


def kernels_with(facts: Facts, changes: Mapping[str, Any]) -> TritonKernels:
    """Kernels for a GPU with other tiles: `changes` are fields of Tiles."""
    return TritonKernels(replace(tiles_for(facts.capability, facts.multiprocessors), **changes))

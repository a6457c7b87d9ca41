"""Where an expert's bytes are in its files, and where they go in a slab. The file is the slab: bytes are not converted.

        file   |hdr|  layer 0  |  layer 1  | layer 10 | ...     data section, padded down and up to 4096
        extent     [ same bytes, same order, same offset modulo 4096 ]   one such run per shard
        ranges       r0: embed   r1: layers.0   r2: layers.1 ...         execution order, each block exactly once

Knows nothing about tiers, devices or eviction.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coterie.core.dtypes import DType

ALIGN_BYTES = 16  # alignment of weights that GPU kernels require; files guarantee less
BLOCK_BYTES = 4096  # the unit of direct I/O; 4096 suits every common file system and device


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file's size, times and inode when its header was read. Overwriting can preserve all of them except ctime."""

    size_bytes: int
    mtime_ns: int = 0
    inode: int = 0
    ctime_ns: int = 0

    @staticmethod
    def of(status: os.stat_result) -> FileIdentity:
        """From the result of stat."""
        return FileIdentity(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes [offset, offset + size_bytes) of a file, and the file's identity when its header was read.

    `offset` is a multiple of BLOCK_BYTES; the range may extend past the end of the file by less than a block.
    An empty path stands for an expert without weights, which only a modelled device accepts.
    """

    path: str
    offset: int
    size_bytes: int
    identity: FileIdentity


@dataclass(frozen=True, slots=True)
class PlacedRange:
    """A file range and its offset in the extent; `stage` is the first stage of execution that needs it."""

    source: FileRange
    offset: int
    stage: str


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor in the extent; `offset` may be unaligned."""

    offset: int
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """An embedding table of which the first stage needs only some rows.

    Row i is at `offset` + i * `row_bytes` in the extent. The whole table lies in the range of index `range_index`; the
    stages in `later_stages` read all of it.
    """

    range_index: int
    offset: int
    row_bytes: int
    num_rows: int
    later_stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """An expert's ranges in execution order and its tensors. `size_bytes` is its extent, a multiple of BLOCK_BYTES.

    Ranges are read in order: a tensor of stage s is complete once all ranges up to and including those of stage s have
    been read. `spans`: (offset, bytes) of each tensor, sorted, for devices that align tensors; the extent has room for
    that.
    """

    size_bytes: int
    ranges: tuple[PlacedRange, ...]
    tensors: Mapping[str, PlacedTensor]
    table: Table | None = None
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def stages(self) -> tuple[str, ...]:
        """The distinct stages, in execution order."""
        return tuple(dict.fromkeys(r.stage for r in self.ranges))

    def offsets(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Offsets in the extent of the named tensors, in that order."""
        return tuple(self.tensors[name].offset for name in names)


def spans_of(tensors: Mapping[str, PlacedTensor]) -> tuple[tuple[int, int], ...]:
    """(offset, bytes) of each tensor that is not empty, sorted."""
    sizes = ((tensor.offset, tensor.dtype.tensor_bytes(tensor.shape)) for tensor in tensors.values())
    return tuple(sorted(span for span in sizes if span[1]))


def aligned_starts(spans: Sequence[tuple[int, int]], align_bytes: int = ALIGN_BYTES) -> tuple[int, ...]:
    """New offsets for these (offset, size) spans such that all are aligned, in the same order, without overlap.

    Mostly all tensors of a file have the same offset modulo the alignment; then all move down by it, and nothing grows.
    After a tensor of odd size, the following ones may have to move up.
    """
    starts, free = [], 0
    for offset, size in spans:
        start = max(offset // align_bytes * align_bytes, -(-free // align_bytes) * align_bytes)
        starts.append(start)
        free = start + size
    return tuple(starts)


def aligned_end(spans: Sequence[tuple[int, int]], align_bytes: int = ALIGN_BYTES) -> int:
    """The end of the last span once all are aligned."""
    starts = aligned_starts(spans, align_bytes)
    return starts[-1] + spans[-1][1] if spans else 0

"""Where an expert's bytes are in its files, and where they go in a slab. The file is the slab: no byte is converted.

        file   |hdr|  layer 0  |  layer 1  | layer 10 | ...     data section, padded down and up to 4096
        extent     [ same bytes, same order, same offset modulo 4096 ]   one such run per shard
        ranges       r0: embed   r1: layers.0   r2: layers.1 ...         execution order, every block exactly once

Knows nothing about tiers, devices or eviction.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coterie.core.dtypes import DType

ALIGN_BYTES = 16  # what a GPU's kernels want of a weight's address; a file gives less
BLOCK_BYTES = 4096  # direct I/O works in blocks of the device; 4096 suits every common file system


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What a file was when its header was read. A copy over it can restore all of this but the status time."""

    size_bytes: int
    mtime_ns: int = 0
    inode: int = 0
    ctime_ns: int = 0

    @staticmethod
    def of(status: os.stat_result) -> FileIdentity:
        """From the answer of stat."""
        return FileIdentity(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes [offset, offset + size) of a file, and what the file looked like when its header was read.

    `offset` is a multiple of BLOCK_BYTES; `size_bytes` may pass the end of the file by less than a block.
    An empty path stands for an expert without bytes, which only a modelled device accepts.
    """

    path: str
    offset: int
    size_bytes: int
    identity: FileIdentity


@dataclass(frozen=True, slots=True)
class PlacedRange:
    """A file range and where it goes in the extent; `stage` is the first stage of execution that needs it."""

    source: FileRange
    offset: int
    stage: str


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor inside the extent; `offset` needs no alignment."""

    offset: int
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """An embedding whose first reader needs some rows only: row i is at `offset` + i * `row_bytes` in the extent.

    All of it is in the range of index `range_index`; the stages in `again` read it once more, and whole.
    """

    range_index: int
    offset: int
    row_bytes: int
    num_rows: int
    again: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """An expert's ranges in execution order and its tensors. `size_bytes` is its extent, a multiple of BLOCK_BYTES.

    Every range may be read once its predecessors are: a tensor of stage s is complete when all ranges up to and
    including those of stage s are. `spans`: offset and bytes of each tensor by offset, for devices that align them;
    the extent has room for that.
    """

    size_bytes: int
    ranges: tuple[PlacedRange, ...]
    tensors: Mapping[str, PlacedTensor]
    table: Table | None = None
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages in execution order, each once."""
        return tuple(dict.fromkeys(r.stage for r in self.ranges))

    def offsets(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """Offsets in the extent of the named tensors, in that order."""
        return tuple(self.tensors[name].offset for name in names)


def spans_of(tensors: Mapping[str, PlacedTensor]) -> tuple[tuple[int, int], ...]:
    """Offset and bytes of each tensor that has any, by offset."""
    sizes = ((tensor.offset, tensor.dtype.tensor_bytes(tensor.shape)) for tensor in tensors.values())
    return tuple(sorted(span for span in sizes if span[1]))


def aligned_starts(spans: Sequence[tuple[int, int]], align_bytes: int = ALIGN_BYTES) -> tuple[int, ...]:
    """Where each of these (offset, size) goes so that all are aligned, in their order and as near as can be.

    A file's tensors mostly have one remainder, and then all go down by it: nothing grows. Where sizes are odd, what
    follows goes up.
    """
    starts, free = [], 0
    for offset, size in spans:
        start = max(offset // align_bytes * align_bytes, -(-free // align_bytes) * align_bytes)
        starts.append(start)
        free = start + size
    return tuple(starts)


def aligned_end(spans: Sequence[tuple[int, int]], align_bytes: int = ALIGN_BYTES) -> int:
    """Where the last of them ends once they are aligned."""
    starts = aligned_starts(spans, align_bytes)
    return starts[-1] + spans[-1][1] if spans else 0

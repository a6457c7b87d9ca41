"""Memory of the CPU device: slabs that are reserved once, and file ranges read straight into them.

Knows nothing about what the bytes mean.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.layout import BLOCK_BYTES, FileRange
from coterie.core.errors import TransferError
from coterie.core.units import format_bytes
from coterie.kernels import cpu as kernels

Bytes: TypeAlias = npt.NDArray[np.uint8]
Read: TypeAlias = Callable[[int, Sequence[memoryview], int], int]

HUGE_PAGE_BYTES = 2 * 2**20
CHUNK_BYTES = 8 * 2**20  # one read: long enough for the disk's rate, short enough for a failure to show early


class Slab:
    """Anonymous memory, aligned to 2 MiB, touched at once, so that no page fault is left for later."""

    def __init__(self, size_bytes: int) -> None:
        self._map = mmap.mmap(-1, max(size_bytes, 1) + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                self._map.madvise(mmap.MADV_HUGEPAGE)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a kernel without huge pages; small ones do
                    raise
        whole = np.frombuffer(self._map, dtype=np.uint8)
        start = -kernels.address(whole) % HUGE_PAGE_BYTES
        self.bytes: Bytes = whole[start : start + size_bytes]
        self.bytes[::BLOCK_BYTES] = 0
        self.address = kernels.address(whole) + start


def read_range(dst: Bytes, source: FileRange, read: Read = os.preadv) -> None:
    """Read a file range into `dst` (source.size_bytes long) with direct I/O where the file system allows it.

    Raises TransferError when the file is missing, is not what its header's reader saw, or cannot be read to the end.
    """
    where = source.path or "expert without bytes"
    if not source.path:
        raise TransferError(where, "there is no file to read", "give it a checkpoint or run it on a modelled device")
    direct = getattr(os, "O_DIRECT", 0) if kernels.address(dst) % BLOCK_BYTES == 0 else 0
    try:
        if not (direct and _read_with(direct, dst, source, read)):
            _read_with(0, dst, source, read)
    except OSError as error:
        fact = f"reading {format_bytes(source.size_bytes)} at {source.offset} failed: {error.strerror or error}"
        raise TransferError(where, fact, "check the file and its disk") from error


def _read_with(flag: int, dst: Bytes, source: FileRange, read: Read) -> bool:
    """Read everything; False when the file system refuses direct I/O, before anything was read."""
    try:
        file = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | flag)
    except OSError as error:
        if flag and error.errno == errno.EINVAL:
            return False
        raise
    try:
        _check_unchanged(os.fstat(file), source)
        want = min(source.size_bytes, source.file_size_bytes - source.offset)
        if not max(0, source.size_bytes - BLOCK_BYTES) < want:  # ranges are whole blocks; the file's last one is cut
            fact = f"{max(want, 0)} of {source.size_bytes} bytes at {source.offset} are in the file"
            raise TransferError(source.path, fact, "load the expert again")
        view, got = dst.data, 0
        while got < want:
            if flag and got % BLOCK_BYTES:
                return False  # a short read broke the alignment; the ordinary way reads it again
            try:
                count = read(file, [view[got : min(got + CHUNK_BYTES, source.size_bytes)]], source.offset + got)
            except OSError as error:
                if flag and got == 0 and error.errno == errno.EINVAL:
                    return False
                raise
            if count == 0:
                fact = f"the file ended after {got} of {want} bytes at {source.offset}"
                raise TransferError(source.path, fact, "restore the file")
            got += count
        _check_unchanged(os.fstat(file), source)
    finally:
        os.close(file)
    return True


def _check_unchanged(stat: os.stat_result, source: FileRange) -> None:
    if stat.st_size != source.file_size_bytes:
        fact = f"size changed from {source.file_size_bytes} to {stat.st_size} bytes since its header was read"
        raise TransferError(source.path, fact, "load the expert again")
    if stat.st_mtime_ns != source.mtime_ns:
        fact = f"modification time changed from {source.mtime_ns} to {stat.st_mtime_ns} ns since its header was read"
        raise TransferError(source.path, fact, "load the expert again")

"""Host memory: slabs that are reserved once, and file ranges read directly into them.

Knows nothing about what the bytes mean.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.layout import BLOCK_BYTES, FileIdentity, FileRange
from coterie.core.errors import DeviceError, TransferError
from coterie.core.units import format_bytes
from coterie.kernels import cpu as kernels

Bytes: TypeAlias = npt.NDArray[np.uint8]
Read: TypeAlias = Callable[[int, Sequence[memoryview], int], int]

HUGE_PAGE_BYTES = 2 * 2**20
# Linux 4.14 and later; Python 3.11 has no name for it. Source: madvise(2), and its number asm-generic/mman-common.h.
WIPE_ON_FORK = 18 if sys.platform == "linux" else None
_READ_AGAIN = "restore the file, or have headers read again: rescan what is served, or open it again"
# System call numbers of (mbind, get_mempolicy), which libc does not wrap. Source: the kernel's system call tables.
_POLICY_CALLS = {"x86_64": (237, 239), "aarch64": (235, 236)}
_MPOL_DEFAULT, _MPOL_INTERLEAVE = 0, 3  # source: the kernel's uapi/linux/mempolicy.h
CHUNK_BYTES = 8 * 2**20  # one read: large enough for full disk bandwidth, small enough to split a range over readers


class Slab:
    """Anonymous memory, aligned to 2 MiB; `touched`: all pages are faulted in now, so that none faults later.

    `nodes`: if several, NUMA nodes to interleave its pages across. By default a page is on the node of the thread that
    first touches it; one thread touches them all, so every thread would read from a single node's memory.
    A forked child sees zeros: before Linux 6.5, direct I/O during a fork could land in the child's copy only.
    Raises DeviceError if the memory cannot be mapped.
    """

    def __init__(self, size_bytes: int, touched: bool = True, nodes: Sequence[int] = ()) -> None:
        try:
            self._map = mmap.mmap(-1, max(size_bytes, 1) + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            fact = f"{format_bytes(size_bytes)} in one piece cannot be had: {error.strerror}"
            raise DeviceError("memory", fact, "lower --near or --kv, or end what else takes the memory") from error
        # Fallback: with MADV_DONTFORK the child lacks the mapping altogether, and must not unmap it.
        if not self._advise(WIPE_ON_FORK):
            self._advise(getattr(mmap, "MADV_DONTFORK", None))
        self._advise(getattr(mmap, "MADV_HUGEPAGE", None))
        whole = np.frombuffer(self._map, dtype=np.uint8)
        start = -kernels.address(whole) % HUGE_PAGE_BYTES
        self.bytes: Bytes = whole[start : start + size_bytes]
        if len(nodes) > 1:
            interleave(kernels.address(whole), len(whole), nodes)
        if touched:
            self.bytes[::BLOCK_BYTES] = 0
        self.address, self._start = kernels.address(whole) + start, start

    def give_back(self, offset: int, size_bytes: int) -> None:
        """Release the whole pages within these bytes; they read as zeros, or as before, until written again."""
        first, last = -(-offset // mmap.PAGESIZE), (offset + size_bytes) // mmap.PAGESIZE
        if first < last:
            place = self._start + first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
            self._advise(getattr(mmap, "MADV_DONTNEED", None), *place)

    def _advise(self, advice: int | None, *place: int) -> bool:
        """madvise the mapping, or a part (offset, size) of it; False if the system does not support this advice."""
        if advice is None:
            return False
        try:
            self._map.madvise(advice, *place)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True


def interleave(address: int, size_bytes: int, nodes: Sequence[int]) -> bool:
    """Interleave pages that have not been touched yet across NUMA nodes; returns whether that succeeded.

    Not attempted if a memory policy is set (numactl); most containers forbid it. Source: mbind(2).
    """
    calls = _POLICY_CALLS.get(platform.machine()) if sys.platform == "linux" else None
    if calls is None:
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    mode, zero = ctypes.c_int(-1), ctypes.c_ulong(0)
    if call(ctypes.c_long(calls[1]), ctypes.byref(mode), None, zero, None, zero) != 0 or mode.value != _MPOL_DEFAULT:
        return False
    word_bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (max(nodes) // word_bits + 1))()
    for node in nodes:
        mask[node // word_bits] |= 1 << node % word_bits
    size, bits = ctypes.c_ulong(size_bytes), ctypes.c_ulong(len(mask) * word_bits + 1)  # the kernel subtracts one
    how = ctypes.c_ulong(_MPOL_INTERLEAVE)
    done = call(ctypes.c_long(calls[0]), ctypes.c_void_p(address), size, how, mask, bits, zero)
    return bool(done == 0)


def copy_parts(dst: Bytes, src: Bytes, parts: Sequence[tuple[int, int]]) -> None:
    """Copy parts (offset, size) from `src` to the same offsets of `dst`."""
    for offset, size in parts:
        dst[offset : offset + size] = src[offset : offset + size]


class SourceFile:
    """A lazily opened file; with O_DIRECT unless the file system refuses that."""

    def __init__(self, path: str) -> None:
        self.users = 0
        self._path = path
        self._lock = threading.Lock()
        self._descriptors: dict[int, int] = {}
        self._direct = getattr(os, "O_DIRECT", 0)

    def descriptor(self, direct: bool) -> tuple[int, bool]:
        """A descriptor, and whether its reads are direct (only if `direct` is requested). Raises OSError."""
        with self._lock:
            if direct and self._direct:
                try:
                    return self._opened(self._direct), True
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self._direct = 0
            return self._opened(0), False

    def refuse_direct(self) -> None:
        """Use buffered reads from now on."""
        with self._lock:
            self._direct = 0

    def close(self) -> None:
        """Close all descriptors."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _opened(self, flag: int) -> int:
        if flag not in self._descriptors:
            self._descriptors[flag] = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | flag)
        return self._descriptors[flag]


def read_piece(dst: Bytes, source: FileRange, start: int, stop: int, file: SourceFile, read: Read = os.preadv) -> None:
    """Read bytes [start, stop) of a file range into the same bytes of `dst`, with direct I/O where possible.

    `dst` is source.size_bytes long, and `start` a multiple of BLOCK_BYTES. Raises TransferError when the file is
    missing, has changed since its header was read, or cannot be read completely.
    """
    if not source.path:
        fact = "there is no file to read"
        raise TransferError("expert without bytes", fact, "give it a checkpoint or run it on a modelled device")
    try:
        _read(dst, source, start, stop, file, read)
    except OSError as error:
        fact = f"reading {format_bytes(source.size_bytes)} at {source.offset} failed: {error.strerror or error}"
        raise TransferError(source.path, fact, "check the file and its disk") from error


def open_range(dst: Bytes, source: FileRange, file: SourceFile) -> tuple[int, bool, int]:
    """A descriptor for reading a range into `dst`, whether its reads are direct, and the range's bytes in the file.

    Raises OSError, and TransferError when the file has changed since its header was read.
    """
    aligned = kernels.address(dst) % BLOCK_BYTES == 0
    descriptor, direct = file.descriptor(aligned)
    check_unchanged(descriptor, source)
    want = min(source.size_bytes, source.identity.size_bytes - source.offset)
    if not max(0, source.size_bytes - BLOCK_BYTES) < want:  # ranges are whole blocks; the file may end within the last
        fact = f"{max(want, 0)} of {source.size_bytes} bytes at {source.offset} are in the file"
        raise TransferError(source.path, fact, _READ_AGAIN)
    return descriptor, direct, want


def _read(dst: Bytes, source: FileRange, start: int, stop: int, file: SourceFile, read: Read) -> None:
    """Read one piece; continue after short reads, with buffered I/O once alignment is lost."""
    descriptor, direct, want = open_range(dst, source, file)
    view, got = dst.data, start
    while got < min(stop, want):
        if direct and got % BLOCK_BYTES:
            descriptor, direct = file.descriptor(False)
        try:
            count = read(descriptor, [view[got:stop]], source.offset + got)
        except OSError as error:
            if not (direct and error.errno == errno.EINVAL):
                raise
            file.refuse_direct()
            descriptor, direct = file.descriptor(False)
            continue
        if count == 0:
            fact = f"the file ended after {got} of {want} bytes at {source.offset}"
            raise TransferError(source.path, fact, "restore the file")
        got += count
    check_unchanged(descriptor, source)


def check_unchanged(descriptor: int, source: FileRange) -> None:
    """Raise TransferError if the file has changed since its header was read.

    The modification time can be set back; the status change time and the inode cannot.
    """
    now = FileIdentity.of(os.fstat(descriptor))
    if now == source.identity:
        return
    for name, before, after, unit in (
        ("size", source.identity.size_bytes, now.size_bytes, " bytes"),
        ("modification time", source.identity.mtime_ns, now.mtime_ns, " ns"),
        ("inode", source.identity.inode, now.inode, ""),
        ("status time", source.identity.ctime_ns, now.ctime_ns, " ns"),
    ):
        if before != after:
            fact = f"{name} changed from {before} to {after}{unit} since its header was read"
            raise TransferError(source.path, fact, _READ_AGAIN)

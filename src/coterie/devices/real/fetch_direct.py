"""Direct reads of file ranges: one thread keeps many in flight (csrc/reads.h, which also defines their order).

A range that was not read completely is read again by `read_piece`, which reports the error.
Knows nothing about queues or events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

import numpy as np

from coterie.checkpoint.layout import FileRange
from coterie.devices.real.host_memory import Bytes, SourceFile, check_unchanged, open_range, read_piece
from coterie.kernels import cpu as kernels

Owner = TypeVar("Owner")

AHEAD_BYTES = 64 * 2**20  # submitted ahead, so that the disk stays busy while other threads hold the GIL


@dataclass(frozen=True, slots=True)
class _Begun(Generic[Owner]):
    owner: Owner
    target: Bytes
    source: FileRange
    file: SourceFile
    descriptor: int
    parts: Sequence[tuple[int, int]]
    size_bytes: int

    def finish(self, whole: bool) -> None:
        """Check a complete read, or redo an incomplete one. Raises TransferError."""
        if whole:
            check_unchanged(self.descriptor, self.source)
            return
        for start, stop in self.parts:
            read_piece(self.target, self.source, start, stop, self.file)


class DirectReads(Generic[Owner]):
    """Ranges in flight, each with its owner. Not thread-safe.

    Raises RuntimeError if the system does not support this way of reading.
    """

    def __init__(self) -> None:
        self._reads = kernels.Reads()
        self._tags = count()
        self._begun: dict[int, _Begun[Owner]] = {}
        self._ahead_bytes = 0

    @property
    def is_busy(self) -> bool:
        """True while a range is in flight."""
        return bool(self._begun)

    @property
    def is_full(self) -> bool:
        """True while AHEAD_BYTES are in flight beyond the oldest range, whatever that one's size."""
        oldest = next(iter(self._begun.values()), None)
        return oldest is not None and self._ahead_bytes - oldest.size_bytes >= AHEAD_BYTES

    def begin(
        self,
        owner: Owner,
        target: Bytes,
        source: FileRange,
        file: SourceFile,
        parts: Sequence[tuple[int, int]],
        is_scattered: bool,
    ) -> bool:
        """Submit parts (start, stop) of a range; False if it cannot be read this way. Raises TransferError."""
        try:
            descriptor, direct, there = open_range(target, source, file)
        except OSError:
            return False  # the fallback path will report why
        if direct:
            tag, spans = next(self._tags), np.array(parts, dtype=np.int64)
            size_bytes = sum(stop - start for start, stop in parts)
            self._begun[tag] = _Begun(owner, target, source, file, descriptor, parts, size_bytes)
            self._reads.add(tag, descriptor, kernels.address(target), source.offset, there, spans, is_scattered)
            self._ahead_bytes += size_bytes
        return direct

    def next(self) -> tuple[Owner, Exception | None]:
        """Wait for a range to complete; return its owner and failure. Raises RuntimeError if none is in flight."""
        ended = self._reads.next()
        if ended is None:
            raise RuntimeError("no reads are under way")
        tag, whole = ended
        begun = self._begun.pop(tag)
        self._ahead_bytes -= begun.size_bytes
        try:
            begun.finish(whole)
        except Exception as error:  # any failure is the owner's to handle
            return begun.owner, error
        return begun.owner, None

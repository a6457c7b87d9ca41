"""The disk lane of a real device: many reads in flight, so that the disk is never idle; ranges complete in order.

        queue     r0 [p p p p]   r1 [p p]   r2 [p p p]       pieces are issued in order, across ranges
        reading       . . 2 3       0 1         0 1          so reads of r1 and r2 start before r0 has completed
        ends      r0, then r1, then r2                       each when its own pieces have arrived and its predecessor
                                                             has completed

Files that support direct I/O are submitted to the kernel by a single thread (`DirectReads`); all others, and every file
if `read` is given, are read by a pool of reader threads, a piece at a time. A range starts after its dependencies on
other lanes, and after any earlier range whose target overlaps its own. Reads of small scattered parts may overlap with
earlier ranges, but later reads start only once they are complete (here and in csrc/reads.h): competing with reads of
megabytes, each would take milliseconds.
Knows nothing about what the bytes mean.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from time import perf_counter
from typing import TypeAlias

from coterie.checkpoint.layout import FileIdentity, FileRange
from coterie.core.errors import DeviceError
from coterie.device import Event
from coterie.devices.real import host_memory
from coterie.devices.real.fetch_direct import DirectReads
from coterie.devices.real.host_memory import Bytes, Read, SourceFile, read_piece
from coterie.devices.real.lanes import LaneEvent, Lanes, as_own_event
from coterie.kernels import cpu as kernels

Piece: TypeAlias = Sequence[tuple[int, int]]

PARTS_AT_ONCE = 4  # small parts per piece, to reduce lock contention

READERS = 8  # reads in flight; measured: with 4 the disk idles a tenth of the time
BEGIN_S = 1e-3  # upper bound on how long `submit` to an idle lane waits for its range to start

FIRST_READERS, MORE_EVERY = 2, 2  # an idle lane starts with 2 concurrent reads and adds one per 2 pieces issued


@dataclass(slots=True, eq=False)
class _Fetch:
    """A queued range in pieces, each a list of parts (start, stop). Pieces before `at` have been issued."""

    event: LaneEvent
    after: tuple[LaneEvent, ...]
    target: Bytes
    address: int
    source: FileRange
    file: SourceFile
    pieces: Sequence[Piece]
    is_scattered: bool
    by_readers: bool
    at: int = 0
    reading: int = 0
    start_s: float | None = None
    failure: Exception | None = None

    @property
    def is_issued(self) -> bool:
        """True when no further piece will be issued."""
        return self.failure is not None or (self.start_s is not None and self.at >= len(self.pieces))


class FetchLane:
    """Reads file ranges into memory. A failure affects its range and the ranges that depend on it.

    `read`: replaces `os.preadv`, and disables the direct path.
    """

    def __init__(self, lanes: Lanes, read: Read | None = None) -> None:
        self._lanes, self._read = lanes, read or os.preadv
        self._may_be_direct = read is None
        self._direct: DirectReads[_Fetch] | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # awaited by readers
        self._waiting = threading.Condition(self._lock)  # awaited by the thread that submits direct reads
        self._begun = threading.Condition(self._lock)  # awaited by `submit` to an idle lane
        self._queue: deque[_Fetch] = deque()
        self._here: set[int] = set()  # event ids in the queue
        self._files: dict[tuple[str, FileIdentity], SourceFile] = {}  # keyed so that a replaced file is a new entry
        self._threads: list[threading.Thread] = []
        self._lane = ""
        self._free_s = 0.0
        self._readers = self._reading = self._taken = 0
        self._closed = False

    def submit(
        self,
        lane: str,
        label: str,
        after: Iterable[Event],
        target: Bytes,
        source: FileRange,
        parts: Sequence[tuple[int, int]] = (),
    ) -> LaneEvent:
        """Queue a range; its event, on the lane of that name, completes after those of all ranges queued earlier."""
        awaited = tuple(as_own_event(event) for event in after)
        with self._changed:
            if self._closed:
                raise self._lanes.closed()
            if not self._threads:
                self._start(lane)
            event = self._lanes.new_event(lane, label)
            file = self._files.setdefault((source.path, source.identity), SourceFile(source.path))
            file.users += 1
            elsewhere = [other for other in awaited if other.event_id not in self._here]
            pieces = _pieces(source.size_bytes, parts)
            was_idle, by_readers = not self._queue, self._direct is None
            address = kernels.address(target)
            fetch = _Fetch(event, awaited, target, address, source, file, pieces, bool(parts), by_readers)
            self._queue.append(fetch)
            self._here.add(event.event_id)
            self._inherit((fetch,))
        for other in elsewhere:
            self._lanes.when_ended(other, self._look)
        self._look(True)
        if was_idle and not awaited:
            self._let_begin(fetch)
        return event

    def cancel(self) -> None:
        """Fail every range that is not fully issued. Threads exit once their reads in flight have finished."""
        with self._changed:
            self._closed = True
            for fetch in self._queue:
                if not fetch.is_issued:
                    fetch.failure = self._lanes.closed()
            self._settle()
            self._changed.notify_all()
            self._waiting.notify_all()

    def join(self) -> None:
        """Wait for the threads to exit, after `cancel`."""
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self, lane: str) -> None:
        self._lane = lane
        self._direct = _direct_reads() if self._may_be_direct else None
        if self._direct is None:
            self._start_readers()
        else:
            self._threads.append(self._lanes.start_thread(lane, partial(self._serve_direct, self._direct)))

    def _start_readers(self) -> None:
        """Start the reader threads, once. Raises DeviceError only if not even one can be started."""
        for number in range(self._readers, READERS):
            try:
                self._threads.append(self._lanes.start_thread(self._lane, self._serve, number))
                self._readers += 1
            except DeviceError:
                if self._readers:
                    return
                raise

    def _look(self, passed: bool) -> None:
        """Re-examine the queue: a range was added, or a dependency has completed (`passed`) or failed."""
        with self._changed:
            if not passed:
                self._inherit(self._queue)
            self._settle()
            self._wake()

    def _let_begin(self, fetch: _Fetch) -> None:
        """Yield the GIL to the lane's thread, which would otherwise get it only once a whole expert is queued."""
        with self._begun:
            self._begun.wait_for(lambda: fetch.is_issued or fetch.by_readers, BEGIN_S)

    def _wake(self) -> None:
        """Wake one reader and the submitting thread; called with the lock held."""
        self._changed.notify()
        self._waiting.notify()

    def _serve(self) -> None:
        while self._read_one():
            pass

    def _read_one(self) -> bool:
        """Wait for a piece and read it; False when the lane is closed. Holds no reference to the range afterwards."""
        taken = self._take()
        if taken is None:
            return False
        fetch, piece = taken
        failure = None
        try:
            for start, stop in piece:
                read_piece(fetch.target, fetch.source, start, stop, fetch.file, self._read)
        except Exception as error:  # any failure is reported through the event
            failure = error
        with self._changed:
            fetch.reading -= 1
            self._reading -= 1
            fetch.failure = fetch.failure or failure
            self._settle()
            self._taken = self._taken if self._queue else 0
            self._waiting.notify()
        return True

    def _take(self) -> tuple[_Fetch, Piece] | None:
        with self._changed:
            while not self._closed:
                fetch = self._next(by_readers=True)
                if fetch is not None and self._reading < self._at_once(fetch):
                    piece = fetch.pieces[fetch.at]
                    fetch.at += 1
                    fetch.reading += 1
                    fetch.start_s = perf_counter() if fetch.start_s is None else fetch.start_s
                    self._reading += 1
                    self._taken += not fetch.is_scattered
                    self._wake()  # the next reader checks for more; if the limit is reached it sleeps again
                    return fetch, piece
                self._changed.wait()
            return None

    def _at_once(self, fetch: _Fetch) -> int:
        """Limit on reads in flight. It starts low: concurrency raises latency, and the first layers are urgent."""
        return READERS if fetch.is_scattered else min(READERS, FIRST_READERS + self._taken // MORE_EVERY)

    def _serve_direct(self, direct: DirectReads[_Fetch]) -> None:
        while self._hand_over(direct):
            self._hear(direct)

    def _hand_over(self, direct: DirectReads[_Fetch]) -> bool:
        """Submit all ranges that may start; if none is in flight, wait for one. False when the lane is closed."""
        while True:
            with self._lock:
                fetch = None if direct.is_full else self._next(by_readers=False)
                if fetch is not None:
                    fetch.at, fetch.reading = len(fetch.pieces), 1
                elif direct.is_busy:
                    return True
                elif self._closed:
                    return False
                else:
                    self._waiting.wait()
            if fetch is not None:
                self._begin(direct, fetch)

    def _begin(self, direct: DirectReads[_Fetch], fetch: _Fetch) -> None:
        """Submit a range for direct reads, or leave it to the reader threads if its file does not support them."""
        failure: Exception | None = None
        start_s = perf_counter()
        try:
            parts = [part for piece in fetch.pieces for part in piece]
            if direct.begin(fetch, fetch.target, fetch.source, fetch.file, parts, fetch.is_scattered):
                with self._lock:
                    fetch.start_s = start_s
                    self._begun.notify()
                return
            with self._lock:
                self._start_readers()
        except Exception as error:  # any failure is reported through the event
            failure = error
        with self._lock:
            fetch.at, fetch.reading, fetch.by_readers = 0, 0, True
            fetch.failure = failure or (self._lanes.closed() if self._closed else None)
            self._settle()
            self._begun.notify()
            self._changed.notify()

    def _hear(self, direct: DirectReads[_Fetch]) -> None:
        """Wait for one submitted range to complete. Holds no reference to it afterwards."""
        fetch, failure = direct.next()
        with self._lock:
            fetch.reading, fetch.failure = 0, fetch.failure or failure
            self._settle()
            self._changed.notify()

    def _next(self, by_readers: bool) -> _Fetch | None:
        """The first range with pieces left, if it is for this kind of reader and may start; the lane is in order."""
        for index, fetch in enumerate(self._queue):
            if fetch.is_issued:
                if fetch.reading and fetch.is_scattered and fetch.by_readers:
                    return None
            elif fetch.by_readers != by_readers:
                return None
            else:
                begun = fetch.at > 0
                return fetch if begun or self._may_begin(fetch, list(islice(self._queue, index))) else None
        return None

    def _may_begin(self, fetch: _Fetch, before: list[_Fetch]) -> bool:
        here = {other.event.event_id for other in before}
        if any(not event.state.finished and event.event_id not in here for event in fetch.after):
            return False
        return not any(_overlap(fetch, other) for other in before)

    def _settle(self) -> None:
        """Complete ranges that have arrived or failed, from the front of the queue; called with the lock held."""
        while self._queue and self._queue[0].is_issued and not self._queue[0].reading:
            fetch = self._queue.popleft()
            self._here.discard(fetch.event.event_id)
            start_s = None if fetch.start_s is None else max(fetch.start_s, self._free_s)
            self._forget(fetch)
            self._free_s = self._lanes.end(fetch.event, fetch.failure, start_s)
            if fetch.failure is not None:
                self._inherit(self._queue)

    def _inherit(self, fetches: Iterable[_Fetch]) -> None:
        """Propagate failures to the ranges that depend on them."""
        for fetch in fetches:
            if fetch.failure is None:
                failures = (event.state.failure for event in fetch.after if event.state.finished)
                fetch.failure = next((failure for failure in failures if failure is not None), None)

    def _forget(self, fetch: _Fetch) -> None:
        fetch.file.users -= 1
        if fetch.file.users == 0:
            del self._files[fetch.source.path, fetch.source.identity]
            fetch.file.close()


def _direct_reads() -> DirectReads[_Fetch] | None:
    """None if the system does not support this."""
    try:
        return DirectReads()
    except RuntimeError:
        return None


def _pieces(size_bytes: int, parts: Sequence[tuple[int, int]]) -> list[Piece]:
    """Split a range into units of work for readers: chunks, or groups of parts; at least one, even if empty."""
    if parts:
        spans = [(offset, offset + size) for offset, size in parts]
        return [spans[at : at + PARTS_AT_ONCE] for at in range(0, len(spans), PARTS_AT_ONCE)]
    chunk = host_memory.CHUNK_BYTES
    return [[(at, min(at + chunk, size_bytes))] for at in range(0, max(size_bytes, 1), chunk)]


def _overlap(left: _Fetch, right: _Fetch) -> bool:
    return left.address < right.address + len(right.target) and right.address < left.address + len(left.target)

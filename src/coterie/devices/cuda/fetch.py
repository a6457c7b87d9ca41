"""From a file straight to the GPU: blocks are read into pinned staging memory, and copied on from there.

        reads      b0 b1 b2 | b3 b4 ...          the disk lane, several at once, into any free block
        copies         b0 b1 b2 | b3 ...         a stream, in order, each after its block's read; then it is free

A fetch ends when its last block is on the GPU; fetches end in order, and one that was told to follow an earlier one
fails with it. Knows nothing about what the bytes mean.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from coterie.checkpoint.layout import FileRange
from coterie.device import Buffer, Event
from coterie.devices.cuda.driver import Driver, take_pinned
from coterie.devices.cuda.lanes import Finish, Issue, StreamLane, Turn, fail, nothing
from coterie.devices.cuda.memory import Memory, Tensor
from coterie.devices.real.fetch import FetchLane
from coterie.devices.real.lanes import LaneEvent, Lanes, as_own_event

STAGING_BLOCKS, STAGING_BYTES = 16, 8 * 2**20  # a block is one read of the disk lane; never timed
READS = "disk->staging"


@dataclass(slots=True, eq=False)
class _Fetch:
    event: LaneEvent
    after: tuple[LaneEvent, ...]
    dst: Buffer
    source: FileRange
    spans: Sequence[tuple[int, int]]
    blocks_left: int = 0
    start_s: float | None = None
    failure: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class StagedLane:
    """The lane from files to the GPU. `copies` is the stream lane that moves blocks on."""

    def __init__(
        self,
        lanes: Lanes,
        driver: Driver,
        memory: Memory,
        disk: FetchLane,
        copies: StreamLane,
        block_bytes: int = STAGING_BYTES,
        blocks: int = STAGING_BLOCKS,
    ) -> None:
        self._lanes, self._driver, self._memory, self._disk, self._copies = lanes, driver, memory, disk, copies
        self._block_bytes, self._num_blocks = block_bytes, blocks
        self._changed = threading.Condition()
        self._queue: deque[_Fetch] = deque()
        self._pending: set[int] = set()  # events that have not ended
        self._free_s = 0.0
        self._free: list[Tensor] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(
        self,
        lane: str,
        label: str,
        after: Iterable[Event],
        dst: Buffer,
        source: FileRange,
        parts: Sequence[tuple[int, int]] = (),
    ) -> LaneEvent:
        """Queue a range. Raises DeviceError if staging memory or a thread is refused, or the device is closed."""
        awaited = tuple(as_own_event(event) for event in after)
        spans = _spans(parts or ((0, source.size_bytes),), self._block_bytes)
        with self._changed:
            if self._closed:
                raise self._lanes.closed()
            if self._thread is None:
                self._start(lane)
            event = self._lanes.new_event(lane, label)
            self._pending.add(event.event_id)
            self._queue.append(_Fetch(event, awaited, dst, source, spans, len(spans)))
            self._changed.notify_all()
        return event

    def cancel(self) -> None:
        """Fail what has not been read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait for the thread, after cancel and after the lanes were closed."""
        if self._thread is not None:
            self._thread.join()

    def _start(self, lane: str) -> None:
        memory = take_pinned(self._driver, "staging", self._num_blocks * self._block_bytes)
        self._free = [memory[i * self._block_bytes : (i + 1) * self._block_bytes] for i in range(self._num_blocks)]
        self._thread = self._lanes.start_thread(lane, self._serve)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                fetch = self._queue.popleft()
            self._read(fetch)
            del fetch  # do not keep it alive while waiting

    def _read(self, fetch: _Fetch) -> None:
        """Start the read of each block, and queue its copy."""
        try:
            for event in fetch.after:
                # Earlier fetches of this lane need not be awaited: their blocks are copied first.
                if event.event_id not in self._pending:
                    failure = self._lanes.wait(event)
                    if failure is not None:
                        raise failure
        except Exception as error:  # reported through the event
            fetch.failure = error
        for start, stop in fetch.spans:
            self._read_block(fetch, start, stop)

    def _read_block(self, fetch: _Fetch, start: int, stop: int) -> None:
        label, block, read = fetch.event.label, None, None
        issue: Issue
        try:
            if fetch.failure is not None:
                raise fetch.failure
            block = self._take_block()
            staged = block[: stop - start]
            source = replace(fetch.source, offset=fetch.source.offset + start, size_bytes=stop - start)
            read = self._disk.submit(READS, label, (), staged.numpy(), source)
            issue = partial(self._copy, fetch.dst.view(start, stop - start), staged)
        except Exception as error:  # reported through the event
            issue = partial(fail, error)  # in its turn: fetches end in order
        try:
            copied = self._copies.submit(label, () if read is None else (read,), issue)
        except Exception as error:  # closed, or no thread: this thread continues with the next fetch
            refused = partial(self._block_ended, fetch, block, read, error)
            if read is None:
                refused()
            else:  # until then, the read writes to the block
                self._lanes.when_ended(read, lambda _passed: refused())
            return
        self._lanes.when_ended(copied, lambda _passed: self._block_ended(fetch, block, read, copied.state.failure))

    def _copy(self, dst: Buffer, staged: Tensor, turn: Turn) -> Finish:
        for to, source in self._memory.pairs(dst, staged):
            self._driver.copy(to, source, turn.stream)
        return nothing

    def _take_block(self) -> Tensor:
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            if self._closed:
                raise self._lanes.closed()
            return self._free.pop()

    def _block_ended(
        self, fetch: _Fetch, block: Tensor | None, read: LaneEvent | None, failure: Exception | None
    ) -> None:
        with fetch.lock:
            fetch.failure = fetch.failure or failure
            if fetch.start_s is None and read is not None and read.state.finished:
                fetch.start_s = read.state.start_s
            fetch.blocks_left -= 1
            is_last = fetch.blocks_left == 0
        with self._changed:
            if block is not None:
                self._free.append(block)
            self._changed.notify_all()
        if is_last:
            before = (event.state.failure for event in fetch.after if event.state.finished)
            first = next((found for found in before if found is not None), fetch.failure)
            self._pending.discard(fetch.event.event_id)
            start_s = None if fetch.start_s is None else max(fetch.start_s, self._free_s)
            self._free_s = self._lanes.end(fetch.event, first, start_s)


def _spans(parts: Sequence[tuple[int, int]], block_bytes: int) -> list[tuple[int, int]]:
    """The parts (offset, size) cut into blocks (start, stop); at least one, even if empty."""
    return [
        (at, min(at + block_bytes, offset + size))
        for offset, size in parts
        for at in range(offset, offset + max(size, 1), block_bytes)
    ]

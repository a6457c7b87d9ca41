"""A GPU for tests that is none: work on its streams is done late and in any order that marks allow.

What a program forgets to wait for is so not there yet, or is overwritten: results are wrong, not only on bad days.
Memory that nobody wrote, and memory that was let go, is full of ones: NaN in every float. A kernel that is interpreted
may touch no other memory than what a driver gave or pinned, and still has (interpreted.py looks at each load).

    LazyDriver      the CUDA device's driver: streams are queues, done when somebody waits for a mark
    its kernels     native_kernels.py: the CPU's, at full speed; interpreted.py: the Triton ones, interpreted

Knows nothing about devices.
"""

from __future__ import annotations

import ctypes
import random
import threading
import weakref
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from time import perf_counter, sleep

import numpy as np
import torch

from coterie.devices.cuda.driver import Facts, NoRoomError

MAX_BURIED_BYTES = 1 << 20
running = threading.local()  # .driver: whose launch this thread does


@dataclass(eq=False)
class LazyMark:
    """Passed once the stream got here; who waits for one that was never recorded waits for nothing, as in CUDA."""

    passed: bool = False
    at_s: float = 0.0
    error: Exception | None = None


@dataclass(eq=False)
class LazyStream:
    queue: deque = field(default_factory=deque)
    error: Exception | None = None


def _let_go(memory, then, *given):
    """The same memory as a tensor; `then` is called when neither it nor any view of it is left."""
    handed = memory.numpy()[:]
    weakref.finalize(handed, then, *given)
    return torch.from_numpy(handed)


class LazyDriver:
    """`seed` decides the order. `eager`: how likely each step of waiting is to go to just any stream.

    `newest_first`: always to the stream made last that may go on.
    """

    def __init__(self, seed=0, total_bytes=2**40, eager=0.3, settle_s=2e-3, newest_first=False):
        self.facts = Facts("lazy", total_bytes, 1, (9, 0), "no CUDA")
        self._random, self.eager = random.Random(seed), eager
        self._settle_s, self._last_put_s = settle_s, 0.0
        self._newest_first, self._held, self._puts = newest_first, False, 0
        self._lock = threading.RLock()
        self._others = LazyStream()
        self._streams, self._buried = [self._others], []
        self._capturing = False
        self.taken_bytes = self.pinned_bytes = self.trimmed_at = 0
        self.pin_limit_bytes = None
        self._reach: dict[int, int] = {}  # where memory that kernels may touch begins and ends
        self._ranges = None
        self.captured = self.replayed = self.launched = 0
        self.broken = ""
        self.fail_at = None  # the launch, counted from now, that fails; ...
        self.failure = RuntimeError("CUDA error: an illegal memory access was encountered")
        self.is_fatal = False  # ... and whether the GPU is gone then

    # ---- memory

    def free_bytes(self):
        return self.facts.total_bytes - self.taken_bytes

    def device_memory(self, size_bytes):
        with self._lock:
            self._check()
            if size_bytes > self.free_bytes():
                raise NoRoomError(f"CUDA out of memory. Tried to allocate {size_bytes} bytes")
            self.taken_bytes += size_bytes
        memory = torch.full((size_bytes,), 0xFF, dtype=torch.uint8)
        self._give(memory.data_ptr(), size_bytes)
        return _let_go(memory, self._bury, memory)

    def _bury(self, memory):
        """Who lets memory go does not know when another takes it: somebody else's stream fills it, now and then."""
        with self._lock:
            self.taken_bytes -= memory.numel()
            self._take_back(memory.data_ptr())
            if memory.numel() <= MAX_BURIED_BYTES:
                self._others.queue.extend([lambda: memory.fill_(0xFF)] * 8)
                self._buried = [*self._buried, memory][-64:]  # what still uses it fails, but not this process

    def pinned_memory(self, size_bytes):
        self._pin(size_bytes)
        memory = torch.full((size_bytes,), 0xFF, dtype=torch.uint8)
        self._give(memory.data_ptr(), size_bytes)
        return _let_go(memory, self._take_back, memory.data_ptr())

    def pin(self, memory):
        self._pin(memory.nbytes)
        self._give(memory.ctypes.data, memory.nbytes)
        return torch.from_numpy(memory)

    def unpin(self, memory):
        self.pinned_bytes -= memory.nbytes
        self._take_back(memory.ctypes.data)

    def _give(self, address, size_bytes):
        with self._lock:
            self._reach[address], self._ranges = address + size_bytes, None

    def _take_back(self, address):
        with self._lock:
            self._reach.pop(address, None)
            self._ranges = None

    def reaches(self, addresses, size_bytes):
        """Whether all of these bytes, so many from each address on, are memory of the GPU or pinned."""
        if self._ranges is None:
            self._ranges = np.array(sorted(self._reach.items()), np.int64).reshape(-1, 2).T
        begins, ends = self._ranges
        at = np.searchsorted(begins, addresses, side="right") - 1
        return bool((at >= 0).all() and (addresses + size_bytes <= ends[at]).all())

    def _pin(self, size_bytes):
        with self._lock:
            if self.pin_limit_bytes is not None and self.pinned_bytes + size_bytes > self.pin_limit_bytes:
                raise NoRoomError("cudaErrorMemoryAllocation")
            self.pinned_bytes += size_bytes

    def trim(self):
        self.trimmed_at = self.taken_bytes

    # ---- streams

    def stream(self):
        stream = LazyStream()
        with self._lock:
            self._streams.append(stream)
        return stream

    def on(self, stream):
        return nullcontext()

    def copy(self, dst, src, stream):
        assert dst.numel() == src.numel()
        assert dst.is_contiguous()
        assert src.is_contiguous()
        self._put(stream, lambda: dst.copy_(src))

    def copy_words(self, pairs, stream):
        for dst, src in pairs:
            assert src.numel() % 4 == 0
            self.copy(dst, src, stream)

    def copy_pieces(self, pieces, stream):
        def copy():
            for to, of, size in pieces.view(torch.int64).view(-1, 3).tolist():
                assert to % 4 == of % 4 == size % 4 == 0
                ctypes.memmove(to, of, size)

        self._put(stream, copy)

    def mark(self, stream, soon=False):
        mark = LazyMark()
        self._put(stream, mark)
        return mark

    def follow(self, stream, mark):
        self._put(stream, (mark,))

    def launch(self, stream, launches):
        assert not self._capturing
        for start in launches:
            self._put(stream, self._launching(start))

    def capture(self, stream, launches):
        self.captured += 1
        return tuple(launches)

    def replay(self, stream, captured, times=1):
        self.replayed += times
        for start in captured * times:
            self._put(stream, self._launching(start))

    def wait(self, mark):
        """Work goes on only when nobody has queued anything for a while: streams are as far behind as can be."""
        while True:
            with self._lock:
                if mark.passed:
                    break
                self._check()
                early_s = self._last_put_s + self._settle_s - perf_counter()
                if self._held:
                    early_s = self._settle_s
                elif early_s <= 0:
                    self._step(mark)
                    continue
            sleep(early_s)
        if mark.error is not None:
            raise mark.error

    def seconds(self, first, last):
        assert first.passed
        assert last.passed
        return last.at_s - first.at_s

    def lost(self):
        return self.broken

    def hold(self):
        """Let no stream go on."""
        self._held, self._puts = True, 0

    def until_queued(self, puts):
        """Wait until so much has been queued since hold, and no more is."""
        while self._puts < puts or perf_counter() - self._last_put_s < 5 * self._settle_s:
            sleep(self._settle_s)

    def release(self):
        """Let streams go on."""
        self._held = False

    # ---- how streams are worked off

    def _launching(self, start):
        def launch():
            self.launched += 1
            if self.fail_at is not None:
                self.fail_at -= 1
                if self.fail_at < 0:
                    self.fail_at = None
                    self.broken = "CUDA error: device lost" if self.is_fatal else ""
                    raise self.failure
            running.driver = self
            try:
                with np.errstate(all="ignore"):
                    start()
            finally:
                running.driver = None

        return launch

    def _check(self):
        if self.broken:
            raise RuntimeError(self.broken)

    def _put(self, stream, op):
        with self._lock:
            self._check()
            stream.queue.append(op)
            self._puts += 1
            self._last_put_s = perf_counter()

    def _ready(self, stream):
        head = stream.queue[0] if stream.queue else None
        return head is not None and not (isinstance(head, tuple) and not head[0].passed)

    def _step(self, mark):
        """Do one piece of work: of any stream, or of one that the mark needs."""
        ready = [stream for stream in self._streams if self._ready(stream)]
        assert ready, "streams wait for each other"
        needed = [stream for stream in self._needed(mark) if stream in ready]
        stream = self._random.choice(ready if self._random.random() < self.eager else needed)
        stream = ready[-1] if self._newest_first else stream
        op = stream.queue.popleft()
        if isinstance(op, LazyMark):
            op.at_s, op.error, op.passed = perf_counter(), stream.error, True
            stream.error = None
        elif isinstance(op, tuple):
            stream.error = stream.error or op[0].error
        elif stream.error is None:
            try:
                op()
            except Exception as error:
                stream.error = error

    def _needed(self, mark):
        """The streams that must go on before the mark is passed."""
        owners = {id(op): s for s in self._streams for op in s.queue if isinstance(op, LazyMark)}
        found, todo = [], [mark]
        while todo:
            stream = owners.get(id(todo.pop()))
            if stream is not None and stream not in found:
                found.append(stream)
                todo += [op[0] for op in stream.queue if isinstance(op, tuple) and not op[0].passed]
        return found

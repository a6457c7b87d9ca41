"""Runs on the GPU: all steps of a run are queued on the compute stream at once, and may be ended early from outside.

    put | stage 0  stage 1  stage 2 ... | end | step | end | step | end | tokens up
            ^ waits on the stream for its gate   ^ whole steps: in one launch, captured, or kernel by kernel

Nothing here waits for the GPU: the host queues n steps, `feed` stops them on the GPU where a row ends, and `interrupt`
writes a word that `feed` reads.
Knows nothing about files, tiers or where weights come from.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from coterie.core.dtypes import to_f32
from coterie.device import I32
from coterie.devices.cuda.bound import STATE_WORDS, Bound, Ready, Shared
from coterie.devices.cuda.driver import NAME, Driver, Mark, Stream, take_pinned
from coterie.devices.cuda.inputs import Run
from coterie.devices.cuda.lanes import Finish, Turn
from coterie.devices.cuda.packet import Packet, Packets
from coterie.devices.real.host_memory import Bytes
from coterie.devices.real.lanes import LaneEvent
from coterie.devices.real.step import check_drawn

Orchestration = Literal["host", "device", "persistent"]


@dataclass(slots=True, eq=False)
class _CurrentRun:
    """A run that may be told to stop: its stop word, and the mark after which its own words are in place."""

    stop: torch.Tensor
    put: Mark
    is_stopped: bool = False


class Interrupts:
    """Ends the current run, or else the next one, by a word that is written from another stream."""

    def __init__(self, driver: Driver, packets: Packets) -> None:
        self._driver, self._packets, self._lock = driver, packets, threading.Lock()
        self._current: list[_CurrentRun] = []
        self._next = False
        self._stream: Stream = None
        self._one_word: torch.Tensor | None = None
        # The last stop word that was written: its mark, and the memory that must live until then.
        self._written: tuple[Mark, torch.Tensor] | None = None

    def begin(self, bound: Bound, turn: Turn, ready: Ready) -> tuple[Packet, _CurrentRun]:
        """Put a run's words, and register it as current. It ends at once if an interrupt was requested before.

        The lock is held meanwhile, and a server's loop may wait for it to interrupt: nothing here may take long.
        """
        with self._lock:
            if self._written is not None:  # a stop word for an earlier run must not arrive during this one
                self._driver.follow(turn.stream, self._written[0])
                self._written = None
            packet = bound.put(ready, turn.stream, self._next)
            try:
                current = _CurrentRun(bound.stop, self._driver.mark(turn.stream), self._next)
            except BaseException:
                self._packets.abandon(packet, turn.stream)
                raise
            self._next = False
            self._current.append(current)
        return packet, current

    def end(self, run: _CurrentRun) -> None:
        """The run has ended."""
        with self._lock:
            self._current.remove(run)

    def interrupt(self) -> None:
        """See Device.interrupt."""
        with self._lock:
            if not self._current:
                self._next = True
                return
            run = self._current[0]
            if not run.is_stopped:
                run.is_stopped = True
                with suppress(Exception):  # the run then ends by itself, as on a lost GPU
                    self._stop(run)

    def _stop(self, run: _CurrentRun) -> None:
        if self._one_word is None:
            self._stream = self._driver.stream()
            self._one_word = take_pinned(self._driver, "a word that ends a run", 4)
            self._one_word.view(torch.int32)[0] = 1
        self._driver.follow(self._stream, run.put)  # after the run's own words, which reset it to 0
        self._driver.copy_words([(run.stop, self._one_word)], self._stream)
        self._written = self._driver.mark(self._stream), run.stop


class Runs:
    """Queues runs. Used by the compute lane's threads."""

    def __init__(self, shared: Shared, orchestration: Orchestration) -> None:
        self._shared, self._driver = shared, shared.driver
        self._captures, self._walks = orchestration != "host", orchestration == "persistent"
        self.binder = Binder(shared)
        self.interrupts = Interrupts(shared.driver, shared.packets)

    def is_ready(self, run: Run) -> bool:
        """Whether queueing the run takes microseconds: nothing to compile, to capture or to launch kernel by kernel.

        Any thread may ask.
        """
        # Whether a walk has been compiled is not known.
        return self._captures and not self._may_walk(run) and self.binder.is_captured(run)

    def queue(self, turn: Turn, run: Run, waits: Mapping[int, LaneEvent]) -> Finish:
        """Queue all steps; returns the finish, which reads the tokens.

        Rows in `waits` wait for their event on the stream.
        """
        bound = self.binder.bind(run, turn.stream)
        packet, current = self.interrupts.begin(bound, turn, bound.make_ready(run, turn.stream))
        try:
            if waits:
                self._queue_gated(turn, bound, waits)
            self._queue_steps(turn, bound, run, run.steps - bool(waits))
            bound.take_back(turn.stream)
        except BaseException:
            self._abandon(turn, packet, current)
            raise

        def finish(passed: bool) -> I32 | None:
            try:
                words, sampled = packet.came.view(np.int32), run.drawn
                drawn = words[STATE_WORDS : STATE_WORDS + run.steps * sampled].reshape(run.steps, sampled)
                kept: I32 | None = drawn[: words[0]].copy() if passed else None
            finally:
                self.interrupts.end(current)
                self._shared.packets.give_back(packet)
            if kept is not None:
                check_drawn(kept[-1], NAME)
            return kept

        return finish

    def inspect(self, turn: Turn, run: Run) -> dict[str, npt.NDArray[np.float32]]:
        """Run one step and copy every stored value up, while the host waits."""
        bound = self.binder.bind(run, turn.stream)
        packet = bound.put(bound.make_ready(run, turn.stream), turn.stream, False)
        try:
            for index in range(bound.count):
                self._driver.launch(turn.stream, bound.launches(index))
            workspace = self._shared.workspace.at_least(1, turn.stream)
            host = take_pinned(self._driver, "stored values", workspace.numel())
            self._driver.copy(host, workspace, turn.stream)
            self._driver.wait(self._driver.mark(turn.stream))
        except BaseException:
            self._shared.packets.abandon(packet, turn.stream)
            raise
        self._shared.packets.give_back(packet)
        return _values(run, host.numpy(), bound.stored)

    def read(self, turn: Turn, start: int, row_bytes: int, rows: Sequence[int]) -> Finish:
        """Queue a copy of float32 rows of the workspace; returns the finish, which reads them.

        Row i has `row_bytes` bytes from offset `start` + i * `row_bytes` on.
        """
        packets, workspace = self._shared.packets, self._shared.workspace.at_least(1, turn.stream)
        packet = packets.take(0, row_bytes * len(rows))
        try:
            for place, row, count in _runs_of(rows):
                at, size = start + row * row_bytes, count * row_bytes
                came = packet.up[place * row_bytes : place * row_bytes + size]
                self._driver.copy(came, workspace[at : at + size], turn.stream)
        except BaseException:
            packets.abandon(packet, turn.stream)
            raise

        def finish(passed: bool) -> npt.NDArray[np.float32] | None:
            try:
                if not passed:
                    return None
                return packet.came[: row_bytes * len(rows)].view(np.float32).reshape(len(rows), row_bytes // 4).copy()
            finally:
                packets.give_back(packet)

        return finish

    def _queue_steps(self, turn: Turn, bound: Bound, run: Run, steps: int) -> None:
        """Queue the rest of a run: all steps in one launch, or each from a capture, or kernel by kernel."""
        if steps and self._may_walk(run) and bound.queue_walk(turn.stream):
            return
        bound.queue_steps(steps, turn.stream, self._captures)

    def _may_walk(self, run: Run) -> bool:
        """Whether all steps may be one launch; steps whose sequences differ in weights may not."""
        return self._walks and run.decodes and not run.mixes

    def _queue_gated(self, turn: Turn, bound: Bound, waits: Mapping[int, LaneEvent]) -> None:
        """Queue a first step while its weights still arrive.

        Each stage is queued once its gate is, and waits for it on the stream.
        """
        for index in range(bound.count):
            if index in waits:
                turn.follow(waits[index])
            self._driver.launch(turn.stream, bound.launches(index))
        self._driver.launch(turn.stream, [bound.end])
        bound.has_run = True

    def _abandon(self, turn: Turn, packet: Packet, current: _CurrentRun) -> None:
        """Wait for the queued part of a run that could not be queued completely."""
        try:
            self._driver.wait(self._driver.mark(turn.stream))
        finally:
            self.interrupts.end(current)
            self._shared.packets.give_back(packet)


def _runs_of(rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """Consecutive rows as (index in `rows`, first row, count): each is one copy."""
    starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1] + 1]
    return [(i, rows[i], end - i) for i, end in pairwise([*starts, len(rows)])]


def _values(run: Run, memory: Bytes, stored: Mapping[str, int]) -> dict[str, npt.NDArray[np.float32]]:
    """Copies of every stored value, as float32; a step smaller than its bucket fills only the beginnings."""
    found = {}
    for name, start in stored.items():
        value, sizes = run.exe.program.graph.values[name], run.rows.sizes
        shape = tuple(sizes.of(dim) for dim in value.shape)
        size_bytes = sizes.count(value.shape) * value.dtype.size_bytes
        bits = memory[start : start + size_bytes].view(value.dtype.numpy).reshape(shape)
        found[name] = to_f32(bits.copy(), value.dtype)
    return found


MAX_BOUNDS = 64  # per kind; on an H100, one of a 1.1B model takes some 0.5 MB of HBM (2.1 MB for four of its steps)


class Binder:
    """An LRU cache of bounds by executable and bucket, with separate limits for decode steps and prompts.

    Prompts come in many more sizes, and a new one would otherwise evict a decode step that is in constant use.
    """

    def __init__(self, shared: Shared, most: int = MAX_BOUNDS) -> None:
        self._shared, self._max_bounds = shared, most
        self._kept: dict[bool, dict[tuple[object, ...], Bound]] = {True: {}, False: {}}  # key: whether they decode

    def bind(self, run: Run, stream: Stream) -> Bound:
        """The bound for a run's executable, bucket and mix of weights. Raises CapacityError."""
        key, kept = run.bound_by, self._kept[run.bucket.decodes]
        bound = kept.pop(key, None) or Bound(run.exe, run.bucket, self._shared, run.mixes)
        kept[key] = bound  # most recently used
        if len(kept) > self._max_bounds:
            self._shared.driver.wait(self._shared.driver.mark(stream))
            del kept[next(iter(kept))]
        return bound

    def is_captured(self, run: Run) -> bool:
        """Whether a run's steps are captured; any thread may ask."""
        bound = self._kept[run.bucket.decodes].get(run.bound_by)
        return bound is not None and bound.is_captured

    def forget(self) -> None:
        """Drop all bounds."""
        for kept in self._kept.values():
            kept.clear()

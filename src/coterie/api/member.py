"""Member: one of a fleet's Coteries, and the thread that steps it.

    post(job) --> inbox --> [ jobs, then a step ] --chunks--> the fleet's board        one thread for each device

What is posted happens between two steps, in order. Knows nothing about placement, or about who asks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from coterie.api.coterie import Coterie
from coterie.api.jobs import Job, fail_all
from coterie.api.serving import WAIT_S
from coterie.api.types import Chunk
from coterie.core.errors import ClosedError, CoterieError, DeviceError
from coterie.engine.placement import Seen

T = TypeVar("T")


class Board(Protocol):
    """Where a member's thread puts what a step brought. Calls return at once."""

    def deliver(self, member: Member, chunks: Sequence[Chunk]) -> None:
        """Chunks of its queries."""

    def broke(self, member: Member, error: CoterieError) -> None:
        """It answers nothing any more."""


class Member:
    """Runs a Coterie in a thread of its own from `start` to `stop`.

    `name`: how people tell it from the others. `seen`: the device as of the last step. `broken`: why it answers nothing
    any more; None: it does.
    """

    def __init__(self, number: int, name: str, coterie: Coterie, board: Board) -> None:
        self.number, self.name, self.coterie = number, name, coterie
        self.broken: CoterieError | None = None
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._board, self._busy_s, self._changes = board, 0.0, -1
        self._there: tuple[frozenset[str], int] = frozenset(), 0
        self.seen = self._look()
        self._thread = threading.Thread(target=self._serve, name=f"coterie-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """After the step in flight end the thread and close the device. May be called again."""
        self._inbox.put(None)
        self.coterie.interrupt()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        if self.broken is None:
            self.broken = ClosedError(self.name, "is closed and answers nothing any more", "open it anew")
        fail_all(self._inbox, self.broken)
        self.coterie.close()

    def post(self, function: Callable[[Coterie], T]) -> Future[T]:
        """Have a function run between two steps. The future has its result or its error, a CoterieError if possible."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(self.coterie))
            except CoterieError as error:
                future.set_exception(error)
            except Exception as error:  # a bug of ours ends its caller's request and nobody else's
                future.set_exception(DeviceError(self.name, f"failed: {error!r}", "report it"))

        self._inbox.put(Job(run, future.set_exception))
        self.coterie.interrupt()  # after the put: whoever ends a run early finds the job
        if self.broken is not None:
            fail_all(self._inbox, self.broken)  # it broke in between, and nobody else empties the inbox any more
        return future

    def call(self, function: Callable[[Coterie], T]) -> T:
        """As `post`, and wait. Raises the error. Not on the member's own thread."""
        return self.post(function).result()

    def _serve(self) -> None:
        device = self.coterie.parts.device
        try:
            while self._take_jobs():
                if not self.coterie.quiet:
                    begun_s = device.now()
                    chunks = self.coterie.step(WAIT_S)
                    self._busy_s += device.now() - begun_s
                    self.seen = self._look()
                    if chunks:
                        self._board.deliver(self, chunks)
        except BaseException as error:
            broken = DeviceError(self.name, f"stopped in the middle of a step: {error!r}", "restart the server")
            self.broken = broken
            self._board.broke(self, broken)
            fail_all(self._inbox, broken)
            if not isinstance(error, Exception):
                raise

    def _take_jobs(self) -> bool:
        """Run the jobs that wait; with nothing to do, sleep until there is one. False when told to stop."""
        block = self.coterie.quiet
        while True:
            try:
                job = self._inbox.get(block)
            except queue.Empty:
                return True
            if job is None:
                return False
            job.run()
            block = False

    def _look(self) -> Seen:
        """The device as it is, between two steps."""
        parts = self.coterie.parts
        weights, metrics, near = parts.all_weights, parts.engine.metrics, parts.cache.ledgers[0]
        if weights.changes != self._changes:
            self._changes = weights.changes
            there = weights.residents.union(weights.loading())
            self._there = there, near.capacity_bytes - near.used_bytes
        there, free_bytes = self._there
        return Seen(
            there=there,
            near_bytes=near.capacity_bytes,
            free_bytes=free_bytes,
            brought=metrics.switches,
            switches=metrics.switch.total,
            switch_s=metrics.switch.sum_s,
            finished=sum(metrics.finished.values()),
            busy_s=self._busy_s,
        )


def names_of(devices: Sequence[str]) -> tuple[str, ...]:
    """A name for each device: as it is asked for, with its number where that is asked for more than once."""
    return tuple(
        [device if devices.count(device) == 1 else f"{device}#{number}" for number, device in enumerate(devices)]
    )


def all_of(members: Sequence[Member], function: Callable[[Coterie], T]) -> list[T]:
    """What a function gives of each member that answers, all at work at once. Raises the first error."""
    futures: list[Future[Any]] = [member.post(function) for member in members if member.broken is None]
    return [future.result() for future in futures]

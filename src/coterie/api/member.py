"""Member: one of a fleet's Coteries, and the thread that steps it.

    post(job) --> inbox --> [ jobs, then a step ] --chunks--> the fleet's board        one thread for each device

What is posted happens between two steps, in order. Knows nothing about placement, or about who asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol, TypeVar

from coterie.api.coterie import Coterie
from coterie.api.jobs import Inbox, Job
from coterie.api.serving import WAIT_S
from coterie.api.types import Chunk
from coterie.core.errors import ClosedError, CoterieError, DeviceError, fresh
from coterie.engine.placement import Seen
from coterie.models.model import Model

T = TypeVar("T")


class Board(Protocol):
    """Where a member's thread puts what a step brought. Calls return at once."""

    def deliver(self, member: Member, chunks: Sequence[Chunk]) -> None:
        """Chunks of its queries."""

    def broke(self, member: Member, error: CoterieError, cause: BaseException) -> None:
        """It answers nothing any more."""


class Member:
    """Runs a Coterie in a thread of its own from `start` to `stop`.

    `name`: how people tell it from the others. `seen`: the device as of the last step. `broken`: why it answers nothing
    any more; None: it does.
    """

    def __init__(self, number: int, name: str, coterie: Coterie, board: Board) -> None:
        self.number, self.name, self.coterie = number, name, coterie
        self.broken: CoterieError | None = None
        self._inbox = Inbox(coterie.interrupt)
        self._board, self._busy_s, self._changes = board, 0.0, -1
        self._there: tuple[frozenset[str], int] = frozenset(), 0
        self.seen = self._look()
        self._thread = threading.Thread(target=self._serve, name=f"coterie-{name}", daemon=True)

    def now(self) -> float:
        """Seconds on its device's clock, in any thread."""
        return self.coterie.parts.device.now()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """Take no step after the one in flight; `stop` waits for it."""
        self._inbox.end()

    def stop(self) -> None:
        """After the step in flight end the thread and close the device. May be called again."""
        self.end()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        if self.broken is None:
            self.broken = ClosedError(self.name, "is closed and answers nothing any more", "open it anew")
        self._inbox.close(self.broken)
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
        return future

    def call(self, function: Callable[[Coterie], T]) -> T:
        """As `post`, and wait. Raises the error. Not on the member's own thread."""
        return self.post(function).result()

    def _serve(self) -> None:
        device = self.coterie.parts.device
        try:
            while self._inbox.work(sleeps=self.coterie.quiet):
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
            self._board.broke(self, broken, error)
            self._inbox.close(broken)
            if not isinstance(error, Exception):
                raise

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


def serving(members: Iterable[Member], like: Coterie, expert: str) -> list[Member]:
    """Those that answer, and serve an expert by the same files as `like` does."""
    return [one for one in members if one.broken is None and same_files(one.coterie, like, expert)]


def same_files(one: Coterie, other: Coterie, expert: str) -> bool:
    """Whether two serve an expert, and by the same files: a rescan may find it in use on one of them, and renew it on
    the other.
    """
    text, its = one.texts.get(expert), other.texts.get(expert)
    model, like = one.models.get(expert), other.models.get(expert)
    if text is None or its is None or model is None or like is None:
        return False
    served = (expert in one.composition.names) == (expert in other.composition.names)
    alike = (text is its or text.files == its.files) and (model is like or _weights(model) == _weights(like))
    return served and alike


def _weights(model: Model | None) -> object:
    if model is None:
        return None
    sources = {placed.source for placed in model.layout.ranges}  # a status time says nothing of what is in a file
    files = {(source.path, replace(source.identity, ctime_ns=0)) for source in sources if source.identity}
    return model.key, model.path, files, _weights(model.base)


def each_of(members: Sequence[Member], function: Callable[[Coterie], T]) -> list[tuple[Member, T]]:
    """What a function gives of each member that answers, all at work at once; who breaks meanwhile is left out.

    Raises the first error of another kind.
    """
    asked = [(member, member.post(function)) for member in members if member.broken is None]
    found = []
    for member, future in asked:
        try:
            found.append((member, future.result()))
        except CoterieError as error:
            if error is not member.broken:
                raise
    return found


def all_of(members: Sequence[Member], function: Callable[[Coterie], T]) -> list[T]:
    """As `each_of`, without who it is."""
    return [found for _, found in each_of(members, function)]


def ended_with(members: Sequence[Member]) -> CoterieError | None:
    """What the first of some has ended with, where all of them have; None: one answers."""
    errors = [member.broken for member in members if member.broken is not None]
    return fresh(errors[0]) if errors and len(errors) == len(members) else None

"""Member: one of a fleet's Coteries, and the thread that steps it.

    post(job) --> inbox --> [ jobs, then a step ] --chunks--> the fleet's board        one thread for each device

Posted jobs run between two steps, in order. No caller waits for a step that hangs: it gets an error, and a status is
then the last known one. Knows nothing about placement, or about who asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Protocol, TypeVar

from coterie.api.coterie import Coterie
from coterie.api.jobs import Inbox, Job
from coterie.api.known import LOOK_S, Known
from coterie.api.serving import WAIT_S
from coterie.api.status import Status
from coterie.api.types import Chunk
from coterie.core.errors import ClosedError, CoterieError, DeviceError, fresh
from coterie.engine.placement import DeviceSnapshot

T = TypeVar("T")

# Choices, not measurements. A step hangs when it exceeds both bounds: seconds, and a multiple of the longest step
# before it. A long prompt of a large expert takes minutes on a CPU.
HANGS_S, HANGS_TIMES = 30.0, 4.0


class MemberListener(Protocol):
    """Where a member's thread delivers a step's results. Calls return at once."""

    def deliver(self, member: Member, chunks: Sequence[Chunk]) -> None:
        """Chunks of the member's queries."""

    def broke(self, member: Member, error: CoterieError, cause: BaseException) -> None:
        """The member has stopped for good."""


class Member:
    """Runs a Coterie in a thread of its own from `start` to `stop`.

    `name`: its display name. `snapshot`: the device as of the last step or change. `known`: its status as of about
    the last step. `broken`: the error it has stopped with, or None.
    """

    def __init__(self, number: int, name: str, coterie: Coterie, listener: MemberListener) -> None:
        self.number, self.name, self.coterie = number, name, coterie
        self.broken: CoterieError | None = None
        self._inbox = Inbox(coterie.interrupt)
        self._listener, self._busy_s, self._changes = listener, 0.0, -1
        self._residency: tuple[frozenset[str], int] = frozenset(), 0
        self.snapshot = self._take_snapshot()
        self.known, self._left = Known(coterie.status), False
        self._thread = threading.Thread(target=self._serve, name=f"coterie-{name}", daemon=True)

    def now(self) -> float:
        """Seconds on its device's clock, in any thread."""
        return self.coterie.parts.device.now()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """Take no further step; `stop` waits for the current one."""
        self._inbox.end()

    def stop(self) -> None:
        """After the current step, end the thread and close the device; neither if that step hangs. Idempotent."""
        self.end()
        while self._thread.is_alive() and self._thread is not threading.current_thread() and not self.hangs():
            self._thread.join(LOOK_S)
        if self.broken is None:
            self.broken = ClosedError(self.name, "is closed", "open it again")
        self._inbox.close(self.broken)
        if not self.hangs():
            self.coterie.close()
            return
        self._left = True
        self._inbox.end()  # in case it comes back

    def hangs(self, times: float = 1.0) -> bool:
        """Whether a step or a job has lasted longer than any should, or than `times` times that."""
        return self.known.busy_s > times * max(HANGS_S, HANGS_TIMES * self.known.longest_s)

    def hung(self) -> DeviceError:
        """The error that says so."""
        known = self.known
        fact = f"has been in one step for {known.busy_s:.0f} s, and the longest before it took {known.longest_s:.1f} s"
        return DeviceError(self.name, fact, "ask again later, or restart the server")

    def post(self, function: Callable[[Coterie], T]) -> Future[T]:
        """Run a function between two steps. The future gets its result or its error, a CoterieError if possible."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                with self.known.step():
                    found = function(self.coterie)
            except CoterieError as error:
                future.set_exception(error)
            except Exception as error:  # a bug of ours must end only its caller's request
                future.set_exception(DeviceError(self.name, f"failed: {error!r}", "report it"))
            else:
                future.set_result(found)

        def fail(error: Exception) -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

        self._inbox.put(Job(run, fail))
        return future

    def call(self, function: Callable[[Coterie], T]) -> T:
        """As `change`, and wait for the result. Raises its error. Not to be called on the member's own thread."""
        return self.wait(self.change(function))

    def change(self, function: Callable[[Coterie], T]) -> Future[T]:
        """As `post`, and refresh `known` and `snapshot` afterwards."""

        def run(coterie: Coterie) -> T:
            try:
                return function(coterie)
            finally:
                self.known.renew()
                self.snapshot = self._take_snapshot()

        return self.post(run)

    def wait(self, future: Future[T]) -> T:
        """The result of a posted job. Raises its error, or one that the device hangs; the job may then never run."""
        if not self._comes(future, self.hangs):
            raise self.hung()
        return future.result()

    def soon(self, future: Future[T]) -> T | None:
        """As `wait`, but gives up on a step that takes long, and returns None."""
        return future.result() if self._comes(future, lambda: self.known.late) else None

    @staticmethod
    def _comes(future: Future[T], given_up: Callable[[], bool]) -> bool:
        """Wait until the future is done; if `given_up` first, cancel it and return False."""
        while not wait([future], LOOK_S).done:
            if given_up():
                future.cancel()
                return False
        return True

    def _serve(self) -> None:
        device = self.coterie.parts.device
        try:
            while self._inbox.work(sleeps=self.coterie.quiet):
                if not self.coterie.quiet:
                    with self.known.step():
                        begun_s = device.now()
                        chunks = self.coterie.step(WAIT_S)
                    self._busy_s += device.now() - begun_s
                    self.snapshot = self._take_snapshot()
                    if chunks:
                        self._listener.deliver(self, chunks)
        except BaseException as error:
            broken = DeviceError(self.name, f"stopped in the middle of a step: {error!r}", "restart the server")
            self.broken = broken
            try:
                self._listener.broke(self, broken, error)
            finally:
                self._inbox.close(broken)
            if not isinstance(error, Exception):
                raise
        if self._left:
            self.coterie.close()

    def _take_snapshot(self) -> DeviceSnapshot:
        """A snapshot of the device, between two steps."""
        parts = self.coterie.parts
        weights, metrics, near = parts.all_weights, parts.engine.metrics, parts.cache.ledgers[0]
        if weights.changes != self._changes:
            self._changes = weights.changes
            there = weights.residents.union(weights.loading())
            self._residency = there, near.capacity_bytes - near.used_bytes
        there, free_bytes = self._residency
        return DeviceSnapshot(
            residents=there,
            near_bytes=near.capacity_bytes,
            free_bytes=free_bytes,
            num_loads=metrics.switches,
            switches=metrics.switch.total,
            switch_s=metrics.switch.sum_s,
            finished=sum(metrics.finished.values()),
            busy_s=self._busy_s,
            loading=parts.engine.loading,
        )


def names_of(devices: Sequence[str]) -> tuple[str, ...]:
    """A name for each device: as given, with an index if it is given more than once."""
    return tuple(
        [device if devices.count(device) == 1 else f"{device}#{number}" for number, device in enumerate(devices)]
    )


def each_of(members: Sequence[Member], function: Callable[[Coterie], T]) -> list[tuple[Member, T]]:
    """The results of a function from each responsive member, run concurrently.

    Members that break or hang meanwhile are left out. Raises the first other error.
    """
    asked = [(member, member.change(function)) for member in members if member.broken is None and not member.hangs()]
    found = []
    for member, future in asked:
        try:
            found.append((member, member.wait(future)))
        except CoterieError as error:
            if error is not member.broken and not member.hangs():
                raise
    return found


def known_of(members: Sequence[Member]) -> tuple[list[tuple[Member, Status]], dict[str, float]]:
    """The status of each working member, requested concurrently.

    For members in a long step it is the last known one; these are also returned by name, with its age in seconds.
    Raises the first error other than a member's breaking.
    """
    asked = [(member, member.post(Coterie.status)) for member in members if member.broken is None]
    found, late = list[tuple[Member, Status]](), dict[str, float]()
    for member, future in asked:
        try:
            status = member.soon(future)
        except CoterieError as error:
            if error is not member.broken:
                raise
            continue
        if status is None:
            status, late[member.name] = member.known.status, member.known.age_s
        found.append((member, status))
    return found, late


def all_of(members: Sequence[Member], function: Callable[[Coterie], T]) -> list[T]:
    """As `each_of`, results only."""
    return [found for _, found in each_of(members, function)]


def loading(members: Sequence[Member]) -> bool:
    """Whether a responsive member is loading experts, even if no request waits for them any more."""
    return any(member.snapshot.loading for member in members if member.broken is None and not member.hangs())


def ended_with(members: Sequence[Member]) -> CoterieError | None:
    """If all members have stopped, the first one's error; else None."""
    errors = [member.broken for member in members if member.broken is not None]
    return fresh(errors[0]) if errors and len(errors) == len(members) else None

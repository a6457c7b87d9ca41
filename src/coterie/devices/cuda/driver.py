"""What the CUDA device asks of a GPU: the few things that touch one, so that all the rest can be tested without.

    memory, streams, marks on them, copies, launches, captured steps        one implementation is torch's, torch_driver

A mark is a CUDA event: `mark` records one, `follow` makes a stream wait for it, `wait` blocks the host. Work on a
stream is done in order; streams know of each other by marks alone. Every method may be called by any thread.
Knows nothing about programs, lanes or files, and needs neither torch nor triton.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from coterie.core.errors import CapacityError, CoterieError, DeviceError, UsageError
from coterie.core.units import format_bytes
from coterie.devices.real.host_memory import Bytes

if TYPE_CHECKING:
    import torch

    Tensor: TypeAlias = torch.Tensor

NAME = "cuda"  # what failures call the device
MIN_CAPABILITY = (8, 0)
WORD_BYTES = 4  # what kernels copy at least

Launch: TypeAlias = Callable[[], object]
Stream: TypeAlias = object
Mark: TypeAlias = object
Captured: TypeAlias = object


class NoRoomError(Exception):
    """The GPU has no such piece of memory left, or the system pins no more: nothing was taken."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a GPU says of itself. `software` names the versions that drive it."""

    name: str
    total_bytes: int
    multiprocessors: int
    capability: tuple[int, int]
    software: str


class Driver(Protocol):
    """A GPU. Memory is given as tensors of bytes, whose addresses never change; it is free when nobody holds them."""

    @property
    def facts(self) -> Facts:
        """What the GPU is."""

    def free_bytes(self) -> int:
        """Memory of the GPU that nobody has taken."""

    def device_memory(self, size_bytes: int) -> Tensor:
        """Memory of the GPU. Raises NoRoomError."""

    def pinned_memory(self, size_bytes: int) -> Tensor:
        """Memory of the host that a stream may copy from and to without the host. Raises NoRoomError."""

    def pin(self, memory: Bytes) -> Tensor:
        """Make memory that exists such memory; the tensor is the same bytes. Raises NoRoomError."""

    def unpin(self, memory: Bytes) -> None:
        """Undo pin, before the memory goes. Raises where it stays pinned."""

    def trim(self) -> None:
        """Let other programs have what nobody here holds any more."""

    def stream(self) -> Stream:
        """A new stream."""

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """In it what this thread queues on the stream takes less of the host's time, as it is not chosen for each."""

    def copy(self, dst: Tensor, src: Tensor, stream: Stream) -> None:
        """Queue a copy of equal sizes. What is on the host must be pinned, and stay as it is until the copy is done."""

    def copy_words(self, pairs: Sequence[tuple[Tensor, Tensor]], stream: Stream) -> None:
        """Queue small copies (to, from), in multiples of 4 bytes, that do not wait for copies of other streams.

        An engine that copies does so in order, whatever the stream: by `copy` they would come behind a whole expert.
        """

    def copy_pieces(self, pieces: Tensor, stream: Stream) -> None:
        """Queue copies of many small pieces of pinned memory, which do not wait for copies of other streams either.

        `pieces`, pinned as well: three int64 for each, where to, where from, and bytes, all multiples of 4.
        """

    def mark(self, stream: Stream, soon: bool = False) -> Mark:
        """Mark what has been queued on a stream so far. `soon`: who waits for it may keep a core of the host busy."""

    def follow(self, stream: Stream, mark: Mark) -> None:
        """Let what is queued on a stream from now on wait for a mark."""

    def wait(self, mark: Mark) -> None:
        """Block until a mark is passed. Raises what went wrong before it."""

    def seconds(self, first: Mark, last: Mark) -> float:
        """The GPU's own time between two passed marks."""

    def launch(self, stream: Stream, launches: Sequence[Launch]) -> None:
        """Queue kernels."""

    def capture(self, stream: Stream, launches: Sequence[Launch]) -> Captured:
        """Record kernels instead of queueing them. Each must have been launched before: nothing may be compiled."""

    def replay(self, stream: Stream, captured: Captured, times: int = 1) -> None:
        """Queue what was captured, so often."""

    def lost(self) -> str:
        """Why the GPU no longer answers; empty while it does."""


class Health:
    """Turns what a driver raises into failures that can be shown, and knows when the GPU is gone for good."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._gone: DeviceError | None = None

    @property
    def gone(self) -> DeviceError | None:
        """The failure of all work, once the GPU no longer answers."""
        return self._gone

    @contextmanager
    def telling(self, label: str) -> Iterator[None]:
        """In it, what a driver raises in the thread of who asked for something is raised as such a failure."""
        try:
            yield
        except Exception as error:
            told = self.failure(label, error)
            if told is error:
                raise
            raise told from error

    def failure(self, label: str, error: Exception) -> Exception:
        """What who waits for this work is told."""
        if isinstance(error, CoterieError | ValueError):
            return error
        if self._gone is None:
            reason = self._driver.lost()
            if reason:
                fact = f"the GPU no longer answers ({reason}), first seen in {label}"
                self._gone = DeviceError(NAME, fact, "its memory is lost: end this process and start Coterie again")
        if self._gone is not None:
            return self._gone
        fact = f"{label} failed: {first_line(error)}"
        return DeviceError(
            NAME, fact, "the GPU goes on: ask again, and if it fails again run with CUDA_LAUNCH_BLOCKING=1"
        )


def check_capability(where: str, capability: tuple[int, int]) -> None:
    """Raise UsageError for a GPU that is older than those whose shared memory tiles are made for."""
    if capability < MIN_CAPABILITY:
        fact = f"a GPU of capability {capability[0]}.{capability[1]} is older than kernels are made for"
        raise UsageError(where, fact, "use one of 8.0 (Ampere) or later, or --device cpu")


def first_line(error: Exception) -> str:
    """What an error says, in its first line: CUDA's go on with advice for who writes kernels."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def take(driver: Driver, what: str, size_bytes: int, levers: Sequence[str]) -> Tensor:
    """Memory of the GPU. Raises CapacityError naming what it was for, how much it is and how much there was."""
    try:
        return driver.device_memory(size_bytes)
    except NoRoomError as error:
        raise CapacityError(f"{NAME}: hbm", what, size_bytes, driver.free_bytes(), levers) from error


def take_pinned(driver: Driver, what: str, size_bytes: int) -> Tensor:
    """Pinned memory of the host. Raises DeviceError saying what the system refused."""
    try:
        return driver.pinned_memory(size_bytes)
    except NoRoomError as error:
        fact = f"the system pins no {format_bytes(size_bytes)} of memory for {what} ({error})"
        raise DeviceError(NAME, fact, "free memory of this machine, or raise its limit of locked memory") from error

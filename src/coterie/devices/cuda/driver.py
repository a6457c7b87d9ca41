"""What the CUDA device needs from a GPU, as one small interface, so that all else can be tested without a GPU.

    memory, streams, marks on them, copies, launches, captured steps        torch_driver implements it with PyTorch

A mark is a CUDA event: `mark` records one, `follow` makes a stream wait for it, `wait` blocks the host. Work on a
stream runs in order; streams are ordered with each other by marks alone. Any thread may call any method.
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

NAME = "cuda"  # the device's name in errors
MIN_CAPABILITY = (8, 0)
WORD_BYTES = 4  # the unit in which kernels copy

Launch: TypeAlias = Callable[[], object]
Stream: TypeAlias = object
Mark: TypeAlias = object
Captured: TypeAlias = object


class NoRoomError(Exception):
    """The GPU has no piece of memory of this size left, or the system refuses to pin more: nothing was taken."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Properties of a GPU. `software` names the versions of the software that drives it."""

    name: str
    total_bytes: int
    multiprocessors: int
    capability: tuple[int, int]
    software: str


class Driver(Protocol):
    """A GPU. Memory comes as byte tensors, whose addresses never change; it is freed when no tensor refers to it."""

    @property
    def facts(self) -> Facts:
        """Properties of the GPU."""

    def free_bytes(self) -> int:
        """Free memory of the GPU."""

    def device_memory(self, size_bytes: int) -> Tensor:
        """Memory of the GPU. Raises NoRoomError."""

    def pinned_memory(self, size_bytes: int) -> Tensor:
        """Host memory that a stream can copy from and to without the host. Raises NoRoomError."""

    def pin(self, memory: Bytes) -> Tensor:
        """Pin existing memory; the tensor refers to the same bytes. Raises NoRoomError."""

    def unpin(self, memory: Bytes) -> None:
        """Undo pin, before the memory is freed. Raises if it stays pinned."""

    def trim(self) -> None:
        """Return unused memory to the system, for other programs."""

    def stream(self) -> Stream:
        """A new stream."""

    def on(self, stream: Stream) -> AbstractContextManager[None]:
        """A context in which queueing on the stream costs less host time: the stream is selected once, not per call."""

    def copy(self, dst: Tensor, src: Tensor, stream: Stream) -> None:
        """Queue a copy of equal sizes. Host memory must be pinned, and unchanged until the copy is done."""

    def copy_words(self, pairs: Sequence[tuple[Tensor, Tensor]], stream: Stream) -> None:
        """Queue small copies (to, from), in multiples of 4 bytes, which do not wait for copies on other streams.

        The copy engine works in order, whatever the stream: with `copy` they could wait for a whole expert.
        """

    def copy_pieces(self, pieces: Tensor, stream: Stream) -> None:
        """Queue copies of many small pieces of pinned memory, which do not wait for copies on other streams either.

        `pieces`, also pinned: three int64 per piece (to, from, bytes), all multiples of 4.
        """

    def mark(self, stream: Stream, soon: bool = False) -> Mark:
        """Mark what has been queued on a stream so far. `soon`: a wait for it may spin on a core of the host."""

    def follow(self, stream: Stream, mark: Mark) -> None:
        """Make what is queued on a stream from now on wait for a mark."""

    def wait(self, mark: Mark) -> None:
        """Block until a mark is passed. Raises the error of work before it."""

    def seconds(self, first: Mark, last: Mark) -> float:
        """GPU time between two passed marks."""

    def launch(self, stream: Stream, launches: Sequence[Launch]) -> None:
        """Queue kernels."""

    def capture(self, stream: Stream, launches: Sequence[Launch]) -> Captured:
        """Record kernels instead of queueing them.

        Each must have been launched before, as nothing may be compiled meanwhile.
        """

    def replay(self, stream: Stream, captured: Captured, times: int = 1) -> None:
        """Queue captured kernels, `times` times."""

    def lost(self) -> str:
        """Why the GPU no longer answers; empty while it does."""


class Health:
    """Turns a driver's exceptions into errors for users, and remembers when the GPU is lost for good."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._gone: DeviceError | None = None

    @property
    def gone(self) -> DeviceError | None:
        """The failure of all further work, once the GPU no longer answers."""
        return self._gone

    @contextmanager
    def reporting(self, label: str) -> Iterator[None]:
        """A context that converts a driver's exceptions in the calling thread to errors for users."""
        try:
            yield
        except Exception as error:
            reported = self.failure(label, error)
            if reported is error:
                raise
            raise reported from error

    def failure(self, label: str, error: Exception) -> Exception:
        """The error to report to those who wait for this work."""
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
    """Raise UsageError for a GPU whose capability is older than what the kernels are made for."""
    if capability < MIN_CAPABILITY:
        fact = f"a GPU of capability {capability[0]}.{capability[1]} is older than kernels are made for"
        raise UsageError(where, fact, "use one of 8.0 (Ampere) or later, or --device cpu")


def first_line(error: Exception) -> str:
    """First line of an error's text: CUDA's errors continue with advice for kernel authors."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def take(driver: Driver, what: str, size_bytes: int, levers: Sequence[str]) -> Tensor:
    """Memory of the GPU. Raises CapacityError naming its purpose, its size and what was free."""
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

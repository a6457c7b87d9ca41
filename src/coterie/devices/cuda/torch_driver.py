"""The driver for real GPUs: streams, events, pinned memory and graphs of torch.cuda.

Written against the documentation of torch 2.13; docs/cuda.md says with which versions, on which GPUs, it has run.
Knows nothing about programs, lanes or files.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch

from coterie.core.errors import UsageError
from coterie.devices.cuda.driver import Captured, Facts, Launch, Mark, NoRoomError, Stream, check_capability, first_line
from coterie.devices.real.host_memory import Bytes
from coterie.kernels import cpu as kernels

if TYPE_CHECKING:
    from coterie.kernels.triton.words import Mover

# cudaHostRegisterPortable: pinned for every context; cudaHostRegisterMapped: kernels may read it in place.
# Source: CUDA runtime API, memory management
PORTABLE, MAPPED = 1, 2
# Torch allocates large memory in such pieces, and would put other tensors into the rest of one, which would then keep
# all of it from being freed. Source: PyTorch, CUDACachingAllocator (kMinLargeAlloc, kRoundLarge)
LARGE_BYTES, PIECE_BYTES = 10 * 2**20, 2 * 2**20


class TorchDriver:
    """GPU number `index` by torch.cuda. Raises UsageError, saying why, if there is no suitable one."""

    def __init__(self, index: int = 0) -> None:
        _check_present(index)
        self._device = torch.device("cuda", index)
        self._moves: Mover | None = None
        self._current = threading.local()
        found = torch.cuda.get_device_properties(self._device)
        check_capability(f"--device cuda:{index}", (found.major, found.minor))
        self._facts = Facts(
            name=found.name,
            total_bytes=found.total_memory,
            multiprocessors=found.multi_processor_count,
            capability=(found.major, found.minor),
            software=_software(),
        )

    @property
    def facts(self) -> Facts:
        """Properties of the GPU."""
        return self._facts

    def free_bytes(self) -> int:
        """What the GPU has free, and what torch caches."""
        free, _ = torch.cuda.mem_get_info(self._device)
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(free) + int(kept)

    def device_memory(self, size_bytes: int) -> torch.Tensor:
        """Memory of the GPU, aligned to 512 bytes. Raises NoRoomError."""
        whole = -(-size_bytes // PIECE_BYTES) * PIECE_BYTES if size_bytes >= LARGE_BYTES else size_bytes
        try:
            return torch.empty(whole, dtype=torch.uint8, device=self._device)[:size_bytes]
        except torch.OutOfMemoryError as error:
            raise NoRoomError(first_line(error)) from error

    def pinned_memory(self, size_bytes: int) -> torch.Tensor:
        """Page-locked memory of the host. Raises NoRoomError."""
        try:
            with torch.cuda.device(self._device):  # else a context on the first GPU is created too
                return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:  # torch has no specific class for a failed cudaHostAlloc
            raise NoRoomError(first_line(error)) from error

    def pin(self, memory: Bytes) -> torch.Tensor:
        """Register memory with CUDA. Raises NoRoomError."""
        with torch.cuda.device(self._device):
            code = int(torch.cuda.cudart().cudaHostRegister(kernels.address(memory), memory.nbytes, PORTABLE | MAPPED))
            if code:
                self._forget_error()
                raise NoRoomError(f"cudaHostRegister answers {code}")
        return torch.from_numpy(memory)

    def unpin(self, memory: Bytes) -> None:
        """Undo pin. Raises RuntimeError if CUDA refuses.

        The GPU then still reads these pages, whatever is put there.
        """
        with torch.cuda.device(self._device):
            code = int(torch.cuda.cudart().cudaHostUnregister(kernels.address(memory)))
            if code:
                self._forget_error()
                raise RuntimeError(f"cudaHostUnregister answers {code}")

    def trim(self) -> None:
        """Free what torch caches (cudaFree)."""
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()

    def stream(self) -> torch.cuda.Stream:
        """A stream that does not wait for the default one."""
        return torch.cuda.Stream(self._device)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Make it torch's current stream, unless it is in this thread: switching takes over 10 us."""
        outer = getattr(self._current, "stream", None)
        if outer is stream:
            yield
            return
        # Set the device first: switching back from the second GPU's stream to one of the first would create a context
        # there too.
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            torch.cuda.set_stream(_stream(stream))
            self._current.stream = stream
            try:
                yield
            finally:
                self._current.stream = outer
                torch.cuda.set_stream(before)

    def copy(self, dst: torch.Tensor, src: torch.Tensor, stream: Stream) -> None:
        """cudaMemcpyAsync."""
        with self.on(stream):
            dst.copy_(src, non_blocking=True)

    def copy_words(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], stream: Stream) -> None:
        """By a Triton kernel: CUDA maps pinned memory at the same addresses, where kernels may read and write it."""
        with self.on(stream):
            self._mover().move(pairs)

    def copy_pieces(self, pieces: torch.Tensor, stream: Stream) -> None:
        """By a Triton kernel, which reads the table in place."""
        with self.on(stream):
            self._mover().gather(pieces)

    def mark(self, stream: Stream, soon: bool = False) -> torch.cuda.Event:
        """cudaEventRecord. A wait for the event sleeps, since the host's cores have other work, or spins if `soon`.

        Waking up takes some 50 us. CUDA yields instead of spinning if it has more contexts than there are cores.
        """
        event = torch.cuda.Event(enable_timing=True, blocking=not soon)
        event.record(_stream(stream))
        return event

    def follow(self, stream: Stream, mark: Mark) -> None:
        """cudaStreamWaitEvent."""
        _stream(stream).wait_event(_event(mark))

    def wait(self, mark: Mark) -> None:
        """cudaEventSynchronize, without the interpreter lock."""
        _event(mark).synchronize()

    def seconds(self, first: Mark, last: Mark) -> float:
        """cudaEventElapsedTime, which is in milliseconds."""
        return float(_event(first).elapsed_time(_event(last))) / 1e3

    def launch(self, stream: Stream, launches: Sequence[Launch]) -> None:
        """Triton launches on torch's current stream."""
        with self.on(stream):
            for start in launches:
                start()

    def capture(self, stream: Stream, launches: Sequence[Launch]) -> Captured:
        """A CUDA graph. Only this thread is captured, as others continue to copy and wait meanwhile."""
        collecting = gc.isenabled()
        gc.disable()  # freeing a tensor would call CUDA during the capture
        try:
            with self.on(stream):
                graph = torch.cuda.CUDAGraph()  # of the current GPU
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    for start in launches:
                        start()
                finally:
                    graph.capture_end()
        finally:
            if collecting:
                gc.enable()
        return graph

    def replay(self, stream: Stream, captured: Captured, times: int = 1) -> None:
        """cudaGraphLaunch."""
        if not isinstance(captured, torch.cuda.CUDAGraph):
            raise TypeError(f"{captured!r} is no captured graph")
        with self.on(stream):
            for _ in range(times):
                captured.replay()

    def lost(self) -> str:
        """Try something small: after a fault that destroys the context, every call fails.

        Not a synchronisation of the device: CUDA refuses that while another thread captures.
        """
        try:
            torch.zeros(1, device=self._device).item()
        except Exception as error:  # of any kind: the GPU gave no answer
            return first_line(error)
        return ""

    def _mover(self) -> Mover:
        if self._moves is None:
            from coterie.kernels.triton.words import Mover

            self._moves = Mover()
        return self._moves

    def _forget_error(self) -> None:
        """Clear CUDA's last error, which the next kernel launch would report."""
        with suppress(RuntimeError):
            torch.zeros(1, device=self._device)


def _software() -> str:
    """Versions of what drives the GPU and compiles for it."""
    triton = ""
    with suppress(PackageNotFoundError):  # making kernels will report it
        triton = f", Triton {version('triton')}"
    return f"torch {torch.__version__}{triton}, CUDA {torch.version.cuda}"


def _check_present(index: int) -> None:
    if torch.version.cuda is None:
        fact = f"this PyTorch ({torch.__version__}) was built without CUDA"
        raise UsageError("--device cuda", fact, "install the extra cuda with PyTorch's CUDA build, or use --device cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        fact = f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) finds no NVIDIA GPU that works"
        raise UsageError("--device cuda", fact, "see nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu")
    if not 0 <= index < count:
        raise UsageError(
            f"--device cuda:{index}", f"there are {count} GPUs, from 0 on", f"use cuda:0 to cuda:{count - 1}"
        )


def _stream(stream: Stream) -> torch.cuda.Stream:
    if not isinstance(stream, torch.cuda.Stream):
        raise TypeError(f"{stream!r} is no stream of torch")
    return stream


def _event(mark: Mark) -> torch.cuda.Event:
    if not isinstance(mark, torch.cuda.Event):
        raise TypeError(f"{mark!r} is no event of torch")
    return mark

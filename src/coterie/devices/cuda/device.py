"""The CUDA device: arenas in HBM, a pinned pool, files by direct I/O, programs as Triton kernels on a stream.

    lane disk->dram   reads file ranges into the pinned pool      lane dram->hbm   a stream that copies them up
    lane disk->hbm    both in one, through staging                lane compute     a stream that runs programs

A run waits for its gates on the stream: layer 0 runs while layer 1 arrives, without a thread of the host in between.
CI tests it with a fake driver; docs/cuda.md says on which GPUs it has run, and what has not run there.
Knows nothing about models, requests or callers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from coterie.checkpoint.layout import FileRange
from coterie.core.units import format_bytes
from coterie.device import Binding, Buffer, Event, Executable, Limits, copy_pieces, wait_for
from coterie.devices.cuda.addresses import AddressCache
from coterie.devices.cuda.bound import Shared, upload
from coterie.devices.cuda.driver import NAME, Driver, Health, Launch, Stream, take
from coterie.devices.cuda.fetch import STAGING_BYTES, StagedLane
from coterie.devices.cuda.inputs import Run
from coterie.devices.cuda.kernels import Kernels, TritonKernels
from coterie.devices.cuda.lanes import Finish, StreamLane, Turn, fail, nothing
from coterie.devices.cuda.machine import gpu_machine
from coterie.devices.cuda.memory import Memory
from coterie.devices.cuda.run import Orchestration, Runs
from coterie.devices.cuda.torch_driver import TorchDriver
from coterie.devices.real.device import Ran, RealDevice, waits_of
from coterie.devices.real.fetch import FetchLane
from coterie.devices.real.host_memory import Read, copy_parts
from coterie.devices.real.lanes import COMPUTE, as_own_event
from coterie.devices.real.operands import F32
from coterie.devices.real.step import LoweredExecutable, StepRows
from coterie.graph.program import Program
from coterie.kernels.cpu import I64
from coterie.kernels.triton.bucket import Bucket
from coterie.kernels.triton.tiles import tiles_for
from coterie.spec.machine import MachineSpec

if TYPE_CHECKING:
    from coterie.devices.cuda.compilers import Compilers
    from coterie.devices.cuda.expected import Expected


READ_BYTES = 16 * 2**20  # rows copied up at once; the logits of a prompt's tokens are hundreds of megabytes


class CudaDevice(RealDevice):
    """An NVIDIA GPU and its host.

    `spec`: by default what is free now. `orchestration`: `device` queues whole steps as captured graphs, `persistent`
    all steps of a run as one launch if sequences are few, `host` launches each kernel by a call. `driver`: by
    default torch.cuda's first GPU; `kernels`: Triton's, with tiles for that GPU. `read`, `staging_bytes`: for tests.
    """

    def __init__(
        self,
        spec: MachineSpec | None = None,
        orchestration: Orchestration = "device",
        driver: Driver | None = None,
        kernels: Kernels | None = None,
        read: Read | None = None,
        staging_bytes: int = STAGING_BYTES,
    ) -> None:
        self.driver: Driver = driver or TorchDriver()
        super().__init__(NAME, spec or gpu_machine(self.driver))
        self._health = Health(self.driver)
        self._memory = Memory(self.driver, self._spec.run_tier)
        self._addresses = AddressCache(self._memory)
        facts = self.driver.facts
        tiles = tiles_for(facts.capability, facts.multiprocessors)
        self._shared = Shared(self.driver, kernels or TritonKernels(tiles))
        self._compilers: Compilers | None = None
        self._expected: Expected | None = None
        if kernels is None and isinstance(self.driver, TorchDriver):  # a fake GPU has nothing to compile
            from coterie.devices.cuda.compilers import Compilers, StepCompiler
            from coterie.devices.cuda.dry_run import DryRun
            from coterie.devices.cuda.expected import Expected

            self._compilers = Compilers(facts.capability)
            like_it = partial(DryRun, facts.capability, facts.multiprocessors)
            self._expected = Expected(like_it, self._compilers)
            self._shared.before_launch = partial(self._compile_first, StepCompiler(self._compilers))
        self._runs = Runs(self._shared, orchestration)
        self._disk = FetchLane(self._lanes, read)
        self._streams: dict[str, StreamLane] = {}
        self._staged = StagedLane(
            self._lanes, self.driver, self._memory, self._disk, self._lane("staging->hbm"), staging_bytes
        )
        self._loading: Stream = None
        self._constants: list[torch.Tensor] = []

    @property
    def spec(self) -> MachineSpec:
        """Tiers nearest first, links, launch costs; frozen, except for notes, which include the remarks so far."""
        remarks = self.remarks
        return replace(self._spec, notes=(*self._spec.notes, *remarks)) if remarks else self._spec

    @property
    def remarks(self) -> tuple[str, ...]:
        """What works more slowly than it could, and why."""
        found = []
        if self._memory.unpinned is not None:
            size, reason = self._memory.unpinned
            fact = f"the system does not pin the pool of {format_bytes(size)} ({reason})"
            found.append(f"{fact}, so switches are staged: raise its limit of locked memory, or lower --pool")
        capture, walks = self._shared.capture_failure, self._shared.walk_failures
        if capture:
            found.append(f"each kernel is launched by a call, as steps cannot be captured: {capture}")
        found += [f"decode steps are launched one by one for {those}: {why}" for those, why in walks.items()]
        return tuple(found)

    def reserve(self, tier: str, size_bytes: int, touched: bool = True) -> Buffer:
        """An arena of HBM, aligned to 512 bytes, or the host's pool: pinned, touched, aligned to 2 MiB.

        Raises CapacityError beyond the tier's capacity, ValueError for a tier that is not memory, KeyError if unknown.
        """
        self._check_open()
        size = self._room(tier, size_bytes, f"reserve less in {tier}")
        if tier not in self._spec.weight_tiers[:2] or tier == self._spec.home_tier:
            raise ValueError(f"{tier} is not reserved; reserve {' or '.join(self._spec.weight_tiers[:2])}")
        with self._health.reporting(f"reserving {format_bytes(size)} of {tier}"):
            buffer = self._memory.reserve(tier, size_bytes)
        self._used_bytes[tier] += size
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """Release a whole slab until it is next used; a part of a slab is not released.

        If the GPU or the system refuses, the memory stays: no caller expects this to fail.
        """
        self._check_open()
        try:
            self._memory.give_back(buffer)
        except Exception as error:  # records it, if the GPU is lost
            self._health.failure("giving memory back", error)

    def place(self, dst: Buffer, tensors: Sequence[tuple[int, int]]) -> None:
        """Put these tensors at multiples of 16 bytes when the buffer is filled from below."""
        self._check_open()
        with self._health.reporting("placing tensors"):
            self._memory.place(dst, tensors)

    def copy(
        self, dst: Buffer, src: Buffer, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Copy up or within a tier, all or parts. Raises ValueError for unequal sizes, or for a copy down."""
        self._check_open()
        if dst.size_bytes != src.size_bytes:
            raise ValueError(f"a copy of {src.size_bytes} bytes into {dst.size_bytes}; sizes must be equal")
        spans = tuple(parts) or ((0, src.size_bytes),)
        lane, label = f"{src.tier}->{dst.tier}", f"copy {format_bytes(sum([size for _, size in spans]))}"
        with self._health.reporting(label):
            if dst.tier != self._spec.run_tier:
                if src.tier == self._spec.run_tier:
                    raise ValueError(f"nothing is copied from {src.tier} down to {dst.tier}: weights are read-only")
                target, source = self._memory.host_bytes(dst), self._memory.host_bytes(src)
                return self._lanes.submit(lane, label, after, lambda: copy_parts(target, source, spans))
            within = src.tier == dst.tier
            pieces = self._memory.pieces(dst, src, spans) if parts and not within else None
            if pieces is not None:
                return self._lane(lane).submit(label, after, partial(self._copy_pieces, pieces), here=True)
            views = [(dst.view(offset, size), self._memory.tensor(src.view(offset, size))) for offset, size in spans]
            if within:
                pairs = [(self._memory.tensor(to), of) for to, of in views]
                self._memory.inherit(dst, src)
            else:
                pairs = [pair for to, of in views for pair in self._memory.pairs(to, of)]
            pinned = self._memory.unpinned is None  # else CUDA blocks the calling thread until the copy ends
            return self._lane(lane).submit(label, after, partial(self._copy, pairs), here=pinned)

    def copy_all(self, dst: Buffer, src: Buffer, pieces: Sequence[tuple[int, int]], issued: list[Event]) -> None:
        """Copy pieces one after another."""
        copy_pieces(self, dst, src, pieces, issued)

    def fetch(
        self, dst: Buffer, source: FileRange, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Read a file range into the pool, or through staging into HBM; see read_piece for its failures."""
        self._check_open()
        if source.size_bytes > dst.size_bytes:
            raise ValueError(f"a range of {source.size_bytes} bytes into a buffer of {dst.size_bytes}")
        lane, label = f"{self._spec.home_tier}->{dst.tier}", f"fetch {source.path}@{source.offset}"
        target = dst.view(0, source.size_bytes)
        with self._health.reporting(label):
            if dst.tier == self._spec.run_tier:
                return self._staged.submit(lane, label, after, target, source, parts)
            return self._disk.submit(lane, label, after, self._memory.host_bytes(target), source, parts)

    def load(self, program: Program) -> LoweredExecutable:
        """Encode a program's rows, once per architecture and rule set. Raises UnsupportedError."""
        return self._once(program, lambda: self._encode(program))

    def expect(self, exe: Executable, limits: Limits, block_bytes: int, shared: Sequence[int] | None = None) -> None:
        """Compile, in the background, what most such steps launch and is not compiled yet."""
        if self._expected is not None:
            self._expected(self._own(exe).program, limits, block_bytes, shared)

    def run(
        self,
        exe: Executable,
        binding: Binding,
        gates: Mapping[str, Event] | None = None,
        steps: int = 1,
        after: Iterable[Event] = (),
    ) -> Event:
        """Queue up to `steps` steps on the compute lane. Raises ValueError for rows, gates or offsets that do not fit.

        The event fails with DeviceError if logits are not numbers or the GPU fails, CapacityError if the GPU is full.
        """
        self._check_open()
        mine = self._own(exe)
        waits = waits_of(mine, gates)
        rows, label = StepRows.copy(mine.program, binding, steps), f"run {mine.program.graph.name}"
        try:
            run = Run.of(mine, rows, steps, self._addresses.of(mine, binding))
        except ValueError:
            raise
        except Exception as error:  # a slab that was given back could not be reallocated
            return self._lane(COMPUTE).submit(label, after, partial(fail, error))

        def issue(turn: Turn) -> Finish:
            return self._runs.queue(turn, run, waits)

        here = not waits and self._runs.is_ready(run)
        event = self._lane(COMPUTE).submit(label, after, issue, here)
        self._ran = Ran(event, mine, run.sizes, run.rows.sizes.R, steps)
        return event

    def wait_any(self, events: Sequence[Event], until: float | None = None) -> None:
        """Block as on every device; a thread that waits for a single event ends it itself, without a hand-over."""
        lane = self._streams.get(events[0].lane) if len(events) == 1 and until is None else None
        if lane is None or not lane.end_here(as_own_event(events[0])):
            super().wait_any(events, until)

    def interrupt(self) -> None:
        """End the current run, or else the next one, after its current step. Any thread may call this."""
        self._runs.interrupts.interrupt()

    def inspect(self, exe: Executable, binding: Binding) -> Mapping[str, npt.NDArray[np.float32]]:
        """Run one step alone and return a copy of every stored value by name, as float32."""
        mine = self._own(exe)
        with self._health.reporting("inspect"):
            run = Run.of(mine, StepRows.copy(mine.program, binding, 1), 1, self._addresses.of(mine, binding))
        self._ran = None
        found: dict[str, npt.NDArray[np.float32]] = {}

        def issue(turn: Turn) -> Finish:
            found.update(self._runs.inspect(turn, run))
            return nothing

        failure = self._lanes.wait(self._lane(COMPUTE).submit("inspect", (), issue))
        if failure is not None:
            raise failure
        return found

    def close(self) -> None:
        """Stop lanes, fail what has not begun, and release memory. May be called again."""
        self._closed = True
        lanes: list[StagedLane | FetchLane | StreamLane] = [self._staged, self._disk, *self._streams.values()]
        for lane in lanes:
            lane.cancel()
        self._lanes.close()
        if self._compilers is not None:
            self._compilers.close()  # before joining lanes, which may wait for a compilation
        for lane in lanes:
            lane.join()
        if self._expected is not None:
            self._expected.close()
        self._runs.binder.forget()
        self._memory.close()
        self._loaded.clear()
        self._constants.clear()

    def _compile_first(self, compile_all: Callable[[Sequence[Launch]], None], launches: Sequence[Launch]) -> None:
        """Have a step's kernels compiled before its first launch, which would compile them one after another."""
        compile_all(launches)
        self._check_open()  # the device may have been closed meanwhile

    def _read_rows(self, ran: Ran, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """In pieces: memory for each copy is pinned, and kept for later reads."""
        at_once = max(READ_BYTES // ran.rows_at[1], 1)
        pieces = [self._read(ran, rows[i : i + at_once]) for i in range(0, max(len(rows), 1), at_once)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _read(self, ran: Ran, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        def issue(turn: Turn) -> Finish:
            return self._runs.read(turn, *ran.rows_at, rows)

        event = self._lane(COMPUTE).submit("rows", (), issue, here=True)
        wait_for(self, event)
        failure = self.failure(event)
        if failure is not None:
            raise failure
        read = event.state.result
        if not isinstance(read, np.ndarray):
            raise RuntimeError("rows were copied but are not there")
        return read

    def memory(self, buffer: Buffer) -> torch.Tensor:
        """The bytes of a buffer, as stored, for tests and benchmarks."""
        self._check_open()
        with self._health.reporting("looking at memory"):
            return self._memory.tensor(buffer)

    def _lane(self, name: str) -> StreamLane:
        if name not in self._streams:
            self._streams[name] = StreamLane(name, self._lanes, self.driver, self._health, brief=name == COMPUTE)
        return self._streams[name]

    def _copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], turn: Turn) -> Finish:
        for dst, src in pairs:
            self.driver.copy(dst, src, turn.stream)
        return nothing

    def _copy_pieces(self, pieces: I64, turn: Turn) -> Finish:
        """Copy by a kernel: hundreds of pieces are one launch, where the copy engine would need a call for each."""
        packets = self._shared.packets
        packet = packets.take(pieces.nbytes, 0)
        try:
            packet.put(0, pieces)
            self.driver.copy_pieces(packet.down[: pieces.nbytes], turn.stream)
        except BaseException:  # an interrupt may come after the launch, which reads the packet
            packets.abandon(packet, turn.stream)
            raise
        return lambda _passed: packets.give_back(packet)

    def _encode(self, program: Program) -> LoweredExecutable:
        exe = LoweredExecutable(program, NAME, "the GPU", self._constant, shares=True, rounds=False)
        self._shared.kernels.scratch_bytes(exe.template.rows(), Bucket(1, 1, 1, 1))  # raises for unsupported rows
        return exe

    def _constant(self, values: F32) -> int:
        """Put a constant of a program on the GPU, and return its address."""
        with self._health.reporting("loading a program"):
            self._loading = self._loading or self.driver.stream()
            memory = take(self.driver, "constants of a program", max(values.nbytes, 16), ("lower --near or --kv",))
            upload(self.driver, self._shared.packets, memory[: values.nbytes], values, self._loading)
        self._constants.append(memory)
        return memory.data_ptr()

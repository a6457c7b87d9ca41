"""The CPU device: slabs in host memory, weights read by direct I/O, programs executed by a team of native threads.

    lane disk->dram   reads file ranges into slabs            lane compute   executes programs
    lane dram->dram   copies                                  no others:     the spec has two tiers

Knows nothing about models or requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.layout import FileRange
from coterie.core.errors import DeviceError, UsageError
from coterie.core.units import format_bytes
from coterie.device import F32, I32, Binding, Buffer, Event, Executable, copy_pieces
from coterie.devices.cpu.bound import Bases, Binder, Bound, run_stepwise
from coterie.devices.real.device import Ran, RealDevice, waits_of
from coterie.devices.real.fetch import FetchLane
from coterie.devices.real.host_memory import Bytes, Read, Slab, copy_parts
from coterie.devices.real.lanes import COMPUTE
from coterie.devices.real.step import LoweredExecutable, StepRows, check_drawn
from coterie.graph.program import Program
from coterie.kernels import cpu as kernels
from coterie.kernels.cpu import I64
from coterie.spec.machine import MachineSpec
from coterie.spec.this_machine import allowed_cores, allowed_nodes, this_machine

NAME = "cpu"

Orchestration = Literal["host", "device"]


class CpuDevice(RealDevice):
    """This machine's memory, disk and processors.

    `spec`: defaults to the resources this process may use; `threads`: to its allowed cores.
    `orchestration`: `device` hands the threads all steps of a run in one call, `host` makes one call per region.
    `isa`: the instruction set, by default the fastest. `read`: replaces `preadv`; tests use it to inject failures.
    """

    def __init__(
        self,
        spec: MachineSpec | None = None,
        threads: int | None = None,
        orchestration: Orchestration = "device",
        isa: str = kernels.ISAS[-1],
        read: Read | None = None,
    ) -> None:
        super().__init__(NAME, spec or this_machine())
        self._orchestration = orchestration
        self._disk = FetchLane(self._lanes, read)
        self._team = _team(threads, isa)
        self._slabs: dict[int, Slab] = {}
        self._binder = Binder()
        self._interrupted = False

    @property
    def spec(self) -> MachineSpec:
        """Tiers nearest first, links, launch costs; frozen."""
        return self._spec

    @property
    def threads(self) -> int:
        """Threads that execute programs."""
        return self._team.threads

    @property
    def isa(self) -> str:
        """The instruction set of the kernels in use."""
        return self._team.isa

    @property
    def workspace_bytes(self) -> int:
        """Bytes of workspace that runs have needed so far."""
        return self._binder.workspace_bytes

    def reserve(self, tier: str, size_bytes: int, touched: bool = True) -> Buffer:
        """Allocate in the run tier, aligned to 2 MiB; faulted in now if `touched`, else page by page when written.

        Raises CapacityError beyond the tier's capacity, ValueError for the tier of files, KeyError for an unknown one.
        """
        self._check_open()
        if tier == self._spec.home_tier:
            raise ValueError(f"{tier} holds files, which are not reserved; reserve {self._spec.run_tier}")
        levers = f"reserve less in {tier}", "free memory of this machine", "raise the cgroup's limit"
        size = self._room(tier, size_bytes, *levers)
        slab_id = len(self._slabs)
        self._slabs[slab_id] = Slab(size, touched, allowed_nodes())
        self._used_bytes[tier] += size
        return Buffer(slab_id, tier, 0, size_bytes)

    def give_back(self, buffer: Buffer) -> None:
        """Release the whole pages of a buffer to the system."""
        self._slabs[buffer.slab_id].give_back(buffer.offset, buffer.size_bytes)

    def place(self, dst: Buffer, tensors: Sequence[tuple[int, int]]) -> None:
        """Nothing to do: kernels accept unaligned weights."""

    def copy(
        self, dst: Buffer, src: Buffer, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Copy a buffer, or only `parts` of it, within memory. Raises ValueError when sizes differ."""
        if dst.size_bytes != src.size_bytes:
            raise ValueError(f"a copy of {src.size_bytes} bytes into {dst.size_bytes}; sizes must be equal")
        target, source = self.memory(dst), self.memory(src)
        spans = tuple(parts) or ((0, src.size_bytes),)
        label = f"copy {format_bytes(sum([size for _, size in spans]))}"
        return self._lanes.submit(f"{src.tier}->{dst.tier}", label, after, lambda: copy_parts(target, source, spans))

    def copy_all(self, dst: Buffer, src: Buffer, pieces: Sequence[tuple[int, int]], issued: list[Event]) -> None:
        """See Device.copy_all."""
        copy_pieces(self, dst, src, pieces, issued)

    def fetch(
        self, dst: Buffer, source: FileRange, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Read a file range into a slab on the disk lane; see read_piece for the failures."""
        if source.size_bytes > dst.size_bytes:
            raise ValueError(f"a range of {source.size_bytes} bytes into a buffer of {dst.size_bytes}")
        target = self.memory(dst)[: source.size_bytes]
        label = f"fetch {source.path}@{source.offset}"
        lane = f"{self._spec.home_tier}->{dst.tier}"
        return self._disk.submit(lane, label, after, target, source, parts)

    def load(self, program: Program) -> LoweredExecutable:
        """Encode a program, once per architecture key and rule set. Raises UnsupportedError."""
        return self._once(program, lambda: LoweredExecutable(program, NAME, "the CPU", shares=True))

    def run(
        self,
        exe: Executable,
        binding: Binding,
        gates: Mapping[str, Event] | None = None,
        steps: int = 1,
        after: Iterable[Event] = (),
    ) -> Event:
        """Run up to `steps` steps on the compute lane. Raises ValueError for rows, gates or offsets that do not fit.

        The event fails with DeviceError when a sampled row's logits are NaN.
        """
        mine = self._own(exe)
        waits = waits_of(mine, gates)
        step, bases = self._prepare(mine, binding, steps)

        def body() -> I32:
            bound = self._binder.bind(mine, binding, step, bases)
            kept = bound.keep(steps)
            if self._orchestration == "device":
                done = self._run_at_once(bound, waits)
            else:
                start = partial(self._start, waits)
                done = run_stepwise(bound, step, kept, start, self._take_interrupt)
            check_drawn(kept[done - 1], NAME)
            return kept[:done]

        event = self._lanes.submit(COMPUTE, f"run {mine.program.graph.name}", after, body, may_run_inline=not waits)
        self._ran = Ran(event, mine, step.sizes, step.sizes.R, steps)
        return event

    def changes_logits(self) -> bool:
        """True: the sampler applies penalties and biases."""
        return True

    def interrupt(self) -> None:
        """End the current run (if none, the next one) after its current step. May be called from any thread."""
        self._interrupted = True
        self._team.interrupt()

    def inspect(self, exe: Executable, binding: Binding) -> Mapping[str, npt.NDArray[np.float32]]:
        """Run one step and return a copy of every stored value by name, as float32."""
        mine = self._own(exe)
        step, bases = self._prepare(mine, binding, 1)
        self._ran = None
        found: dict[str, npt.NDArray[np.float32]] = {}

        def body() -> None:
            bound = self._binder.bind(mine, binding, step, bases)
            self._team.run(bound.rows)  # NaNs are returned, not refused
            found.update(bound.stored_values())

        failure = self._lanes.wait(self._lanes.submit(COMPUTE, "inspect", (), body))
        if failure is not None:
            raise failure
        return found

    def close(self) -> None:
        """Stop the lanes, fail work that has not begun, and free all memory. Idempotent."""
        self._disk.cancel()
        self._lanes.close()
        self._disk.join()
        self._closed = True
        self._slabs.clear()
        self._loaded.clear()
        self._binder.close()

    def memory(self, buffer: Buffer) -> Bytes:
        """The bytes of a buffer, to read and write; for tests and tools. Raises KeyError for another device's."""
        self._check_open()
        return self._slabs[buffer.slab_id].bytes[buffer.offset : buffer.offset + buffer.size_bytes]

    def counters(self) -> kernels.Counters:
        """Kernel counters since the last reset: bytes stored, scratch, launches, instructions."""
        return self._team.counters()

    def reset_counters(self) -> None:
        """Reset the kernel counters."""
        self._team.reset_counters()

    def _read_rows(self, ran: Ran, rows: Sequence[int]) -> F32:
        start, row_bytes = ran.rows_at
        stored = self._binder.workspace[start : start + ran.rows * row_bytes]
        return stored.view(np.float32).reshape(ran.rows, row_bytes // 4)[list(rows)]

    def _prepare(self, exe: LoweredExecutable, binding: Binding, steps: int) -> tuple[StepRows, Bases]:
        """Validate on the caller's thread, and copy the rows."""
        exe.offsets(binding)
        exe.variants(binding)
        extents = (binding.weights, binding.shared.weights if binding.shared else None, binding.kv)
        self._check_open()
        weights, shared, kv = [0 if at is None else self._slabs[at.slab_id].address + at.offset for at in extents]
        beside = binding.variants.weights if binding.variants else ()
        variants = tuple([self._slabs[at.slab_id].address + at.offset for at in beside])
        return StepRows.copy(exe.program, binding, steps), (weights, shared, kv, variants)

    def _take_interrupt(self) -> bool:
        interrupted, self._interrupted = self._interrupted, False
        return interrupted

    def _start(self, waits: Mapping[int, Event], rows: I64, first: bool) -> None:
        """Execute one step, one call per row; the first step awaits `waits`, events by row."""
        for i in range(len(rows)):
            failure = self._lanes.wait(waits[i]) if first and i in waits else None
            if failure is not None:
                raise failure
            self._team.run(rows[i : i + 1])

    def _run_at_once(self, bound: Bound, waits: Mapping[int, Event]) -> int:
        """Execute all steps in one call: the threads wait on native flags, which lanes set when events finish."""
        flags = np.zeros(len(waits), dtype=np.int32)
        for flag, (i, event) in enumerate(waits.items()):
            bound.rows[i, kernels.GATE_WORD] = kernels.address(flags) + flag * flags.itemsize
            self._lanes.signal_when_done(event, flags, flag)
        steps, executed = self._team.run_steps(bound.rows, bound.feed)
        for i in waits:
            bound.rows[i, kernels.GATE_WORD] = 0
        if executed < len(bound.rows):
            failure = self._lanes.wait(waits[executed])
            raise failure if failure is not None else self._lanes.closed()
        return steps


def _team(threads: int | None, isa: str) -> kernels.Team:
    """Start the threads. Raises UsageError for a number out of range, DeviceError when the system refuses."""
    wanted = min(allowed_cores()[0], kernels.MAX_THREADS) if threads is None else threads
    if not 1 <= wanted <= kernels.MAX_THREADS:
        raise UsageError("--threads", f"{wanted} is not among 1 to {kernels.MAX_THREADS}", "give one of these")
    try:
        return kernels.Team(wanted, isa)
    except RuntimeError as error:
        raise DeviceError("--threads", str(error), "give fewer or end other programs") from error

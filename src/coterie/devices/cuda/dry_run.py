"""What a step of a bucket launches on a GPU, found on a machine that may have none: the device's own way to it.

    program, bucket -> Bound on a driver without a GPU -> rows, as complete as for a run -> launches, never launched

Memory is the host's, and none of it is touched but for a few words. So grids, constants, types and alignments are those
that the device asks for itself, and what is compiled for them is what it finds.
Knows nothing about who compiles them, or where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from coterie.core.shapes import Sizes
from coterie.device import Limits, Sampling
from coterie.devices.cuda.bound import Bound, Shared
from coterie.devices.cuda.compilers import Compilers
from coterie.devices.cuda.driver import NAME, Captured, Facts, Launch, Mark, Stream
from coterie.devices.cuda.inputs import SPAN, Addresses, Own, Run, bucket_of
from coterie.devices.cuda.kernels import kernels_with
from coterie.devices.cuda.machine import gpu_machine
from coterie.devices.real.host_memory import Bytes
from coterie.devices.real.shares import Shares
from coterie.devices.real.step import LoweredExecutable, StepRows
from coterie.graph.program import Program
from coterie.graph.rows import more_rows
from coterie.kernels.triton import compile_ahead, words
from coterie.kernels.triton.bucket import Bucket
from coterie.kernels.triton.compile_ahead import Wanted
from coterie.kernels.triton.tiles import H100
from coterie.spec.machine import MachineSpec

__all__ = ["DryRun", "Wanted", "buckets_within", "launches_of", "likely_buckets"]

ROOM = 1 << 50  # bytes of a GPU that is not there: nothing is refused
WEIGHTS_AT, APART = 1 << 40, 1 << 34  # addresses of weights that nobody reads, each farther off than any is long


class NoDriver:
    """A driver without a GPU: memory is the host's, and whatever is queued is forgotten."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def free_bytes(self) -> int:
        """All of it."""
        return self.facts.total_bytes

    def device_memory(self, size_bytes: int) -> torch.Tensor:
        """Memory that is the system's until it is touched."""
        return torch.empty(size_bytes, dtype=torch.uint8)

    def pinned_memory(self, size_bytes: int) -> torch.Tensor:
        """As device_memory."""
        return torch.empty(size_bytes, dtype=torch.uint8)

    def pin(self, memory: Bytes) -> torch.Tensor:
        """The memory as it is."""
        return torch.from_numpy(memory)

    def unpin(self, memory: Bytes) -> None:
        """Nothing."""

    def trim(self) -> None:
        """Nothing."""

    def stream(self) -> Stream:
        """None."""
        return None

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Nothing."""
        yield

    def copy(self, dst: torch.Tensor, src: torch.Tensor, stream: Stream) -> None:
        """Nothing."""

    def copy_words(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], stream: Stream) -> None:
        """Nothing."""

    def copy_pieces(self, pieces: torch.Tensor, stream: Stream) -> None:
        """Nothing."""

    def mark(self, stream: Stream, soon: bool = False) -> Mark:
        """Passed."""
        return None

    def follow(self, stream: Stream, mark: Mark) -> None:
        """Nothing."""

    def wait(self, mark: Mark) -> None:
        """Nothing."""

    def seconds(self, first: Mark, last: Mark) -> float:
        """No time."""
        return 0.0

    def launch(self, stream: Stream, launches: Sequence[Launch]) -> None:
        """Nothing."""

    def capture(self, stream: Stream, launches: Sequence[Launch]) -> Captured:
        """Nothing."""
        return None

    def replay(self, stream: Stream, captured: Captured, times: int = 1) -> None:
        """Nothing."""

    def lost(self) -> str:
        """It never answered, and nobody asks."""
        return ""


class DryRun:
    """The kernels of a GPU of a capability, with so many multiprocessors (an H100's), that steps of programs launch."""

    def __init__(self, capability: tuple[int, int], multiprocessors: int | None = None) -> None:
        self.capability, multiprocessors = capability, multiprocessors or H100.multiprocessors
        facts = Facts("a GPU that is not there", ROOM, multiprocessors, capability, "nothing")
        self._driver = NoDriver(facts)
        self._shared = Shared(self._driver, kernels_with(facts, {}))

    def with_tiles(self, changes: Mapping[str, Any]) -> DryRun:
        """The same GPU, whose kernels have other tiles: fields of Tiles."""
        other = DryRun(self.capability, self._driver.facts.multiprocessors)
        other._shared = Shared(other._driver, kernels_with(other._driver.facts, changes))
        return other

    def spec(self) -> MachineSpec:
        """The machine that it would be, with room for everything."""
        return gpu_machine(self._driver)

    def load(self, program: Program) -> LoweredExecutable:
        """As the device does. Raises UnsupportedError."""
        return LoweredExecutable(program, NAME, "the GPU", shares=True, rounds=False)

    def wanted(
        self, exe: LoweredExecutable, buckets: Iterable[Bucket], block_bytes: int, shared: Sequence[int] | None = None
    ) -> dict[Wanted, None]:
        """What steps in these buckets need compiled, each kernel once; `shared` as for `launches_of`."""
        found: dict[Wanted, None] = {}
        for bucket in buckets:
            found |= compile_ahead.wanted_by(launches_of(exe, bucket, block_bytes, self._shared, shared))
        return found

    def of_steps(
        self, exe: LoweredExecutable, steps: Iterable[tuple[Sizes, int]], block_bytes: int
    ) -> dict[Wanted, None]:
        """What steps of these sizes, each with its longest context, need compiled."""
        return self.wanted(exe, [bucket_of(sizes, context) for sizes, context in steps], block_bytes)

    def everything(
        self, exe: LoweredExecutable, limits: Limits, block_bytes: int, shared: Sequence[int] | None = None
    ) -> dict[Wanted, None]:
        """What any step within these limits needs. Where steps of several experts cannot be, nothing."""
        if shared is not None and not exe.mixes(shared):
            return {}
        return self.wanted(exe, buckets_within(limits, exe.program.draws), block_bytes, shared)

    def always(self) -> dict[Wanted, None]:
        """What every run needs, whatever its program: what copies words down and up."""
        return compile_ahead.wanted_by(words.launches())

    def compilers(self, processes: int | None = None) -> Compilers:
        """Processes that compile for it, as many as there are cores where nothing else is said."""
        return Compilers(self.capability, processes)

    @property
    def folder(self) -> str:
        """Where Triton keeps what was compiled."""
        return str(compile_ahead.cache_folder())

    def kept(self, wanted: Iterable[Wanted]) -> dict[Wanted, bool]:
        """Of kernels, each once by what Triton calls them, whether they are where it looks."""
        named = {one.key(self.capability): one for one in wanted}
        return {one: compile_ahead.is_kept(key, one) for key, one in named.items()}


def buckets_within(limits: Limits, draws: bool = True) -> list[Bucket]:
    """Buckets in which steps within the limits launch every kernel that they can.

    Every number of tokens, of sequences and of sampled rows in the shortest context, and the first two in every one: no
    launch looks at both sampled rows and contexts. A step that draws has no more rows than it may have sequences, also
    where guesses are checked or a prompt is scored; one that gives vectors may have as many as tokens. A test compares
    that with all of them.
    """
    shortest, *others = _doubled(SPAN, limits.context)
    sequences = _doubled(1, limits.sequences)
    found = []
    for T in _doubled(1, limits.tokens):
        most = min(T, limits.sequences)
        decode = [T] if T in sequences else []  # of as many tokens, or a few less
        for B in {*decode, *(min(B, most) for B in (*sequences, max(T - 1, 1)))}:
            found += [bucket_of(Sizes(T, B, min(R, most), 0, 0), shortest) for R in _doubled(1, most)]
            found += [bucket_of(Sizes(T, B, 1, 0, 0), context) for context in others]
        found += [bucket_of(Sizes(T, 1, rows, 0, 0), shortest) for rows in _doubled(1, T) if not draws and rows > most]
    return list(dict.fromkeys(found))


def likely_buckets(limits: Limits) -> list[Bucket]:
    """Decode of one sequence up to the most, prompts of all lengths alone and beside another sequence."""
    decodes = [Sizes(B, B, B, 0, 0) for B in _doubled(1, limits.sequences)]
    alone = [Sizes(T, 1, 1, 0, 0) for T in _doubled(2, limits.tokens)]
    beside = [Sizes(T, 2, 2, 0, 0) for T in _doubled(4, limits.tokens)] if limits.sequences > 1 else []
    return list(dict.fromkeys(bucket_of(sizes, SPAN) for sizes in (*decodes, *alone, *beside)))


def _doubled(first: int, most: int) -> list[int]:
    """The first, twice that, and so on; the last may serve for what is less than twice as much."""
    found = [first]
    while found[-1] < most:
        found.append(2 * found[-1])
    return found


def launches_of(
    exe: LoweredExecutable, bucket: Bucket, block_bytes: int, shared: Shared, places: Sequence[int] | None = None
) -> Sequence[Launch]:
    """What a step in this bucket launches. `places`: of weights that all sequences have, where they differ in others.

    shared: of a NoDriver. Raises UnsupportedError where no kernel does what a row says.
    """
    run = _run(exe, bucket, block_bytes, places)
    bound = Bound(exe, bucket, shared, run.mixes)
    bound.make_ready(run, None)
    return bound.step


def _run(exe: LoweredExecutable, bucket: Bucket, block_bytes: int, places: Sequence[int] | None) -> Run:
    """A step that fills a bucket; what its tokens are, nobody looks at."""
    T, B, R = bucket.tokens, bucket.sequences, bucket.sampled
    sequence_T = np.minimum(np.arange(T, dtype=np.int32), B - 1)
    columns = exe.program.kv.state_blocks(block_bytes) + 1
    inputs = {
        "tokens": np.zeros(T, np.int32),
        "positions": np.zeros(T, np.int32),
        "sequence": sequence_T,
        "block_tables": np.zeros((B, columns), np.int32),
        "rows": np.minimum(np.arange(R, dtype=np.int32), T - 1),
    }
    inputs |= more_rows(exe.program.graph, inputs["positions"], sequence_T)
    weights = WEIGHTS_AT + APART * np.arange(len(exe.program.weights), dtype=np.int64)
    own, shares = None, None
    if places is not None:
        is_shared = np.zeros(len(weights), np.bool_)
        is_shared[list(places)] = True
        own = Own(np.stack([weights, weights]), is_shared, tuple(places))
        shares = Shares.of(np.arange(B, dtype=np.int32) % 2, sequence_T, inputs["rows"])
    rows = StepRows(inputs, (Sampling(),) * R, ((),) * R, Sizes(T, B, R, 0, 0), shares)
    at = Addresses(weights, WEIGHTS_AT - APART, block_bytes, own)
    return Run(exe, rows, 1, at, bucket)

"""What a step of a bucket launches on a GPU, found by the device's own code on a machine that may have none.

    program, bucket -> Bound on a driver without a GPU -> rows, as complete as for a run -> launches, never launched

Memory is the host's, and hardly any of it is touched. So grids, constants, types and alignments are those that the
device would ask for, and kernels compiled for them are those that it will find.
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
from coterie.devices.cuda.inputs import SPAN, Addresses, PerExpertWeights, Run, bucket_of
from coterie.devices.cuda.kernels import kernels_with
from coterie.devices.cuda.machine import gpu_machine
from coterie.devices.real.host_memory import Bytes
from coterie.devices.real.shares import Shares
from coterie.devices.real.step import LoweredExecutable, StepRows
from coterie.graph.program import Program
from coterie.graph.rows import derived_rows
from coterie.kernels.triton import compile_ahead, words
from coterie.kernels.triton.bucket import Bucket
from coterie.kernels.triton.compile_ahead import Wanted
from coterie.kernels.triton.tiles import H100
from coterie.spec.machine import MachineSpec

__all__ = ["DryRun", "Wanted", "buckets_within", "launches_of", "likely_buckets"]

MEMORY_BYTES = 1 << 50  # bytes of the imaginary GPU: nothing is refused
WEIGHTS_BASE, WEIGHT_SPACING = 1 << 40, 1 << 34  # made-up addresses of weights, farther apart than any weight is long


class NullDriver:
    """A driver without a GPU: memory is the host's, and queued work is dropped."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def free_bytes(self) -> int:
        """All of its memory."""
        return self.facts.total_bytes

    def device_memory(self, size_bytes: int) -> torch.Tensor:
        """Host memory, which the system commits only when it is touched."""
        return torch.empty(size_bytes, dtype=torch.uint8)

    def pinned_memory(self, size_bytes: int) -> torch.Tensor:
        """As device_memory."""
        return torch.empty(size_bytes, dtype=torch.uint8)

    def pin(self, memory: Bytes) -> torch.Tensor:
        """The memory itself."""
        return torch.from_numpy(memory)

    def unpin(self, memory: Bytes) -> None:
        """Does nothing."""

    def trim(self) -> None:
        """Does nothing."""

    def stream(self) -> Stream:
        """No stream."""
        return None

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Does nothing."""
        yield

    def copy(self, dst: torch.Tensor, src: torch.Tensor, stream: Stream) -> None:
        """Does nothing."""

    def copy_words(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], stream: Stream) -> None:
        """Does nothing."""

    def copy_pieces(self, pieces: torch.Tensor, stream: Stream) -> None:
        """Does nothing."""

    def mark(self, stream: Stream, soon: bool = False) -> Mark:
        """A mark that counts as passed."""
        return None

    def follow(self, stream: Stream, mark: Mark) -> None:
        """Does nothing."""

    def wait(self, mark: Mark) -> None:
        """Does nothing."""

    def seconds(self, first: Mark, last: Mark) -> float:
        """No time."""
        return 0.0

    def launch(self, stream: Stream, launches: Sequence[Launch]) -> None:
        """Does nothing."""

    def capture(self, stream: Stream, launches: Sequence[Launch]) -> Captured:
        """Does nothing."""
        return None

    def replay(self, stream: Stream, captured: Captured, times: int = 1) -> None:
        """Does nothing."""

    def lost(self) -> str:
        """Never lost."""
        return ""


class DryRun:
    """The kernels that steps launch on a GPU of this capability; by default with an H100's multiprocessors."""

    def __init__(self, capability: tuple[int, int], multiprocessors: int | None = None) -> None:
        self.capability, multiprocessors = capability, multiprocessors or H100.multiprocessors
        facts = Facts("a GPU that is not there", MEMORY_BYTES, multiprocessors, capability, "nothing")
        self._driver = NullDriver(facts)
        self._shared = Shared(self._driver, kernels_with(facts, {}))

    def with_tiles(self, changes: Mapping[str, Any]) -> DryRun:
        """The same GPU with other tiles: `changes` are fields of Tiles."""
        other = DryRun(self.capability, self._driver.facts.multiprocessors)
        other._shared = Shared(other._driver, kernels_with(other._driver.facts, changes))
        return other

    def spec(self) -> MachineSpec:
        """The machine's spec, with room for everything."""
        return gpu_machine(self._driver)

    def load(self, program: Program) -> LoweredExecutable:
        """As the device does. Raises UnsupportedError."""
        return LoweredExecutable(program, NAME, "the GPU", shares=True, rounds=False)

    def wanted(
        self, exe: LoweredExecutable, buckets: Iterable[Bucket], block_bytes: int, shared: Sequence[int] | None = None
    ) -> dict[Wanted, None]:
        """Kernels that steps in these buckets need, each once; `shared` as `shared_weights` of `launches_of`."""
        found: dict[Wanted, None] = {}
        for bucket in buckets:
            found |= compile_ahead.wanted_by(launches_of(exe, bucket, block_bytes, self._shared, shared))
        return found

    def of_steps(
        self, exe: LoweredExecutable, steps: Iterable[tuple[Sizes, int]], block_bytes: int
    ) -> dict[Wanted, None]:
        """Kernels that steps of these sizes need, each given with its longest context."""
        return self.wanted(exe, [bucket_of(sizes, context) for sizes, context in steps], block_bytes)

    def everything(
        self, exe: LoweredExecutable, limits: Limits, block_bytes: int, shared: Sequence[int] | None = None
    ) -> dict[Wanted, None]:
        """Kernels that any step within these limits needs.

        Empty if `shared` is given and steps cannot mix experts that share only these weights.
        """
        if shared is not None and not exe.mixes(shared):
            return {}
        return self.wanted(exe, buckets_within(limits, exe.program.samples_tokens), block_bytes, shared)

    def always(self) -> dict[Wanted, None]:
        """Kernels that every run needs, whatever its program: those that copy words down and up."""
        return compile_ahead.wanted_by(words.launches())

    def compilers(self, processes: int | None = None) -> Compilers:
        """Processes that compile for this GPU, by default one per core."""
        return Compilers(self.capability, processes)

    @property
    def folder(self) -> str:
        """Folder of Triton's disk cache."""
        return str(compile_ahead.cache_folder())

    def kept(self, wanted: Iterable[Wanted]) -> dict[Wanted, bool]:
        """Whether each kernel is in Triton's disk cache; kernels with equal keys appear once."""
        named = {one.key(self.capability): one for one in wanted}
        return {one: compile_ahead.is_cached(key, one) for key, one in named.items()}


def buckets_within(limits: Limits, samples_tokens: bool = True) -> list[Bucket]:
    """Buckets in which steps within the limits launch every kernel that they can.

    All numbers of tokens, sequences and sampled rows with the shortest context, and of tokens and sequences with every
    context: no launch depends on both sampled rows and context. A step that samples has at most as many rows as
    sequences are allowed, also when guesses are checked or a prompt is scored; one that returns vectors may have as
    many rows as tokens. A test compares this with all buckets.
    """
    shortest, *longer = _doublings(SPAN, limits.context)
    sequences = _doublings(1, limits.sequences)
    found = []
    for T in _doublings(1, limits.tokens):
        most = min(T, limits.sequences)
        decode = [T] if T in sequences else []  # with as many tokens as sequences, or a few fewer
        for B in {*decode, *(min(B, most) for B in (*sequences, max(T - 1, 1)))}:
            found += [bucket_of(Sizes(T, B, min(R, most), 0, 0), shortest) for R in _doublings(1, most)]
            found += [bucket_of(Sizes(T, B, 1, 0, 0), context) for context in longer]
        many_rows = [] if samples_tokens else [rows for rows in _doublings(1, T) if rows > most]
        found += [bucket_of(Sizes(T, 1, rows, 0, 0), shortest) for rows in many_rows]
    return list(dict.fromkeys(found))


def likely_buckets(limits: Limits) -> list[Bucket]:
    """Buckets of decode, and of prompts alone or with another sequence, of all sizes, with the shortest context."""
    decodes = [Sizes(B, B, B, 0, 0) for B in _doublings(1, limits.sequences)]
    alone = [Sizes(T, 1, 1, 0, 0) for T in _doublings(2, limits.tokens)]
    in_pairs = [Sizes(T, 2, 2, 0, 0) for T in _doublings(4, limits.tokens)] if limits.sequences > 1 else []
    return list(dict.fromkeys(bucket_of(sizes, SPAN) for sizes in (*decodes, *alone, *in_pairs)))


def _doublings(first: int, most: int) -> list[int]:
    """`first`, twice that, and so on, up to the first value that is not below `most`."""
    found = [first]
    while found[-1] < most:
        found.append(2 * found[-1])
    return found


def launches_of(
    exe: LoweredExecutable,
    bucket: Bucket,
    block_bytes: int,
    shared: Shared,
    shared_weights: Sequence[int] | None = None,
) -> Sequence[Launch]:
    """The launches of a step in this bucket.

    `shared_weights`: for a step whose sequences differ in weights, the indices of those that all of them share.
    `shared` must be on a NullDriver. Raises UnsupportedError for a row without a kernel.
    """
    run = _run(exe, bucket, block_bytes, shared_weights)
    bound = Bound(exe, bucket, shared, run.mixes)
    bound.make_ready(run, None)
    return bound.step


def _run(exe: LoweredExecutable, bucket: Bucket, block_bytes: int, shared_weights: Sequence[int] | None) -> Run:
    """A step that fills a bucket; its tokens do not matter."""
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
    inputs |= derived_rows(exe.program.graph, inputs["positions"], sequence_T)
    weights = WEIGHTS_BASE + WEIGHT_SPACING * np.arange(len(exe.program.weights), dtype=np.int64)
    per_expert, shares = None, None
    if shared_weights is not None:
        is_shared = np.zeros(len(weights), np.bool_)
        is_shared[list(shared_weights)] = True
        per_expert = PerExpertWeights(np.stack([weights, weights]), is_shared, tuple(shared_weights))
        shares = Shares.of(np.arange(B, dtype=np.int32) % 2, sequence_T, inputs["rows"])
    rows = StepRows(inputs, (Sampling(),) * R, ((),) * R, Sizes(T, B, R, 0, 0), shares)
    at = Addresses(weights, WEIGHTS_BASE - WEIGHT_SPACING, block_bytes, per_expert)
    return Run(exe, rows, 1, at, bucket)

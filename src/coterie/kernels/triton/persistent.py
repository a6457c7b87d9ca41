"""A run of decode steps in one launch: a persistent kernel whose programs walk the instruction rows step after step.

    phases, in memory    kind row | kind row | ...    in sequence; decode attention is two phases of one row
    kinds, compiled      kernel, grid, constants      each distinct one once; found when a program is bound

    program 0    units 0, P, 2P ... | barrier | units 0, P ... | barrier | ... | feed | barrier | the next step
    program 1    units 1, P+1   ... | barrier | units 1 ...    | barrier | ... |      | barrier |

This is what csrc/team.cpp does with threads, with two differences: units are assigned, not taken, as all programs run
equally fast; and a phase ends when all programs have arrived at a grid barrier, whether they had a unit or not. The
kernels are those of ordinary launches, told which unit to do. Rows are read from memory in each step, so switching
weights compiles nothing.

All programs must be resident at once, or those that wait would keep the others out for ever: the launch is cooperative,
which CUDA refuses where that is impossible.
Knows nothing about what kernels compute, or who puts rows on the GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from coterie.core.errors import UnsupportedError
from coterie.kernels.cpu import I64
from coterie.kernels.cpu import ROW_WORDS as _ROW_WORDS
from coterie.kernels.triton.arithmetic import AHEAD, INTERPRETED, integer
from coterie.kernels.triton.bucket import Bucket
from coterie.kernels.triton.feed import DONE, ENDED, FEED_STEP, STEPS, end_step
from coterie.kernels.triton.launch import launches
from coterie.kernels.triton.rows import WHEN, Launch
from coterie.kernels.triton.tiles import Tiles

FIRST_PHASE = tl.constexpr(16)  # word of a plan where phases begin; programs poll the cache line before it
ROW_WORDS = tl.constexpr(_ROW_WORDS)
PHASE_WORDS = tl.constexpr(4)  # kind, row, and the kind and row whose weights are prefetched after it; -1: none
NO_PREFETCH = (-1, 0)  # nothing to prefetch
LINES = "LINES"  # parameter of kernels that can prefetch their weights
UNIT = "unit"  # parameter of kernels that do one unit of work; see arithmetic.unit_index
TOO_MANY = "too many blocks in cooperative launch"  # CUDA's error text, as Triton repeats it
REGISTER_UNIT, RESERVED_BYTES = 256, 1024  # see programs_that_fit


@triton.jit
def arrive(arrived):
    """Arrive at a grid barrier; returns the count at which it is complete. `wait_for_all` must follow.

    `arrived` counts all arrivals since it was set to 0, and never decreases. The k-th arrival belongs to barrier k //
    programs, since no program arrives at a barrier before all have arrived at the previous one. So each program knows
    the count that completes its barrier, and there is no reset that a late program could miss.

    What a program stored before arriving is visible to all after the barrier. The first barrier orders its threads'
    stores before the thread that counts, whose atomic releases them to the GPU. The thread that sees the last arrival
    acquires them, which invalidates its multiprocessor's L1 cache, and the second barrier orders the other threads'
    loads after it. So plain loads suffice, except `ld.global.nc`, which may hit a cache that nothing invalidates: a
    test reads the PTX for the barriers and for such loads.
    """
    tl.debug_barrier()
    programs = tl.num_programs(0).to(tl.int64)
    before = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu")
    return (before // programs + 1) * programs


@triton.jit
def wait_for_all(arrived, complete):
    """Wait until all programs of the launch have arrived at this barrier; see `arrive`."""
    while tl.atomic_add(arrived, 0, sem="acquire", scope="gpu") < complete:
        pass
    tl.debug_barrier()


@triton.jit
def grid_barrier(arrived):
    """Wait until all programs of the launch have arrived here as often as this one."""
    wait_for_all(arrived, arrive(arrived))


@triton.jit
def prefetch_unit(row, unit, KIND):
    """Prefetch the weights of a unit, if there is such a unit and its kernel has weights."""
    if KIND[4]:
        if unit < KIND[2][0]:
            KIND[0](row, *KIND[5], unit=(unit, 0, 0))


@triton.jit
def units_of(row, scratch, KIND, DEPTH: tl.constexpr):
    """This program's units of a phase; while one runs, the weights of later ones are prefetched.

    A kind: kernel, whether it uses scratch, grid, constants, whether it can prefetch, constants for prefetching.
    """
    X: tl.constexpr = KIND[2][0]
    Y: tl.constexpr = KIND[2][1]
    UNITS: tl.constexpr = X * Y * KIND[2][2]
    for i in tl.range(tl.program_id(0), UNITS, tl.num_programs(0), disable_licm=True):
        if DEPTH > 0:
            prefetch_unit(row, i + DEPTH * tl.num_programs(0), KIND)
        unit = (i % X, i // X % Y, i // (X * Y))
        if KIND[1]:
            KIND[0](row, scratch, *KIND[3], unit=unit)
        else:
            KIND[0](row, *KIND[3], unit=unit)


@triton.jit
def has_next_step(words, state):
    """Whether there is another step. Only `feed` writes what this reads, and never at the same time."""
    return (tl.load(state + ENDED) == 0) & (tl.load(state + DONE) < integer(words, STEPS))


# Triton would compile two kernels for different values of `count`, without any gain.
@triton.jit(do_not_specialize=["count"])
def walk(
    rows,
    plan,
    count,
    words,
    state,
    stops,
    scratch,
    KINDS,
    KIND_COUNT: tl.constexpr,
    DEPTH: tl.constexpr,
    STOPS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Walk `count` phases and feed tokens back, until the run is over; `plan` begins with the count of arrivals."""
    running = has_next_step(words, state)
    while running:
        for phase in tl.range(0, count, disable_licm=True):
            at = plan + FIRST_PHASE + PHASE_WORDS * phase
            kind = tl.load(at)
            row = rows + tl.load(at + 1) * ROW_WORDS
            later = tl.load(at + 2)
            later_row = rows + tl.load(at + 3) * ROW_WORDS
            for i in tl.static_range(KIND_COUNT):
                if kind == i:
                    units_of(row, scratch, KINDS[i], DEPTH)
            complete = arrive(plan)
            for i in tl.static_range(KIND_COUNT):
                if later == i:
                    for n in tl.static_range(DEPTH):
                        prefetch_unit(later_row, tl.program_id(0) + n * tl.num_programs(0), KINDS[i])
            wait_for_all(plan, complete)
        if tl.program_id(0) == 0:
            end_step(words, state, rows, stops, STOPS, STEP)
        grid_barrier(plan)
        running = has_next_step(words, state)


@dataclass(frozen=True, slots=True)
class Plan:
    """The phases of a program in one bucket: `words` go to the GPU, `kinds` to the compiler."""

    kinds: tuple[tuple[object, ...], ...]
    words: I64
    rows: torch.Tensor
    scratch: torch.Tensor
    tiles: Tiles

    def walk(
        self, words: torch.Tensor, feed: torch.Tensor, state: torch.Tensor, stops: torch.Tensor, multiprocessors: int
    ) -> Walk:
        """The launch that finishes a run. `words`: this plan's, on the GPU; the others as in feed_launch."""
        scratch = self.scratch[: self.scratch.numel() // 4 * 4].view(torch.float32)
        phases = (len(self.words) - FIRST_PHASE.value) // PHASE_WORDS.value
        args = (self.rows, words, phases, feed, state, stops, scratch, tuple(map(_compiled, self.kinds)))
        constants = {
            "KIND_COUNT": len(self.kinds),
            "DEPTH": self.tiles.walk_ahead,
            "STOPS": stops.numel(),
            "STEP": FEED_STEP,
            "num_warps": self.tiles.walk_warps,
        }
        constants["launch_cooperative_grid"] = True
        return Walk(multiprocessors, self.tiles, args, constants)


class Walk:
    """A plan on the GPU; calling it launches it. The first call compiles it, as with all kernels."""

    def __init__(
        self, multiprocessors: int, tiles: Tiles, args: tuple[object, ...], constants: Mapping[str, object]
    ) -> None:
        self._multiprocessors, self._tiles = multiprocessors, tiles
        self._args, self._constants = args, constants
        self._launch: Launch | None = None

    def __call__(self) -> None:
        """Launch on the current stream; the first call tries fewer programs if CUDA refuses: not all can be resident.

        One place on the GPU stays free: programs that hold all registers until the run is over would leave no room for
        the kernel that copies a stop word, or rows of the next expert. The number of programs never changes later: the
        arrival count continues from launch to launch, and is divided by it to tell barriers apart. Raises CUDA's error
        if the fewest programs fail too, or any other error.
        """
        if self._launch is not None:
            self._launch()
            return
        for programs in range(_programs(self.compile(), self._tiles), 0, -1):
            grid = (max(self._multiprocessors * programs - 1, 1),)
            launch = Launch(walk, grid, self._args, self._constants)
            try:
                launch()
            except RuntimeError as error:
                if TOO_MANY not in str(error) or programs == 1:
                    raise
            else:
                self._launch = launch
                return

    def compile(self) -> Any:
        """The compiled kernel for the current GPU; None under the interpreter."""
        return walk.run(*self._args, grid=(1,), warmup=True, **self._constants)


def plan_of(host_rows: I64, rows: torch.Tensor, bucket: Bucket, scratch: torch.Tensor, tiles: Tiles) -> Plan:
    """The launches of all rows as a sequence of phases.

    Raises UnsupportedError as `launches` does, and for many tokens. As with `launches`, rows and scratch must stay in
    place.
    """
    kinds: list[tuple[object, ...]] = []
    phases = []
    for index in range(len(host_rows)):
        for launch in launches(host_rows, rows, index, bucket, scratch, tiles):
            kind = _kind(launch)
            if kind not in kinds:
                kinds.append(kind)
            phases.append((kinds.index(kind), index))
    words = np.zeros(FIRST_PHASE.value + PHASE_WORDS.value * len(phases), np.int64)
    prefetched = _prefetches(phases, [bool(kind[-2]) for kind in kinds])
    words[FIRST_PHASE.value :] = np.array(
        [(*now, *later) for now, later in zip(phases, prefetched, strict=True)]
    ).reshape(-1)
    if bucket.tokens > 1:  # products of several tokens need the registers that prefetching would take
        tiles = replace(tiles, walk_ahead=0)
    return Plan(tuple(kinds), words, rows, scratch, tiles)


def _prefetches(phases: Sequence[tuple[int, int]], has_weights: Sequence[bool]) -> list[tuple[int, int]]:
    """What to prefetch after each phase: the next phase with weights, each once; after the last, the first."""
    prefetched, known = [], -1
    for place in range(len(phases)):
        ahead = (
            later for later in range(place + 1, place + 1 + len(phases)) if has_weights[phases[later % len(phases)][0]]
        )
        found = next(ahead, known)
        prefetched.append(phases[found % len(phases)] if found != known else NO_PREFETCH)
        known = found
    return prefetched


def _kind(launch: Launch) -> tuple[object, ...]:
    """What a launch is compiled for, as units_of reads it.

    Numbers among its arguments after row and scratch are constants. Raises UnsupportedError for a kernel that works in
    tiles.
    """
    names, numbers = launch.kernel.arg_names, launch.args[2:]
    if names[-1] != UNIT:
        fact = "products of many tokens are launched by themselves, not walked"
        raise UnsupportedError("the GPU's kernels", fact, "decode few sequences at once")
    grid = (*launch.grid, 1, 1)[:3]
    named = names[len(launch.args) : -1]
    constants = (*numbers, *(launch.constants[name] for name in named))
    ahead = (*numbers, *(AHEAD.value if name == WHEN else launch.constants[name] for name in named))
    return launch.kernel, len(launch.args) > 1, grid, constants, LINES in names, ahead


def _compiled(value: Any) -> Any:
    """Nested compile-time values, as Triton takes them in one argument; its interpreter takes them unchanged."""
    if isinstance(value, tuple):
        return [*map(_compiled, value)] if INTERPRETED.value else tuple(map(_compiled, value))
    if INTERPRETED.value or hasattr(value, "arg_names"):
        return value
    return tl.constexpr(value)


def _programs(compiled: Any, tiles: Tiles) -> int:
    """How many programs fit on a multiprocessor, given the compiled kernel."""
    if compiled is None:  # interpreted
        return 1
    compiled._init_handles()
    device = triton.runtime.driver.active.get_current_device()
    limits = triton.runtime.driver.active.utils.get_device_properties(device)
    room = programs_that_fit(
        compiled.n_regs, compiled.metadata.shared, tiles.walk_warps, limits["max_num_regs"], limits["max_shared_mem"]
    )
    return max(min(room, tiles.walk_programs), 1)


def programs_that_fit(registers: int, shared_bytes: int, warps: int, max_registers: int, max_shared: int) -> int:
    """How many programs fit on a multiprocessor, by registers per thread and shared memory per program.

    Registers are allocated to warps in units of 256, and CUDA reserves 1 KiB of shared memory per program. Source: CUDA
    C++ Programming Guide, technical specifications of compute capability 8.0 to 12.0. Programs of few warps do not
    reach the other limits (32 programs, or 1536 threads).
    """
    of_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_shared = (max_shared + RESERVED_BYTES) // (shared_bytes + RESERVED_BYTES)
    return min(max_registers // (of_warp * warps), by_shared)

"""THE SEAM: what the engine, the cache and the scheduler may ask of a device, real or modelled.

No code above this file asks which kind of device it has. Only a device knows the time.

    reserve -> Buffer        a slab, once, at start     place     declares the tensors of a buffer about to be filled
    fetch, copy -> Event     on a link's lane           load -> Executable
    run -> Event             on the compute lane        wait_any, done, failure, span: query events

Knows nothing about models, experts or requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.layout import FileRange
from coterie.core.shapes import Sizes
from coterie.core.values import value
from coterie.graph.program import Program
from coterie.graph.sampling import Changes
from coterie.spec.machine import MachineSpec

I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
Ints: TypeAlias = Sequence[int] | I32


@value
class Buffer:
    """A byte range of a slab. `slab_id`: the device's number for the slab; `offset`: from the slab's start."""

    slab_id: int
    tier: str
    offset: int
    size_bytes: int

    def view(self, offset: int, size_bytes: int) -> Buffer:
        """A sub-range; `offset` is relative to this buffer. Raises ValueError when it is out of bounds."""
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise ValueError(f"[{offset}, {offset + size_bytes}) is outside a buffer of {self.size_bytes} bytes")
        return Buffer(self.slab_id, self.tier, self.offset + offset, size_bytes)


@value
class Event:
    """The completion of one piece of work, queried on the device that issued it. `lane`: `compute` or `src->dst`."""

    event_id: int
    lane: str
    label: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings of one row. The random number is a function of (seed, position) alone.

    temperature 0 means greedy; top_k 0, top_p 1 and min_p 0 disable that filter. `changes`: penalties and biases
    applied to the logits first, on devices that support it (`changes_logits`); a multi-step run updates their counts.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    changes: Changes | None = None


@value
class Rows:
    """The inputs of one step: T tokens of B sequences, flattened without padding; R of them are sampled.

    Values may be lists or arrays; the device converts them.
    tokens_T, positions_T: token ids and their positions. sequence_T: each token's row in block_tables.
    block_tables_BM: KV block numbers per sequence, padded with 0. lengths_B: context length after this step.
    rows_R: indices into T of the tokens to sample from, in any order; a sequence may have none or several.
    sampling: settings per sampled row. end_ids: stop token ids per sampled row. types_T: token type (segment) ids, for
    encoders that take a pair of texts; empty means all 0, or that the graph has no such input.
    """

    tokens_T: Ints
    positions_T: Ints
    sequence_T: Ints
    block_tables_BM: Sequence[Sequence[int]] | I32
    lengths_B: Ints
    rows_R: Ints
    sampling: tuple[Sampling, ...]
    end_ids: tuple[tuple[int, ...], ...] = ()
    types_T: Sequence[int] = ()

    @property
    def sizes(self) -> Sizes:
        """The values, for this step, of the sizes that programs are symbolic in."""
        tokens = len(self.tokens_T)
        context_tokens, pairs = int(sum(self.lengths_B)), int(sum(self.positions_T)) + tokens
        return Sizes(tokens, len(self.lengths_B), len(self.rows_R), context_tokens, pairs)


def prompt_rows(ids: Ints, num_blocks: int, first: int = 0, scored: bool = False) -> Rows:
    """Rows of a single greedy sequence that starts at position `first`; samples its last token, or all if `scored`."""
    tokens_T, end = np.asarray(ids, np.int32), first + len(ids)
    positions_T = np.arange(first, end, dtype=np.int32)
    rows_R = np.arange(0 if scored else len(ids) - 1, len(ids), dtype=np.int32)
    table, greedy = np.arange(num_blocks, dtype=np.int32)[None], (Sampling(),) * len(rows_R)
    return Rows(tokens_T, positions_T, np.zeros_like(tokens_T), table, [end], rows_R, greedy, ((),) * len(rows_R))


@value
class Shared:
    """An extent with weights that several experts share.

    `indices`: positions, in the program's order, of the weights in it; all others are in the expert's own extent.
    """

    weights: Buffer
    indices: tuple[int, ...]


@value
class Variants:
    """Further experts in a mixed run, all on the same base (`Shared`): the extents and offsets of their own weights.
    `expert_B`: each sequence's expert: 0 is the binding's own, n is entry n - 1 here.
    """

    weights: tuple[Buffer, ...]
    offsets: tuple[tuple[int, ...], ...]
    expert_B: Ints


@value
class Binding:
    """The arguments of one run of a Program: weights (an extent, and offsets in the program's order), KV cache, rows.

    `kv` is the whole KV slab, divided into blocks of `block_bytes`, numbered from 0. `shared`: set when some weights
    are in another extent of the same tier; their `offsets` are relative to that one. `variants`: set when sequences
    use different experts' weights; needs an executable that `mixes`.
    """

    weights: Buffer
    offsets: tuple[int, ...]
    kv: Buffer
    block_bytes: int
    rows: Rows
    shared: Shared | None = None
    variants: Variants | None = None

    @property
    def extents(self) -> tuple[Buffer, ...]:
        """Every buffer that the run may touch."""
        given: tuple[Buffer, ...] = self.weights, self.kv
        if self.shared is not None:
            given = (*given, self.shared.weights)
        return given if self.variants is None else (*given, *self.variants.weights)


@value
class Limits:
    """Upper bounds on a step: sequences, tokens, and context length of any one sequence."""

    sequences: int
    tokens: int
    context: int


class Executable(Protocol):
    """A program that a device has loaded."""

    @property
    def program(self) -> Program:
        """The program that was loaded."""

    def mixes(self, shared: Sequence[int]) -> bool:
        """Whether one run may mix experts that have only the weights at these indices in common (see `Variants`)."""


@value
class Span:
    """When an event's work began and ended, in seconds on the device's clock."""

    start_s: float
    end_s: float


class Device(Protocol):
    """Holds tiers and runs programs. Calls return at once; work happens on lanes, in order within a lane.

    Work starts when its lane is free and every event in `after` is done; if one of those failed, it fails too, with the
    same exception. An event is pending until it is done or failed, and never changes again.
    """

    @property
    def spec(self) -> MachineSpec:
        """Tiers nearest first, links, launch costs; frozen."""

    def reserve(self, tier: str, size_bytes: int, touched: bool = True) -> Buffer:
        """Allocate a slab, once, at start, aligned to 4096 bytes. Raises CapacityError.

        `touched`: fault in all pages now. Otherwise the bytes count as reserved, but pages of host memory are faulted
        in by the first write to each.
        """

    def give_back(self, buffer: Buffer) -> None:
        """Return a buffer's physical memory to the system until its next use. It stays reserved; its contents are lost.

        No work that uses it may be in flight. A GPU gives back only whole slabs. If another process has taken
        the memory by the next use, `place` raises CapacityError and the event of a `run` fails with one.
        """

    def place(self, dst: Buffer, tensors: Sequence[tuple[int, int]]) -> None:
        """Declare the tensors, (offset, size) by offset, of a buffer that is about to be filled.

        A device whose kernels need aligned weights may move them within the buffer; bindings still use these offsets.
        Valid until an overlapping buffer is placed. Raises ValueError when the buffer has no room to align them.
        """

    def copy(
        self, dst: Buffer, src: Buffer, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Copy between tiers on that link's lane; with `parts`, only those (see `fetch`).

        Raises ValueError unless the sizes are equal.
        """

    def copy_all(self, dst: Buffer, src: Buffer, pieces: Sequence[tuple[int, int]], issued: list[Event]) -> None:
        """Copy the same pieces, (offset, size), of both buffers in sequence: each waits for its predecessor, the first
        for the last event of `issued`. Appends one event per piece to `issued` as it goes, like `copy_pieces`.
        """

    def fetch(
        self, dst: Buffer, source: FileRange, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Read a file range into a slab on the disk lane; with `parts`, only those: (offset, size), in whole blocks.

        The event fails with TransferError when the read fails, or when the file has changed since its header was read.
        """

    def load(self, program: Program) -> Executable:
        """Bind kernels or price regions. Raises UnsupportedError naming the op that this device has no kernel for."""

    def expect(self, exe: Executable, limits: Limits, block_bytes: int, shared: Sequence[int] | None = None) -> None:
        """Hint that steps within these limits will follow, so that a device can compile for them ahead of time.

        `shared`: they will mix experts that have the weights at these indices in common. Returns at once; affects only
        how long the first such step takes.
        """
        return

    def run(
        self,
        exe: Executable,
        binding: Binding,
        gates: Mapping[str, Event] | None = None,
        steps: int = 1,
        after: Iterable[Event] = (),
    ) -> Event:
        """Run up to `steps` steps. `gates` maps a stage to an event that its regions wait for.

        With steps > 1 (only when T == B == R, all decoding) each step feeds its sampled tokens to the next; the run
        ends early after a step in which any row drew one of its end_ids, or when interrupted.
        """

    def interrupt(self) -> None:
        """End the current run (if none, the next one) after its current step, so that the scheduler can act.

        The only method that may be called from any thread at any time. Modelled: the step at the current modelled time.
        """

    def tokens(self, event: Event) -> I32:
        """Sampled tokens [steps done, R] of a finished run; [1, 0] if the program draws none. Raises its failure."""

    def logits(self, event: Event, rows: Sequence[int]) -> F32:
        """Unmodified logits [rows, V] of these sampled rows (0 to R - 1) of a finished single-step run.

        Valid only until the next run or inspection is issued: raises ValueError for any older run and for multi-step
        runs. Raises the event's failure, and UnsupportedError on a device that computes no values.
        """

    def vectors(self, event: Event, rows: Sequence[int]) -> F32:
        """Hidden states [rows, D] after the last norm, from a program without a head; conditions as for `logits`.
        Each of the two raises ValueError on the other's kind of program.
        """

    def inspect(self, exe: Executable, binding: Binding) -> Mapping[str, npt.NDArray[np.float32]]:
        """Run one step on an otherwise idle device and return every value that the program stores, by name, as float32.

        For `coterie diff` and tests. Load the program with unshared buffers (compile_graph(share_buffers=False)).
        Raises UnsupportedError on a device that computes no values.
        """

    def synthetic(self) -> bool:
        """True when this device computes no values and makes tokens up. Reports must say so."""

    def changes_logits(self) -> bool:
        """Whether the device applies `Sampling.changes`; if not, a run that has any is refused with ValueError."""

    def now(self) -> float:
        """Seconds on this device's clock."""

    def done(self, event: Event) -> bool:
        """True when the event is done or failed. Never blocks."""

    def failure(self, event: Event) -> Exception | None:
        """Why a finished event failed, or None."""

    def span(self, event: Event) -> Span:
        """Start and end of a finished event's work."""

    def wait_any(self, events: Sequence[Event], until: float | None = None) -> None:
        """Return once any event has finished or the clock reaches `until`. Real: block. Modelled: move the clock."""

    def close(self) -> None:
        """Stop the lanes and free all memory."""


class Waits(Protocol):
    """The part of a Device that waiting for events needs."""

    def done(self, event: Event) -> bool:
        """As Device.done."""

    def wait_any(self, events: Sequence[Event], until: float | None = None) -> None:
        """As Device.wait_any, but may return early."""


def wait_for(device: Waits, event: Event) -> None:
    """Return when an event is done or failed."""
    while not device.done(event):
        device.wait_any([event])


class Copies(Protocol):
    """The part of a Device that `copy_pieces` needs."""

    def copy(
        self, dst: Buffer, src: Buffer, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """As Device.copy."""


def copy_pieces(
    device: Copies, dst: Buffer, src: Buffer, pieces: Sequence[tuple[int, int]], issued: list[Event]
) -> None:
    """Implements Device.copy_all with one call of `copy` per piece."""
    for offset, size_bytes in pieces:
        issued.append(device.copy(dst.view(offset, size_bytes), src.view(offset, size_bytes), issued[-1:]))

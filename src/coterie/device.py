"""THE SEAM: what the engine, the cache and the scheduler may ask of a device, real or modelled.

Nobody above this file asks which kind of device it has. Only a device knows the time.

    reserve -> Buffer        a slab, once, at start        place      where tensors will be in a piece of it
    fetch, copy -> Event     on a link's lane          load -> Executable
    run -> Event             on the compute lane       wait_any, done, failure, span: ask about events

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
    """A piece of a slab: `slab_id` is the reserving device's name for it; `offset` and `size_bytes` are inside it."""

    slab_id: int
    tier: str
    offset: int
    size_bytes: int

    def view(self, offset: int, size_bytes: int) -> Buffer:
        """A piece of this piece. Raises ValueError when it reaches outside."""
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise ValueError(f"[{offset}, {offset + size_bytes}) is outside a buffer of {self.size_bytes} bytes")
        return Buffer(self.slab_id, self.tier, self.offset + offset, size_bytes)


@value
class Event:
    """When something on a lane is done; ask the device that made it. `lane` is `compute` or `src->dst`."""

    event_id: int
    lane: str
    label: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """One sampled row's settings. The random number is a function of (seed, position) alone.

    temperature 0 means greedy; top_k 0, top_p 1 and min_p 0 mean no limit. `changes`: what is done to its logits
    before, where the device does that (`changes_logits`); in a run of several steps what one drew counts in the next.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    changes: Changes | None = None


@value
class Rows:
    """The rows of a step. T tokens, flat and ragged, of B sequences; R of them are sampled.

    Numbers come as lists or arrays; a device converts them to the form that it needs.
    tokens_T, positions_T: token ids and their positions. sequence_T: the row of block_tables that the token belongs to.
    block_tables_BM: KV block numbers of each sequence (M columns, unused ones 0). lengths_B: context after this step.
    rows_R: indices into T of the tokens whose logits are sampled, in any order; a sequence may have none or several.
    sampling: R settings. end_ids: for each of the R rows, the ids that end it. types_T: which text of a pair each token
    is of; empty: all are of the first, or the graph does not ask.
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
        """The numbers of this step that programs are symbolic in."""
        tokens = len(self.tokens_T)
        context_tokens, pairs = int(sum(self.lengths_B)), int(sum(self.positions_T)) + tokens
        return Sizes(tokens, len(self.lengths_B), len(self.rows_R), context_tokens, pairs)


def prompt_rows(ids: Ints, num_blocks: int, first: int = 0, scored: bool = False) -> Rows:
    """One sequence's tokens from position `first` on, greedy: the last is sampled, or each of them where `scored`."""
    tokens_T, end = np.asarray(ids, np.int32), first + len(ids)
    positions_T = np.arange(first, end, dtype=np.int32)
    rows_R = np.arange(0 if scored else len(ids) - 1, len(ids), dtype=np.int32)
    table, greedy = np.arange(num_blocks, dtype=np.int32)[None], (Sampling(),) * len(rows_R)
    return Rows(tokens_T, positions_T, np.zeros_like(tokens_T), table, [end], rows_R, greedy, ((),) * len(rows_R))


@value
class Shared:
    """A second extent of a run's weights, which experts share: the weights at these `places` of the program's order
    are there, all others in the expert's own.
    """

    weights: Buffer
    places: tuple[int, ...]


@value
class Variants:
    """The own weights of the other experts whose sequences are in a run: their extents and offsets. All share the same
    base (`Shared`). `of_B`: whose weights each sequence has: 0, those of the binding itself; n, those of number n - 1.
    """

    weights: tuple[Buffer, ...]
    offsets: tuple[tuple[int, ...], ...]
    of_B: Ints


@value
class Binding:
    """What fixes a Program for one run: weights (extent and offsets in the program's order), KV blocks, rows.

    `kv` is the whole KV slab, cut into blocks of `block_bytes`, numbered from 0. `shared`: where some of the weights
    are not in `weights` but in another extent of the same tier; their offsets are in that one. `variants`: where
    sequences differ in the others, which is for executables that mix them.
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
        """All memory that a run is given."""
        given: tuple[Buffer, ...] = self.weights, self.kv
        if self.shared is not None:
            given = (*given, self.shared.weights)
        return given if self.variants is None else (*given, *self.variants.weights)


@value
class Limits:
    """The most that a step may have: sequences, tokens, and positions of one sequence."""

    sequences: int
    tokens: int
    context: int


class Executable(Protocol):
    """A program that a device has loaded."""

    @property
    def program(self) -> Program:
        """The program that was loaded."""

    def mixes(self, shared: Sequence[int]) -> bool:
        """Whether sequences of one run may differ in all weights but those at these places of the program's order."""


@value
class Span:
    """When an event's work began and ended, in seconds on the device's clock."""

    start_s: float
    end_s: float


class Device(Protocol):
    """Holds tiers and runs programs. Calls return at once; work happens on lanes, in order within a lane.

    Work starts when its lane is free and every event in `after` is done; if one of those failed, it fails too, with the
    same failure. An event is pending, then done or failed, for ever.
    """

    @property
    def spec(self) -> MachineSpec:
        """Tiers nearest first, links, launch costs; frozen."""

    def reserve(self, tier: str, size_bytes: int, touched: bool = True) -> Buffer:
        """Take memory once, at start, aligned to 4096 bytes. Raises CapacityError.

        `touched`: its pages are there at once. Else it counts as taken, but where it is the system's memory pages come
        when they are first written, each at the cost of a page fault.
        """

    def give_back(self, buffer: Buffer) -> None:
        """Return unused memory to the system until it is written again; its contents are lost, and it stays reserved.

        Nobody may read or write it meanwhile. A GPU gives back whole slabs alone; where others have its memory when it
        is needed again, `place` raises CapacityError, and a run's event fails with one.
        """

    def place(self, dst: Buffer, tensors: Sequence[tuple[int, int]]) -> None:
        """Say which tensors, (offset, size) in order, a buffer will hold that is about to be filled.

        A device whose kernels need aligned weights may put them elsewhere in the buffer; runs go on naming these
        offsets. Holds until an overlapping buffer is placed. Raises ValueError when not all can be aligned.
        """

    def copy(
        self, dst: Buffer, src: Buffer, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Copy between tiers on that link's lane; of `parts`, as fetch has them, only those.

        Sizes must be equal (ValueError).
        """

    def copy_all(self, dst: Buffer, src: Buffer, pieces: Sequence[tuple[int, int]], issued: list[Event]) -> None:
        """Copy pieces, (offset, size) in both, one by one: each waits for the one before, the first for the last
        of `issued`. Appends an event for each to `issued` as it goes, as `copy_pieces` does.
        """

    def fetch(
        self, dst: Buffer, source: FileRange, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """Read a file range into a slab on the disk lane; of `parts`, offsets and sizes in whole blocks, only those.

        The event fails with TransferError if the file is not as the range describes it or the read fails.
        """

    def load(self, program: Program) -> Executable:
        """Bind kernels or price regions. Raises UnsupportedError naming the op that this device has no kernel for."""

    def expect(self, exe: Executable, limits: Limits, block_bytes: int, shared: Sequence[int] | None = None) -> None:
        """Announce steps within these limits, on KV blocks of this size, so that a device can compile for them.

        `shared`: steps of several experts at once, which have the weights at these places of the program's order in
        common. Returns at once; only the first such step's time depends on it.
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
        """Run up to `steps` steps. A gate makes every region of that stage wait for an event.

        With steps > 1 (only when T == B == R, all decoding) each next step feeds the sampled tokens back; it stops
        early after a step in which any row drew one of its end_ids, or when it is interrupted.
        """

    def interrupt(self) -> None:
        """End the run under way, or else the next one, after the step that it is in: something new is to be decided.

        The only method that any thread may call at any time. Modelled: that step is the one which modelled time is in.
        """

    def tokens(self, event: Event) -> I32:
        """Sampled tokens [steps done, R] of a finished run; [1, 0] of a program that draws none. Raises its failure."""

    def logits(self, event: Event, rows: Sequence[int]) -> F32:
        """Logits [rows, V], as the model gave them, of these sampled rows (0 to R - 1) of a finished run of one step.

        They are there until the next run or inspection is asked for: of any other run, and of one of several steps,
        ValueError. Raises the event's failure, UnsupportedError on a device that computes no numbers.
        """

    def vectors(self, event: Event, rows: Sequence[int]) -> F32:
        """Vectors [rows, D] that a program without a head gives of the same rows, under the same conditions: what its
        last norm made of them. Of a program that draws tokens ValueError, as there for logits of one that does not.
        """

    def inspect(self, exe: Executable, binding: Binding) -> Mapping[str, npt.NDArray[np.float32]]:
        """Run one step with nothing else going on and return every value that the program stores, by name, as float32.

        For `coterie diff` and tests. Load the program with unshared buffers (compile_graph(share_buffers=False)).
        Raises UnsupportedError on a device that computes no numbers.
        """

    def synthetic(self) -> bool:
        """True when tokens are made up because this device computes no numbers. Reports must say so."""

    def changes_logits(self) -> bool:
        """True when it heeds `Sampling.changes`; else a run that has any is refused with ValueError."""

    def now(self) -> float:
        """Seconds on this device's clock."""

    def done(self, event: Event) -> bool:
        """True when the event is done or failed. Never blocks."""

    def failure(self, event: Event) -> Exception | None:
        """Why a finished event failed, or None."""

    def span(self, event: Event) -> Span:
        """When a finished event's work began and ended."""

    def wait_any(self, events: Sequence[Event], until: float | None = None) -> None:
        """Return when an event is finished or the clock reaches `until`. Real: block. Modelled: move the clock."""

    def close(self) -> None:
        """Stop lanes and give memory back."""


class Waits(Protocol):
    """What events can be waited for on."""

    def done(self, event: Event) -> bool:
        """As Device.done."""

    def wait_any(self, events: Sequence[Event], until: float | None = None) -> None:
        """As Device.wait_any, which may return early."""


def wait_for(device: Waits, event: Event) -> None:
    """Return when an event is done or failed."""
    while not device.done(event):
        device.wait_any([event])


class Copies(Protocol):
    """What can copy."""

    def copy(
        self, dst: Buffer, src: Buffer, after: Iterable[Event] = (), parts: Sequence[tuple[int, int]] = ()
    ) -> Event:
        """As Device.copy."""


def copy_pieces(
    device: Copies, dst: Buffer, src: Buffer, pieces: Sequence[tuple[int, int]], issued: list[Event]
) -> None:
    """Device.copy_all by one call of `copy` for each piece."""
    for offset, size_bytes in pieces:
        issued.append(device.copy(dst.view(offset, size_bytes), src.view(offset, size_bytes), issued[-1:]))

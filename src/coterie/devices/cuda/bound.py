"""A program's rows on the GPU for steps of one bucket, and what each run copies: one block down, one block up.

    packet (pinned)     rows | feed | state | tables | shares | tokens ... ends |     -> copied down -> fixed, inputs
    on the GPU          fixed: rows, feed, state, tables, shares, stops: launches and captures hold their addresses
                        inputs, kept: reached through words of rows and feed, so they may move
    packet (pinned)     state | tokens kept                                            <- copied up

So a switch, another context or another batch rewrites words, and captures nothing; a run like the previous one writes
only its inputs. Each run has a packet of its own, which the next run cannot overwrite. Packets apart, all this is used
by one thread at a time: the one that queues on the compute lane.
Knows nothing about lanes, gates or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from coterie.core.errors import CapacityError
from coterie.core.shapes import Sizes
from coterie.core.values import value
from coterie.devices.cuda.driver import Captured, Driver, Launch, Stream, first_line, take
from coterie.devices.cuda.inputs import Addresses, Inputs, Run
from coterie.devices.cuda.kernels import Kernels
from coterie.devices.cuda.packet import Packet, Packets, Part, parts_of
from coterie.devices.real.host_memory import Bytes
from coterie.devices.real.step import LoweredExecutable
from coterie.kernels.cpu import FEED, I64, ROW_WORDS
from coterie.kernels.triton.bucket import Bucket, stops_of
from coterie.kernels.triton.tiles import power_of_two

Array: TypeAlias = npt.NDArray[np.generic]

LEVERS = ("lower --near or --kv", "ask with shorter prompts")
STATE_WORDS, STOP = 4, 2  # done, ended, stop, and padding to 16 bytes


class Grown:
    """GPU memory that grows by powers of two; its contents do not survive from one run to the next."""

    def __init__(self, driver: Driver, what: str) -> None:
        self._driver, self._what = driver, what
        self.tensor: torch.Tensor | None = None

    def at_least(self, size_bytes: int, stream: Stream) -> torch.Tensor:
        """Memory of at least this size. Raises CapacityError, and then keeps the size that it had."""
        if self.tensor is None:
            self.tensor = self._take(size_bytes)
        elif self.tensor.numel() < size_bytes:
            self._driver.wait(self._driver.mark(stream))  # until then, earlier runs use it
            before, self.tensor = self.tensor.numel(), None
            try:
                self.tensor = self._take(size_bytes)
            except CapacityError:
                self.tensor = self._take(before)
                raise
        return self.tensor

    def _take(self, size_bytes: int) -> torch.Tensor:
        return take(self._driver, self._what, power_of_two(max(size_bytes, 16)), LEVERS)


class Shared:
    """What all bounds share: the driver, the kernels, the packets, and memory for stored values and scratch."""

    def __init__(self, driver: Driver, kernels: Kernels) -> None:
        self.driver, self.kernels = driver, kernels
        # A hook for a step's launches, called when they are found and before the first is launched.
        self.before_launch: Callable[[Sequence[Launch]], None] = lambda launches: None
        self.packets = Packets(driver)
        self.workspace = Grown(driver, "the values of a step")
        self.scratch = Grown(driver, "scratch of kernels")
        self.capture_failure = ""  # why steps are no longer captured, once a capture has failed
        self.walk_failures: dict[str, str] = {}  # kinds of runs that are not walked in one launch -> the first reason


# Weights and pages, the layout of inputs, and the addresses of inputs, kept tokens and stored values.
MadeOf: TypeAlias = tuple[Addresses, Inputs, int, int, int]
Pairs: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]


@value
class Ready:
    """A run that is ready to be queued: what its words were made from, and where its inputs and kept tokens are."""

    made_of: MadeOf
    inputs: torch.Tensor
    kept: torch.Tensor
    kept_bytes: int


@value
class _Copies:
    """The copies down and up for a packet."""

    packet: Packet
    made_of: MadeOf
    kept_bytes: int
    down: Pairs
    up: Pairs

    def is_for(self, packet: Packet, ready: Ready) -> bool:
        """Whether these copies use the same memory."""
        return self.packet is packet and self.made_of == ready.made_of and self.kept_bytes == ready.kept_bytes


class Bound:
    """Rows of an executable for steps of a bucket; `mixes`: for steps whose sequences differ in weights."""

    def __init__(self, exe: LoweredExecutable, bucket: Bucket, shared: Shared, mixes: bool = False) -> None:
        self.exe, self.bucket, self._shared = exe, bucket, shared
        self._sizes = Sizes(bucket.tokens, bucket.sequences, bucket.sampled, 0, 0)
        self._plan, self._total_bytes = exe.plan(self._sizes)
        rows = exe.template.rows()
        stops = stops_of(rows)
        words = {"rows": rows.size, "feed": len(FEED), "state": STATE_WORDS // 2, "tables": exe.template.table_words}
        shareable = exe.shareable if mixes else None
        words["shares"] = shareable.words(bucket.sequences, bucket.sampled) if shareable else 0
        parts, self._sent_bytes = parts_of({name: 8 * count for name, count in words.items()})
        self._fixed = take(shared.driver, "a program's rows", self._sent_bytes + 8 * len(stops) + 16, LEVERS)
        self._sent = np.zeros(self._sent_bytes, np.uint8)  # what each run sends: the host's rows, feed and state
        self._rows = _host_part(self._sent, parts["rows"]).reshape(rows.shape)
        self._rows[:] = rows
        self._feed = _host_part(self._sent, parts["feed"])
        self._state = _host_part(self._sent, parts["state"]).view(np.int32)
        self._tables = _host_part(self._sent, parts["tables"])
        self._shares = _host_part(self._sent, parts["shares"])
        self._stored = np.array([self._plan[name] for name in exe.template.stored], np.int64)
        self.rows, self.feed, state, tables, shares_at = (_part(self._fixed, parts[name]) for name in words)
        exe.template.put_tables(self._rows, tables.data_ptr())
        self._shares_at = shares_at.data_ptr()
        self.rows = self.rows.view(torch.int64).view(-1, ROW_WORDS)
        self.feed = self.feed.view(torch.int64)
        self.state, self._state_bytes = state.view(torch.int32), state
        self.stop = state[4 * STOP : 4 * STOP + 4]
        self._stops = stops
        self.stops = self._fixed[self._sent_bytes : self._sent_bytes + 8 * len(stops)].view(torch.int64)
        self._inputs = Grown(shared.driver, "a step's inputs")
        self._kept = Grown(shared.driver, "tokens drawn")
        self._input_layout: Inputs | None = None
        self._written: MadeOf | None = None  # what the words to send were made from
        self._mixed: tuple[object, ...] = ()  # the same for the words of shares
        self._copies: _Copies | None = None
        self._is_new = True
        self._launches: list[list[Launch]] = []
        self._step: list[Launch] = []
        self._captured: Captured = None
        self.has_run = False  # a step was launched, so its kernels are compiled and loaded: it may be captured
        self._walk: Launch | None = None
        self._walked: torch.Tensor | None = None
        self._walks = True

    def make_ready(self, run: Run, stream: Stream) -> Ready:
        """Prepare a run: its memory, its words and its bucket's launches, which may first have to be compiled."""
        shared, given = self._shared, self._inputs_of(run)
        kept_bytes = 4 * run.steps * run.drawn
        at = self._inputs.at_least(given.size_bytes, stream)
        kept = self._kept.at_least(kept_bytes, stream)
        workspace = shared.workspace.at_least(self._total_bytes, stream)
        made_of = run.at, given, at.data_ptr(), kept.data_ptr(), workspace.data_ptr()
        if made_of != self._written:
            self._fill(*made_of)
            self._written = made_of
        self._put_shares(run)
        self._prepare(stream)
        self._feed[FEED["steps"]] = run.steps
        return Ready(made_of, at, kept, kept_bytes)

    def put(self, ready: Ready, stream: Stream, stop: bool) -> Packet:
        """Queue the words of the run made ready last; returns the packet that its tokens will come back in."""
        shared, given, sent_bytes = self._shared, ready.made_of[1], self._sent_bytes
        packet = shared.packets.take(sent_bytes + given.size_bytes, 4 * STATE_WORDS + ready.kept_bytes)
        try:
            if self._copies is None or not self._copies.is_for(packet, ready):
                self._copies = self._copies_for(packet, ready)
            self._state[STOP] = stop
            packet.sent[:sent_bytes] = self._sent
            packet.sent[sent_bytes : sent_bytes + given.size_bytes] = given.bytes
            shared.driver.copy_words(self._copies.down, stream)
        except BaseException:
            shared.packets.abandon(packet, stream)
            raise
        return packet

    def launches(self, index: int) -> list[Launch]:
        """Launches of a row."""
        return self._launches[index]

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @property
    def end(self) -> Launch:
        """The launch that ends a step: tokens are kept and fed back."""
        return self._step[-1]

    @property
    def step(self) -> Sequence[Launch]:
        """Launches of a whole step, available after the first `make_ready`."""
        return self._step

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed from a capture, in microseconds each."""
        return self._captured is not None

    def queue_steps(self, steps: int, stream: Stream, captured: bool) -> None:
        """Queue whole steps, launch by launch or by replaying a captured one.

        A step is captured only after it has been launched once, since the first launch compiles and loads kernels.
        """
        driver = self._shared.driver
        if steps and captured and not self.has_run:
            driver.launch(stream, self._step)
            self.has_run, steps = True, steps - 1
        if steps and captured and self._captured is None and not self._shared.capture_failure:
            try:
                self._captured = driver.capture(stream, self._step)
            except Exception as error:  # results are the same without a capture; a remark reports it
                self._shared.capture_failure = first_line(error)
        if steps and captured and self._captured is not None:
            driver.replay(stream, self._captured, steps)
            return
        for _ in range(steps):
            driver.launch(stream, self._step)

    def queue_walk(self, stream: Stream) -> bool:
        """Queue the rest of a run as one launch; False if that is impossible: `Shared.walk_failures` says why."""
        if not self._walks:
            return False
        walk_failures, those = self._shared.walk_failures, f"up to {self.bucket.tokens} sequences"
        try:
            self._walk = self._walk or self._find_walk(stream)
            self._shared.driver.launch(stream, [self._walk])
        except CapacityError as error:  # the next run may find room
            walk_failures.setdefault(f"some runs of {those}", first_line(error))
            return False
        except Exception as error:  # results are the same without a walk; a remark reports it
            self._walks = False
            walk_failures.setdefault(those, first_line(error))
        return self._walks

    def take_back(self, stream: Stream) -> None:
        """Queue the copies that bring up the tokens of the run that was put last."""
        if self._copies is not None:
            self._shared.driver.copy_words(self._copies.up, stream)

    @property
    def stored(self) -> Mapping[str, int]:
        """Offset in the workspace of each stored value."""
        return self._plan

    def _inputs_of(self, run: Run) -> Inputs:
        """The inputs of a run, in the previous run's layout if sizes are the same."""
        rows = run.rows
        key = Inputs.key_of(rows, self.exe.program.kv.state_blocks(run.at.block_bytes))
        if self._input_layout is None or self._input_layout.key != key:
            self._input_layout = Inputs(key)
        self._input_layout.put(rows)
        return self._input_layout

    def _copies_for(self, packet: Packet, ready: Ready) -> _Copies:
        """The tensor slices to copy between: making one takes longer than writing it."""
        sent_bytes, given_bytes, state_bytes = self._sent_bytes, ready.made_of[1].size_bytes, 4 * STATE_WORDS
        given, kept_bytes = packet.down[sent_bytes : sent_bytes + given_bytes], ready.kept_bytes
        down = [(self._fixed[:sent_bytes], packet.down[:sent_bytes]), (ready.inputs[:given_bytes], given)]
        up = [(packet.up[:state_bytes], self._state_bytes)]
        if kept_bytes:
            up.append((packet.up[state_bytes : state_bytes + kept_bytes], ready.kept[:kept_bytes]))
        return _Copies(packet, ready.made_of, kept_bytes, down, up)

    def _fill(self, at: Addresses, given: Inputs, inputs: int, kept: int, workspace: int) -> None:
        """Write all words of rows and feed that depend on a run, except its number of steps."""
        template = self.exe.template
        named = given.addresses(inputs) | given.named
        named |= {"kv": at.kv, "block_bytes": at.block_bytes}
        named["Z"] = self.exe.program.kv.tokens_per_block(at.block_bytes)
        template.put_named(self._rows, np.array([named[name] for name in template.named], np.int64))
        template.put_weights(self._rows, at.weights, self._tables)
        template.put_stored(self._rows, self._stored + workspace)
        feed = {name: named[name] for name in ("tokens", "positions", "rows", "T", "R", "ends", "first_end")}
        feed |= {"drawn": workspace + self._plan[self.exe.drawn], "kept": kept} if self.exe.drawn else {"R": 0}
        for name, word in feed.items():
            self._feed[FEED[name]] = word

    def _put_shares(self, run: Run) -> None:
        """Give the rows of each share the weights of its expert."""
        weights, shares, shareable = run.at.per_expert, run.rows.shares, self.exe.shareable
        if weights is None or shares is None or shareable is None:
            return
        mixed = weights, *shares.key
        if mixed != self._mixed:
            shareable.put(self._rows, weights.addresses_GW, weights.is_shared_W, shares, self._shares, self._shares_at)
            self._mixed = mixed

    def _prepare(self, stream: Stream) -> None:
        """Find the launches, once the rows are complete for the first time."""
        if not self._is_new:
            return
        shared = self._shared
        upload(shared.driver, shared.packets, self.stops.view(torch.uint8), self._stops, stream)
        scratch = shared.scratch.at_least(shared.kernels.scratch_bytes(self._rows, self.bucket), stream)
        kernels = shared.kernels
        self._launches = [
            kernels.row(self._rows, self.rows, index, self.bucket, scratch) for index in range(len(self._rows))
        ]
        end = kernels.feed(self.feed, self.state, self.rows, self.stops)
        self._step = [*(launch for row in self._launches for launch in row), end]
        shared.before_launch(self._step)
        self._is_new = False

    def _find_walk(self, stream: Stream) -> Launch:
        """Upload the plan of a walk. Raises UnsupportedError, CapacityError."""
        shared = self._shared
        plan = shared.kernels.plan(self._rows, self.rows, self.bucket, shared.scratch.at_least(1, stream))
        self._walked = take(shared.driver, "phases of a program", plan.words.nbytes, LEVERS)
        upload(shared.driver, shared.packets, self._walked, plan.words, stream)
        words = self._walked.view(torch.int64)
        return plan.walk(words, self.feed, self.state, self.stops, shared.driver.facts.multiprocessors)


def upload(driver: Driver, packets: Packets, dst: torch.Tensor, values: Array, stream: Stream) -> None:
    """Copy numbers to the GPU and wait; for data that is written once."""
    if values.nbytes:
        packet = packets.take(values.nbytes, 0)
        try:
            packet.put(0, values)
            driver.copy_words([(dst, packet.down[: values.nbytes])], stream)
            driver.wait(driver.mark(stream))
        except BaseException:
            packets.abandon(packet, stream)
            raise
        packets.give_back(packet)


def _host_part(memory: Bytes, part: Part) -> I64:
    return memory[part.start : part.start + part.size_bytes].view(np.int64)


def _part(memory: torch.Tensor, part: Part) -> torch.Tensor:
    return memory[part.start : part.start + part.size_bytes]

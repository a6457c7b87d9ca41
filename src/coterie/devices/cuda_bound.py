"""A program's rows on the GPU for steps of one bucket, and what a run puts there: one block down, one block up.

    packet (pinned)     rows | feed | state | tokens positions ... settings ends |     -> copied down -> fixed, inputs
    on the GPU          fixed: rows, feed, state, stops: launches and captured steps hold their addresses
                        inputs, kept: reached through words of rows and feed, so they may move
    packet (pinned)     state | tokens kept                                            <- copied up

So a switch, another context or another batch rewrites words, and captures nothing. A run has its own packet, which the
next one cannot overwrite. Used by the compute lane's thread alone, but for packets.
Knows nothing about lanes, gates or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from coterie.core.errors import CapacityError
from coterie.core.shapes import Sizes
from coterie.device import Binding
from coterie.devices.cuda_driver import Captured, Driver, Launch, Stream, first_line, take
from coterie.devices.cuda_kernels import Kernels
from coterie.devices.cuda_packet import Packet, Packets, Place, places_of
from coterie.devices.host_memory import Bytes
from coterie.devices.step import INPUTS, LoweredExecutable, StepRows, encode_sampling
from coterie.kernels.cpu import FEED, I64, ROW_WORDS, SETTING_WORDS
from coterie.kernels.triton.bucket import Bucket, stops_of
from coterie.kernels.triton.tiles import power_of_two

Array: TypeAlias = npt.NDArray[np.generic]

LEVERS = ("lower --near or --kv", "ask with shorter prompts")
STATE_WORDS, STOP = 4, 2  # done, ended, stop; and one to keep to 16 bytes
SPAN = 256  # contexts are rounded to so many positions, doubled: each bucket is compiled once


def bucket_of(sizes: Sizes, context: int) -> Bucket:
    """The bucket of a step; only steps of one token a sequence count as decode."""
    tokens, sequences = power_of_two(sizes.T), power_of_two(sizes.B)
    if sizes.T != sizes.B:
        tokens = max(tokens, 2)
        sequences = min(sequences, tokens - 1)
    return Bucket(tokens, sequences, power_of_two(sizes.R), SPAN * power_of_two(-(-context // SPAN)))


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a run's weights and pages are on the GPU."""

    weights: I64
    kv: int


class Grown:
    """Memory of the GPU that grows by powers of two, and holds nothing from one run to the next."""

    def __init__(self, driver: Driver, what: str) -> None:
        self._driver, self._what = driver, what
        self.tensor: torch.Tensor | None = None

    def at_least(self, size_bytes: int, stream: Stream) -> torch.Tensor:
        """With room for so many bytes. Raises CapacityError, and then there is as much as there was."""
        if self.tensor is None:
            self.tensor = self._take(size_bytes)
        elif self.tensor.numel() < size_bytes:
            self._driver.wait(self._driver.mark(stream))  # earlier runs use it
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
    """What all bounds use in turn: the driver, the kernels, the packets, stored values and scratch."""

    def __init__(self, driver: Driver, kernels: Kernels) -> None:
        self.driver, self.kernels = driver, kernels
        self.packets = Packets(driver)
        self.workspace = Grown(driver, "the values of a step")
        self.scratch = Grown(driver, "scratch of kernels")
        self.uncaptured = ""  # why steps are not captured, when one could not be
        self.unwalked: dict[str, str] = {}  # steps that are not walked in one launch, and why the first were not


class Bound:
    """Rows of an executable for steps of a bucket."""

    def __init__(self, exe: LoweredExecutable, bucket: Bucket, shared: Shared) -> None:
        self.exe, self.bucket, self._shared = exe, bucket, shared
        self._sizes = Sizes(bucket.tokens, bucket.sequences, bucket.sampled, 0, 0)
        self._plan, self._total_bytes = exe.plan(self._sizes)
        rows = exe.template.rows()
        stops = stops_of(rows)
        words = {"rows": rows.size, "feed": len(FEED), "state": STATE_WORDS // 2}
        places, self._sent_bytes = places_of({name: 8 * count for name, count in words.items()})
        self._fixed = take(shared.driver, "a program's rows", self._sent_bytes + 8 * len(stops) + 16, LEVERS)
        self._sent = np.zeros(self._sent_bytes, np.uint8)  # what each run sends: the host's rows, feed and state
        self._rows = _host_part(self._sent, places["rows"]).reshape(rows.shape)
        self._rows[:] = rows
        self._feed = _host_part(self._sent, places["feed"])
        self._state = _host_part(self._sent, places["state"]).view(np.int32)
        self._stored = np.array([self._plan[name] for name in exe.template.stored], np.int64)
        self.rows, self.feed, state = (_part(self._fixed, places[name]) for name in words)
        self.rows = self.rows.view(torch.int64).view(-1, ROW_WORDS)
        self.feed = self.feed.view(torch.int64)
        self.state, self._state_bytes = state.view(torch.int32), state
        self.stop = state[4 * STOP : 4 * STOP + 4]
        self._stops = stops
        self.stops = self._fixed[self._sent_bytes : self._sent_bytes + 8 * len(stops)].view(torch.int64)
        self._inputs = Grown(shared.driver, "a step's inputs")
        self._kept = Grown(shared.driver, "tokens drawn")
        self._is_new = True
        self._launches: list[list[Launch]] = []
        self._step: list[Launch] = []
        self._captured: Captured = None
        self.has_run = False  # a step was launched, so its kernels are compiled and loaded: it may be captured
        self._walk: Launch | None = None
        self._walked: torch.Tensor | None = None
        self._walks = True

    def put(
        self, binding: Binding, step: StepRows, steps: int, addresses: Addresses, stream: Stream, stop: bool
    ) -> Packet:
        """Queue what makes everything ready for a run, and return the packet in which its tokens will come back."""
        shared, driver = self._shared, self._shared.driver
        inputs = _arrays(step)
        places, input_bytes = places_of({name: array.nbytes for name, array in inputs.items()})
        kept_bytes = 4 * steps * step.sizes.R
        packet = shared.packets.take(self._sent_bytes + input_bytes, 4 * STATE_WORDS + kept_bytes)
        try:
            at = self._inputs.at_least(input_bytes, stream)
            kept = self._kept.at_least(kept_bytes, stream)
            workspace = shared.workspace.at_least(self._total_bytes, stream)
            self._fill(binding, step, steps, addresses, at, places, kept, workspace)
            self._prepare(stream)
            self._state[STOP] = stop
            packet.put(0, self._sent)
            for name, array in inputs.items():
                packet.put(self._sent_bytes + places[name].start, array)
            pairs = [(self._fixed[: self._sent_bytes], packet.down[: self._sent_bytes])]
            if input_bytes:
                pairs.append((at[:input_bytes], packet.down[self._sent_bytes : self._sent_bytes + input_bytes]))
            driver.copy_words(pairs, stream)
        except BaseException:
            with suppress(Exception):  # a GPU that is gone reads the packet no more
                driver.wait(driver.mark(stream))
            shared.packets.give_back(packet)
            raise
        return packet

    def launches(self, index: int) -> list[Launch]:
        """What launches a row."""
        return self._launches[index]

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    @property
    def end(self) -> Launch:
        """What ends a step: tokens are kept and fed back."""
        return self._step[-1]

    def queue_step(self, stream: Stream, captured: bool) -> None:
        """Queue a whole step, launch by launch or as it was captured.

        A step is captured when it has been launched once: kernels are compiled and loaded by their first launch.
        """
        driver = self._shared.driver
        if captured and self.has_run and self._captured is None and not self._shared.uncaptured:
            try:
                self._captured = driver.capture(stream, self._step)
            except Exception as error:  # captured or not, a step gives the same: a remark tells
                self._shared.uncaptured = first_line(error)
        if captured and self._captured is not None:
            driver.replay(stream, self._captured)
        else:
            driver.launch(stream, self._step)
            self.has_run = True

    def queue_walk(self, stream: Stream) -> bool:
        """Queue what is left of a run as one launch; False where that cannot be, and `Shared.unwalked` says why."""
        if not self._walks:
            return False
        unwalked, those = self._shared.unwalked, f"up to {self.bucket.tokens} sequences"
        try:
            self._walk = self._walk or self._find_walk(stream)
            self._shared.driver.launch(stream, [self._walk])
        except CapacityError as error:  # what has no room now may have it at the next run
            unwalked.setdefault(f"some runs of {those}", first_line(error))
            return False
        except Exception as error:  # walked or not, a run gives the same: a remark tells
            self._walks = False
            unwalked.setdefault(those, first_line(error))
        return self._walks

    def take_back(self, packet: Packet, steps: int, sampled: int, stream: Stream) -> None:
        """Queue the copies that bring a run's tokens up."""
        driver, state_bytes, kept_bytes = self._shared.driver, 4 * STATE_WORDS, 4 * steps * sampled
        pairs, kept = [(packet.up[:state_bytes], self._state_bytes)], self._kept.tensor
        if kept_bytes and kept is not None:
            pairs.append((packet.up[state_bytes : state_bytes + kept_bytes], kept[:kept_bytes]))
        driver.copy_words(pairs, stream)

    @property
    def stored(self) -> Mapping[str, int]:
        """Where in the workspace each stored value begins."""
        return self._plan

    def _fill(
        self,
        binding: Binding,
        step: StepRows,
        steps: int,
        addresses: Addresses,
        inputs: torch.Tensor,
        places: dict[str, Place],
        kept: torch.Tensor,
        workspace: torch.Tensor,
    ) -> None:
        """Write all words that a run gives."""
        template, sizes = self.exe.template, step.sizes
        named = {name: inputs.data_ptr() + place.start for name, place in places.items()}
        named |= {"kv": addresses.kv, "block_bytes": binding.block_bytes, "T": sizes.T, "B": sizes.B, "R": sizes.R}
        named["table_width"] = step.inputs["block_tables"].shape[1]
        named["Z"] = self.exe.program.kv.tokens_per_block(binding.block_bytes)
        template.put_named(self._rows, np.array([named[name] for name in template.named], np.int64))
        template.put_weights(self._rows, addresses.weights)
        template.put_stored(self._rows, self._stored + workspace.data_ptr())
        feed = {name: named[name] for name in ("tokens", "positions", "rows", "T", "R", "ends", "first_end")}
        feed |= {"steps": steps, "drawn": workspace.data_ptr() + self._plan[self.exe.drawn], "kept": kept.data_ptr()}
        for name, word in feed.items():
            self._feed[FEED[name]] = word

    def _prepare(self, stream: Stream) -> None:
        """Find the launches, when the rows are complete for the first time."""
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
        self._is_new = False

    def _find_walk(self, stream: Stream) -> Launch:
        """Put on the GPU what a walk finds there. Raises UnsupportedError, CapacityError."""
        shared = self._shared
        plan = shared.kernels.plan(self._rows, self.rows, self.bucket, shared.scratch.at_least(1, stream))
        self._walked = take(shared.driver, "phases of a program", plan.words.nbytes, LEVERS)
        upload(shared.driver, shared.packets, self._walked, plan.words, stream)
        words = self._walked.view(torch.int64)
        return plan.walk(words, self.feed, self.state, self.stops, shared.driver.facts.multiprocessors)


class Binder:
    """Keeps bounds by executable and bucket, those used last."""

    def __init__(self, shared: Shared, most: int = 64) -> None:
        self._shared, self._most = shared, most
        self._kept: dict[tuple[int, Bucket], Bound] = {}

    def bind(self, exe: LoweredExecutable, bucket: Bucket, stream: Stream) -> Bound:
        """The bound of an executable and a bucket. Raises CapacityError."""
        key = id(exe), bucket
        bound = self._kept.pop(key, None) or Bound(exe, bucket, self._shared)
        self._kept[key] = bound  # the last in order
        if len(self._kept) > self._most:
            self._shared.driver.wait(self._shared.driver.mark(stream))
            del self._kept[next(iter(self._kept))]
        return bound

    def forget(self) -> None:
        """Let all of them go."""
        self._kept.clear()


def upload(driver: Driver, packets: Packets, dst: torch.Tensor, values: Array, stream: Stream) -> None:
    """Copy numbers to the GPU and wait for it; for what is written once."""
    if values.nbytes:
        packet = packets.take(values.nbytes, 0)
        packet.put(0, values)
        driver.copy_words([(dst, packet.down[: values.nbytes])], stream)
        driver.wait(driver.mark(stream))
        packets.give_back(packet)


def _arrays(step: StepRows) -> dict[str, Array]:
    """The inputs of a run, as the GPU is given them."""
    ends = step.end_ids or ((),) * step.sizes.R
    firsts = np.cumsum([0, *(len(one) for one in ends)], dtype=np.int32)
    arrays: dict[str, Array] = {name: step.inputs[name] for name in INPUTS}
    arrays["sampling"] = encode_sampling(step.sampling).reshape(-1, SETTING_WORDS)
    arrays["ends"] = np.array([token for one in ends for token in one], np.int32)
    arrays["first_end"] = firsts
    return arrays


def _host_part(memory: Bytes, place: Place) -> I64:
    return memory[place.start : place.start + place.size_bytes].view(np.int64)


def _part(memory: torch.Tensor, place: Place) -> torch.Tensor:
    return memory[place.start : place.start + place.size_bytes]

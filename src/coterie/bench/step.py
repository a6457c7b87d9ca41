"""One model on one CPU device, and steps of it that can be run again and again: timed, or counted.

Knows nothing about requests: a step's rows are made up, with no end tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from coterie.api.assemble import page_bytes
from coterie.device import Binding, Buffer, Event, Rows, Sampling
from coterie.devices.cpu import CpuDevice, Orchestration
from coterie.devices.cpu_step import CpuExecutable
from coterie.graph.compile import compile_graph
from coterie.graph.cost import program_cost
from coterie.kernels.cpu import Counters
from coterie.memory.transfer import fetch_layout
from coterie.models.model import Model

TOKEN_BYTES = 4  # a drawn token, int32


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is repeated: the same rows at the same positions, so each run does the same work."""

    device: CpuDevice
    exe: CpuExecutable
    binding: Binding

    def seconds(self) -> float:
        """Run it once; from the call to its tokens in Python."""
        start = perf_counter()
        event = self.device.run(self.exe, self.binding)
        wait(self.device, event)
        self.device.tokens(event)
        return perf_counter() - start

    def counted(self) -> Counters:
        """Run it once; what the kernels counted."""
        self.device.reset_counters()
        self.seconds()
        return self.device.counters()

    def intermediate_bytes(self, counted: Counters) -> int:
        """Of the bytes that kernels stored, what is left without KV pages and drawn tokens: the intermediates."""
        sizes = self.binding.rows.sizes
        pages = program_cost(self.exe.program, sizes).kv_write_bytes
        return counted.stored_bytes - pages - TOKEN_BYTES * sizes.R


class Loaded:
    """A model's weights and KV pages for one sequence in a device's memory. Raises CapacityError, TransferError."""

    def __init__(self, model: Model, orchestration: Orchestration, threads: int | None, max_tokens: int) -> None:
        self.device = CpuDevice(threads=threads, orchestration=orchestration)
        try:
            tier = self.device.spec.run_tier
            self.weights: Buffer = self.device.reserve(tier, model.layout.size_bytes)
            self._block_bytes = page_bytes(model.kv)
            self._pages = -(-max_tokens // model.kv.tokens_per_block(self._block_bytes))
            self._kv = self.device.reserve(tier, self._pages * self._block_bytes)
            self._model = model
            fetch(self.device, model, self.weights)
        except BaseException:
            self.close()
            raise

    def step(self, rule_set: str, first: int, count: int) -> Step:
        """A step of `count` tokens from position `first` on, of which the last is sampled."""
        exe = self.device.load(compile_graph(self._model.graph, rule_set))
        positions = np.arange(first, first + count, dtype=np.int32)
        rng = np.random.default_rng(first)
        rows = Rows(
            tokens_T=rng.integers(0, self._model.config.vocab_size, count, dtype=np.int32),
            positions_T=positions,
            sequence_T=np.zeros(count, np.int32),
            block_tables_BM=np.arange(self._pages, dtype=np.int32)[None],
            lengths_B=np.array([first + count], np.int32),
            rows_R=np.array([count - 1], np.int32),
            sampling=(Sampling(),),
        )
        offsets = self._model.layout.offsets(exe.program.weights)
        return Step(self.device, exe, Binding(self.weights, offsets, self._kv, self._block_bytes, rows))

    def close(self) -> None:
        """Give the memory back."""
        self.device.close()


def fetch(device: CpuDevice, model: Model, dst: Buffer) -> float:
    """Read all of a model's ranges into `dst`, with nothing else going on; seconds. Raises TransferError."""
    start = perf_counter()
    issued: list[Event] = []
    fetch_layout(device, model.layout, dst, issued)
    wait(device, issued[-1])
    failure = device.failure(issued[-1])
    if failure is not None:
        raise failure
    return perf_counter() - start


def wait(device: CpuDevice, event: Event) -> None:
    """Block until an event is finished."""
    while not device.done(event):
        device.wait_any([event])

"""One model on one device, and repeatable steps of it: timed, or on a CPU counted by the kernels' counters.

Knows nothing about requests: the inputs of a step are made up, without end tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, Self, TypeVar

import numpy as np

from coterie.device import F32, Binding, Buffer, Device, Event, Executable, Rows, Sampling, prompt_rows, wait_for
from coterie.devices.cpu.device import CpuDevice, Orchestration
from coterie.engine.assembly import page_bytes
from coterie.graph.compile import compile_graph
from coterie.graph.cost import Cost, program_cost
from coterie.kernels.cpu import Counters
from coterie.memory.transfer import fetch_layout
from coterie.models.model import Model

TOKEN_BYTES = 4  # a sampled token, int32

D = TypeVar("D", bound=Device)


@dataclass(frozen=True, slots=True)
class Step:
    """A repeatable step: the same rows at the same positions, so each run does the same work."""

    device: Device
    exe: Executable
    binding: Binding
    steps: int = 1

    def seconds(self) -> float:
        """Run once; seconds per step, from the call to the tokens in Python."""
        start = perf_counter()
        event = self.device.run(self.exe, self.binding, steps=self.steps)
        wait_for(self.device, event)
        self.device.tokens(event)
        return (perf_counter() - start) / self.steps

    def counted(self) -> Counters:
        """Run once; the counters of the CPU's kernels."""
        if not isinstance(self.device, CpuDevice):
            raise TypeError(f"{self.device.spec.name} counts nothing")
        self.device.reset_counters()
        self.seconds()
        return self.device.counters()

    def cost(self) -> Cost:
        """Flops and bytes of the first step."""
        return program_cost(self.exe.program, self.binding.rows.sizes)

    def intermediate_bytes(self, counted: Counters) -> int:
        """The bytes of intermediates: what kernels stored, minus KV cache and sampled tokens."""
        return counted.stored_bytes - self.cost().kv_write_bytes - TOKEN_BYTES * self.binding.rows.sizes.R


class Loaded(Generic[D]):
    """A model's weights, and KV pages for `batch` sequences of `max_tokens`, in the memory of a device.

    It owns `device` and closes it. Raises CapacityError, TransferError.
    """

    def __init__(self, model: Model, device: D, max_tokens: int, batch: int = 1) -> None:
        self.device = device
        try:
            tier = self.device.spec.run_tier
            self.weights: Buffer = self.device.reserve(tier, model.layout.size_bytes)
            self._block_bytes = page_bytes(model.kv)
            self._pages = model.kv.blocks_for(max_tokens, self._block_bytes)
            self._kv = self.device.reserve(tier, batch * self._pages * self._block_bytes)
            self._model = model
            fetch(self.device, model, self.weights)
        except BaseException:
            self.close()
            raise

    def logits(self, ids: Sequence[int], piece: int = 128) -> Iterator[F32]:
        """The logits after each token of one sequence [tokens, V], `piece` tokens at a time."""
        exe = self.device.load(compile_graph(self._model.graph, "cache"))
        offsets = self._model.layout.offsets(exe.program.weights)
        for first in range(0, len(ids), piece):
            rows = prompt_rows(ids[first : first + piece], self._pages, first, scored=True)
            event = self.device.run(exe, Binding(self.weights, offsets, self._kv, self._block_bytes, rows))
            wait_for(self.device, event)
            yield self.device.logits(event, range(len(rows.rows_R)))

    def step(self, rule_set: str, first: int, count: int, batch: int = 1, steps: int = 1) -> Step:
        """`steps` steps of `batch` sequences with `count` tokens each, from position `first` on; samples the last."""
        exe = self.device.load(compile_graph(self._model.graph, rule_set))
        rng = np.random.default_rng(first)
        rows = Rows(
            tokens_T=rng.integers(0, self._model.config.vocab_size, batch * count, dtype=np.int32),
            positions_T=np.tile(np.arange(first, first + count, dtype=np.int32), batch),
            sequence_T=np.repeat(np.arange(batch, dtype=np.int32), count),
            block_tables_BM=np.arange(batch * self._pages, dtype=np.int32).reshape(batch, self._pages),
            lengths_B=np.full(batch, first + count, np.int32),
            rows_R=np.arange(1, batch + 1, dtype=np.int32) * count - 1,
            sampling=(Sampling(),) * batch,
        )
        offsets = self._model.layout.offsets(exe.program.weights)
        binding = Binding(self.weights, offsets, self._kv, self._block_bytes, rows)
        return Step(self.device, exe, binding, steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory."""
        self.device.close()


def on_cpu(
    model: Model, orchestration: Orchestration, threads: int | None, max_tokens: int, batch: int = 1
) -> Loaded[CpuDevice]:
    """A model loaded on this machine's CPU. Raises CapacityError, TransferError."""
    return Loaded(model, CpuDevice(threads=threads, orchestration=orchestration), max_tokens, batch)


def fetch(device: Device, model: Model, dst: Buffer) -> float:
    """Read all of a model's ranges into `dst`, with nothing else running; seconds. Raises TransferError."""
    start = perf_counter()
    issued: list[Event] = []
    fetch_layout(device, model.layout, dst, issued)
    wait_for(device, issued[-1])
    failure = device.failure(issued[-1])
    if failure is not None:
        raise failure
    return perf_counter() - start


def prompt_ids(model: Model, count: int) -> list[int]:
    """A made-up prompt of `count` tokens, deterministic."""
    ids = np.random.default_rng(count).integers(0, model.config.vocab_size, max(count, 1))
    return [int(i) for i in ids]

"""Vectors: prompts whose result is a vector, not tokens: the first or last row of the last norm, or the mean of all.

    pieces of a prompt -> steps of the program without a head -> rows -> Pool -> vector

On a CPU, a row's bits depend neither on how the prompt is cut nor on the batch, and sums are in token order.
Knows nothing about schedules or what vectors are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from coterie.core.errors import CoterieError, DeviceError, RequestError, UnsupportedError
from coterie.device import F32, Device, Event, Executable
from coterie.graph.compile import compile_graph
from coterie.graph.vectors import vectors_graph

if TYPE_CHECKING:
    from coterie.engine.batch import Batch
    from coterie.engine.request import Request
    from coterie.engine.sequence import Sequence
    from coterie.engine.served import ServedExpert
    from coterie.graph.program import Program

Pooling: TypeAlias = Literal["first", "last", "mean"]


class Pool:
    """Reduces one prompt's rows to its vector, in token order; `vector` is set by `end`."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._sum_D = np.zeros(0)
        self._count = 0
        self.vector: tuple[float, ...] = ()

    def add(self, rows_RD: F32) -> None:
        """The next rows; added one at a time, so that the result does not depend on where they are cut."""
        for row_D in rows_RD[: 1 - self._count] if self._pooling == "first" else rows_RD:
            self._sum_D = row_D.astype(np.float64) if self._count == 0 else self._sum_D + row_D
            self._count += 1

    def end(self, last_D: F32) -> None:
        """The last row. Raises DeviceError if the vector is not finite."""
        if self._pooling != "last":
            self.add(last_D[None])
            last_D = (self._sum_D / self._count).astype(np.float32)
        if not np.isfinite(last_D).all():
            fact = "a vector holds values that are not numbers"
            raise DeviceError("vectors", fact, "the weights are damaged or overflow: get the checkpoint again")
        self.vector = tuple(last_D.tolist())


def without_head(program: Program) -> Program:
    """The program that gives vectors from the same weights. Raises UnsupportedError if the model has none."""
    return compile_graph(vectors_graph(program.graph), program.rule_set)


class Headless:
    """Experts with their programs stripped of the head, each compiled on first use."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._made: dict[int, tuple[Executable, Executable]] = {}  # by id of the full executable, which must stay alive

    def of(self, expert: ServedExpert) -> ServedExpert:
        """The expert with the program that gives vectors. Raises UnsupportedError."""
        exe = expert.exe
        if not exe.program.samples_tokens:
            return expert
        if id(exe) not in self._made:
            self._made[id(exe)] = exe, self._device.load(without_head(exe.program))
        return replace(expert, exe=self._made[id(exe)][1])

    def check(self, request: Request, expert: ServedExpert) -> None:
        """Raise RequestError for tokens from an expert without a head, UnsupportedError for unavailable vectors."""
        if request.pooling is None:
            if not expert.exe.program.samples_tokens:
                fact = "this expert only gives vectors (embeddings), and generates no text"
                raise RequestError(expert.expert_id, fact, "ask it for embeddings, or another expert")
            return
        if self._device.synthetic():
            fact = "vectors (embeddings) are numbers, and this device computes none"
            raise UnsupportedError("request", fact, "ask a real device, or a modelled one with real tokens")
        self.of(expert)


def apart(sequences: Iterable[Sequence]) -> tuple[list[Sequence], list[Sequence]]:
    """Split sequences into those that draw tokens and those that want vectors."""
    found: tuple[list[Sequence], list[Sequence]] = [], []
    for sequence in sequences:
        found[sequence.pool is not None].append(sequence)
    return found


def take_vectors(device: Device, event: Event, batch: Batch) -> Iterator[tuple[Sequence, CoterieError | None]]:
    """Hand a step's rows to their sequences; yields the complete ones, each with the error if its vector is invalid."""
    rows_RD = device.vectors(event, range(len(batch.rows.rows_R)))
    for scored in batch.scored:
        _pool(scored.sequence).add(rows_RD[scored.first_row : scored.first_row + scored.count])
    for row, sequence in enumerate(batch.sampled):
        try:
            _pool(sequence).end(rows_RD[row])
            yield sequence, None
        except CoterieError as error:
            yield sequence, error


def _pool(sequence: Sequence) -> Pool:
    if sequence.pool is None:
        raise RuntimeError(f"sequence {sequence.number} is in a step of vectors and wants none")
    return sequence.pool

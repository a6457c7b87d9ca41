"""Lifetimes of the symbols of a static schedule: when each must be in memory, and how many bytes are moved.

    weights, KV    |==================|     the whole program
    intermediates     |=====|               from the step that writes it to the last one that reads it

A static graph has no aliases and allocates nothing at run time, so lifetimes are known in advance; symbols whose
lifetimes do not overlap may share addresses (the paper, section V-A). Knows nothing about how much memory there is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from coterie.core.shapes import Sizes, numbers_in
from coterie.dataflow.traffic import border
from coterie.graph.ir import Graph, Kind, Op, state_of
from coterie.graph.kv_cost import KV_READERS, kv_bytes, layer_bytes
from coterie.graph.stored import value_bytes


@dataclass(frozen=True, slots=True)
class Symbol:
    """Bytes needed from step `first` through `last`; `moves`: (step, bytes) of each step that reads or writes it."""

    name: str
    kind: str
    size_bytes: int
    first: int
    last: int
    moves: tuple[tuple[int, int], ...]

    @property
    def moved_bytes(self) -> int:
        """Bytes read and written in the whole program."""
        return sum(size for _, size in self.moves)

    @property
    def steps(self) -> int:
        """Length of its lifetime in steps."""
        return self.last - self.first + 1

    def overlaps(self, other: Symbol) -> bool:
        """Whether the lifetimes overlap."""
        return self.first <= other.last and other.first <= self.last


def symbols_of(graph: Graph, steps: Sequence[Sequence[Op]], sizes: Sizes) -> tuple[Symbol, ...]:
    """The symbols of a graph scheduled in these steps (sections or kernels); values internal to a step have none."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    moved: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    end = len(steps) - 1
    for at, ops in enumerate(steps):
        crossing = border(graph, ops)
        for name in (*crossing.inputs, *crossing.outputs):
            value = graph.values[name]
            whole = value.kind in (Kind.WEIGHT, Kind.STATE, Kind.INPUT, Kind.CONSTANT)
            first.setdefault(name, 0 if whole else at)
            last[name] = end if whole or value.kind is Kind.OUTPUT else at
            if value.kind is not Kind.STATE:
                moved[name][at] += value_bytes(value, sizes)
        for op in ops:
            if op.kind in (*KV_READERS, "kv_append"):
                moved[state_of(graph, op).name][at] += kv_bytes(graph, op, sizes)
    found = []
    for name, begin in first.items():
        value = graph.values[name]
        size = value_bytes(value, sizes)
        if value.kind is Kind.STATE:
            size = numbers_in(value.shape[:1]) * layer_bytes(value) * sizes.context_tokens
        found.append(Symbol(name, value.kind.value, size, begin, last[name], tuple(moved[name].items())))
    return tuple(found)


def live_bytes(symbols: Sequence[Symbol], steps: int) -> list[int]:
    """Bytes alive at each step: a lower bound on the memory of any placement."""
    change = [0] * (steps + 1)
    for symbol in symbols:
        change[symbol.first] += symbol.size_bytes
        change[symbol.last + 1] -= symbol.size_bytes
    live, total = [], 0
    for step in range(steps):
        total += change[step]
        live.append(total)
    return live

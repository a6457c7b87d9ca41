"""The normal form of an op: its loops, each tagged, and for each operand which loops index which of its dimensions.

    linear   t parallel, n parallel, k reduction      x[t, k]  weight[n, k]  y[t, n]

A view or a transpose is no loop of its own: it is the way in which its reader indexes what its producer wrote.
Knows nothing about which op has which loops (nest.py, nest_grad.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod
from typing import TypeAlias

from coterie.core.shapes import Sizes
from coterie.graph.ir import Graph, Op
from coterie.graph.ops import OPS


class Tag(Enum):
    """What an output element needs of a loop: its own iteration, all of them, or those before its own."""

    PARALLEL = "parallel"
    REDUCTION = "reduction"
    SEQUENTIAL = "sequential"


# Loops that index one dimension, outermost first. A gathered dimension is indexed by numbers, not by loops.
Index: TypeAlias = tuple[str, ...]
GATHER: Index = ("gather",)


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop of a nest. An `online` reduction has a running form: its state is small and its order is free."""

    name: str
    size: int
    tag: Tag
    online: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """How an op indexes a value: an Index per dimension. `by` names the value that a gather takes its numbers from."""

    value: str
    index: tuple[Index, ...]
    by: str = ""


@dataclass(frozen=True, slots=True)
class Nest:
    """The loops of an op, and its accesses. `by_token`: whatever is walked, it takes whole tokens (its first loop)."""

    op: Op
    loops: tuple[Loop, ...]
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    by_token: bool = False

    def loop(self, name: str) -> Loop:
        """The loop of that name. Raises KeyError."""
        for loop in self.loops:
            if loop.name == name:
                return loop
        raise KeyError(f"{self.op.name} has no loop {name}")

    def elements(self, access: Access) -> int:
        """Elements of a value that the op's loops index."""
        return prod(self.loop(name).size for index in access.index if index != GATHER for name in index)

    @property
    def is_view(self) -> bool:
        """Reads and writes each element once and computes nothing: an access pattern, at no cost on a PMU."""
        return OPS[self.op.kind].view


MakeNest: TypeAlias = Callable[[Graph, Op, Sizes], Nest]


def dims(graph: Graph, name: str, sizes: Sizes) -> tuple[int, ...]:
    """The sizes of a value in this step."""
    return tuple(sizes.of(dim) for dim in graph.values[name].shape)


def axes(prefix: str, count: int) -> tuple[Index, ...]:
    """One loop for each of so many dimensions."""
    return tuple((f"{prefix}{i}",) for i in range(count))


def over(prefix: str, sizes: Sequence[int], tag: Tag = Tag.PARALLEL, online: bool = False) -> tuple[Loop, ...]:
    """The loops that `axes` names, over dimensions of these sizes."""
    return tuple(Loop(f"{prefix}{i}", size, tag, online) for i, size in enumerate(sizes))


def flat(indices: Sequence[Index]) -> Index:
    """The index of several dimensions that another value has as one."""
    return tuple(name for index in indices for name in index)

"""The normal form of an op: a loop nest with tagged loops, and the loops that index each dimension of each operand.

    linear   t parallel, n parallel, k reduction      x[t, k]  weight[n, k]  y[t, n]

Views and transposes need no loops: they are merely how a reader indexes what its producer wrote.
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
    """Which iterations of a loop an output element depends on: its own, all, or its own and earlier ones."""

    PARALLEL = "parallel"
    REDUCTION = "reduction"
    SEQUENTIAL = "sequential"


# The loops that index a dimension, outermost first. A gathered dimension is indexed by data, not by loops.
Index: TypeAlias = tuple[str, ...]
GATHER: Index = ("gather",)


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop of a nest. An `online` reduction can be accumulated incrementally, in any order, with little state."""

    name: str
    size: int
    tag: Tag
    online: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """How an op indexes a value: an Index per dimension. `by`: the value that holds the indices of a gather."""

    value: str
    index: tuple[Index, ...]
    by: str = ""


@dataclass(frozen=True, slots=True)
class Nest:
    """The loops and accesses of an op. `by_token`: it can only be walked by whole tokens (its first loop)."""

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
        """Number of elements of a value that the op's loops index."""
        return prod(self.loop(name).size for index in access.index if index != GATHER for name in index)

    @property
    def is_view(self) -> bool:
        """Whether the op only rearranges elements: an access pattern, which costs nothing on a PMU."""
        return OPS[self.op.kind].view


MakeNest: TypeAlias = Callable[[Graph, Op, Sizes], Nest]


def dims(graph: Graph, name: str, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a value in this step."""
    return tuple(sizes.of(dim) for dim in graph.values[name].shape)


def axes(prefix: str, count: int) -> tuple[Index, ...]:
    """An index of one loop per dimension, for `count` dimensions."""
    return tuple((f"{prefix}{i}",) for i in range(count))


def over(prefix: str, sizes: Sequence[int], tag: Tag = Tag.PARALLEL, online: bool = False) -> tuple[Loop, ...]:
    """The loops named by `axes`, for dimensions of these sizes."""
    return tuple(Loop(f"{prefix}{i}", size, tag, online) for i, size in enumerate(sizes))


def flat(indices: Sequence[Index]) -> Index:
    """The index of several dimensions flattened into one."""
    return tuple(name for index in indices for name in index)

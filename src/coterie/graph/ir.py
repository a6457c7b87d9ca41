"""The graph: values and ops in execution order, built once per architecture.

    GraphBuilder (growing) -> Graph (verified, frozen) -> Program (fused, planned, frozen) -> Executable (on a device)

Knows nothing about what the ops mean (ops.py) or how they are fused (fuse.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TypeAlias

from coterie.core.dtypes import DType
from coterie.core.shapes import Shape, numbers_in

Attr: TypeAlias = int | float | str


class Kind(Enum):
    """Where a value lives."""

    INPUT = "input"  # per-step rows: tokens, positions, ...
    WEIGHT = "weight"  # a tensor of the checkpoint, named as in the file
    CONSTANT = "constant"  # known when the graph is built, e.g. rope frequencies
    STATE = "state"  # persists across steps: the KV pages
    TENSOR = "tensor"  # an intermediate
    OUTPUT = "output"  # a result of the step, e.g. sampled tokens


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph. `data` holds a constant's numbers, row-major.

    `density`: the fraction of a matrix's elements that is stored and computed; the others are zero. The sparsity
    pattern is fixed for each weight and stored with it; its gradient has the same pattern.
    """

    name: str
    shape: Shape
    dtype: DType
    kind: Kind
    data: tuple[float, ...] = ()
    density: float = 1.0


def signature(value: Value | None) -> object:
    """What costs and mappings depend on: everything about a value except its name and data; None for None."""
    return None if value is None else (value.shape, value.dtype, value.kind, value.density)


@dataclass(frozen=True, slots=True)
class Op:
    """One operator: `kind` is a row of ops.OPS; inputs and outputs are value names; `stage` names its layer.

    An absent optional input is the empty string, so that positions keep their meaning.
    """

    kind: str
    name: str
    stage: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr]

    def integer(self, key: str) -> int:
        """An integer attribute."""
        return int(self.attrs[key])

    def number(self, key: str) -> float:
        """A real attribute."""
        return float(self.attrs[key])

    @property
    def scale(self) -> float:
        """Factor that multiplies the result; 1 if the attribute is absent."""
        return float(self.attrs.get("scale", 1.0))

    @property
    def offset(self) -> float:
        """Number added to a norm's weight; 0 if the attribute is absent."""
        return float(self.attrs.get("offset", 0.0))

    @property
    def interleaved(self) -> bool:
        """Whether a rope pairs adjacent channels; if the attribute is absent, it pairs channels of the two halves."""
        return bool(self.attrs.get("interleaved", 0))

    @property
    def cap(self) -> float:
        """Bound of a soft cap; 0 (no cap) if the attribute is absent."""
        return float(self.attrs.get("cap", 0.0))

    @property
    def growth(self) -> float:
        """Rate at which queries grow with the logarithm of their position; 0 if the attribute is absent."""
        return float(self.attrs.get("growth", 0.0))

    @property
    def growth_step(self) -> int:
        """Length, in tokens, of the steps in which queries grow; 1 if the attribute is absent."""
        return int(self.attrs.get("every", 1))

    @property
    def sinks(self) -> str:
        """The name of an attention's sinks; empty if it has none."""
        return self.inputs[5] if self.kind == "attention" and len(self.inputs) > 5 else ""


@dataclass(frozen=True, slots=True)
class Graph:
    """Ops in execution order with every value they name. `stages` are in order: embed, layers.0, ..., head."""

    name: str
    values: Mapping[str, Value]
    ops: tuple[Op, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in execution order, each once."""
        return tuple(dict.fromkeys(op.stage for op in self.ops))

    @property
    def weights(self) -> tuple[Value, ...]:
        """Weights in order of first use, each once."""
        names = dict.fromkeys(i for op in self.ops for i in op.inputs if i and self.values[i].kind is Kind.WEIGHT)
        return tuple(self.values[name] for name in names)

    def weight_stage(self) -> dict[str, str]:
        """Weight name -> the stage that uses it first."""
        first: dict[str, str] = {}
        for op in self.ops:
            for i in op.inputs:
                if i and self.values[i].kind is Kind.WEIGHT:
                    first.setdefault(i, op.stage)
        return first


def state_of(graph: Graph, op: Op) -> Value:
    """The KV state that an op reads or appends to."""
    return next(graph.values[name] for name in op.inputs if name and graph.values[name].kind is Kind.STATE)


def norms_all_heads(graph: Graph, op: Op) -> bool:
    """Whether an rms_norm of [T, H, C] takes one root mean square over all heads of a token, not one per head."""
    shape, weight = graph.values[op.inputs[0]].shape, graph.values[op.inputs[1]].shape
    return len(shape) == 3 and weight != shape[-1:] and weight == (numbers_in(shape[1:]),)


@dataclass(slots=True)
class GraphBuilder:
    """Grows a graph: declare values, append ops in execution order, then `build()`."""

    name: str
    stage: str = ""
    _values: dict[str, Value] = field(default_factory=dict)
    _ops: list[Op] = field(default_factory=list)

    def value(
        self, name: str, shape: Shape, dtype: DType, kind: Kind, data: tuple[float, ...] = (), density: float = 1.0
    ) -> str:
        """Declare a value and return its name; declaring the same value again is allowed (tied weights)."""
        new = Value(name, shape, dtype, kind, data, density)
        if self._values.setdefault(name, new) != new:
            raise ValueError(f"value {name} is declared as {self._values[name]} and as {new}")
        return name

    def shape(self, name: str) -> Shape:
        """The shape of a declared value. Raises KeyError."""
        return self._values[name].shape

    def op(self, kind: str, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attrs: Attr) -> None:
        """Append an op to the current stage."""
        full = f"{self.stage}/{name}"
        self._ops.append(Op(kind, full, self.stage, inputs, outputs, MappingProxyType(dict(attrs))))

    def build(self) -> Graph:
        """Freeze the graph; the caller then verifies it."""
        return Graph(self.name, MappingProxyType(dict(self._values)), tuple(self._ops))

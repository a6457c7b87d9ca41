"""The graph of a model with a low-rank change beside some of its products: what an adapter computes, unmerged.

    y = x W^T         u = x A^T        z = y + scale * u B^T          z takes the place of y
    r + x W^T         u = x A^T        (r + x W^T) + scale * u B^T    where a residual is all that reads the product

Ops are those that there are: fusion rules and kernels need not know. What a product was fused with is fused as before
where it is not between the product and its sum.
Knows nothing about adapters' files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from coterie.core.shapes import trailing
from coterie.graph.beside import has_residual
from coterie.graph.ir import Attr, Graph, Kind, Op, Value
from coterie.graph.ops import SCALE


@dataclass(frozen=True, slots=True)
class LowRank:
    """Two matrices, `a` [rank, in] and `b` [out, rank], and what their product is multiplied by."""

    a: Value
    b: Value
    scale: float

    @property
    def rank(self) -> int:
        """The rank."""
        return trailing((1, self.a.shape[0]))


def linear_weights(graph: Graph) -> dict[str, Op]:
    """The weights of products, in their order, each with its op."""
    return {op.inputs[1]: op for op in graph.ops if op.kind == "linear"}


def with_low_rank(graph: Graph, changes: Mapping[str, LowRank]) -> Graph:
    """The graph in which the products with the weights of these names have a change beside them.

    What else reads such a weight, an embedding say, stays as it is. Raises ValueError for one that no `linear` reads.
    """
    if unread := changes.keys() - linear_weights(graph).keys():
        raise ValueError(f"no linear op of {graph.name} reads {', '.join(sorted(unread))}")
    grown = _Grown(graph, changes)
    for at, op in enumerate(graph.ops):
        grown.add(at, op)
    return replace(graph, values=MappingProxyType(grown.values), ops=tuple(grown.ops))


@dataclass(slots=True)
class _Grown:
    graph: Graph
    changes: Mapping[str, LowRank]
    values: dict[str, Value] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    low: dict[tuple[str, str], str] = field(default_factory=dict)  # input and A -> their product, of parts of one
    held: tuple[Op, LowRank] | None = None  # a product whose residual comes next

    def __post_init__(self) -> None:
        self.values.update(self.graph.values)

    def add(self, at: int, op: Op) -> None:
        """Append an op of the graph, and what belongs beside it."""
        if self.held is not None:
            product, change = self.held
            self.held = None
            self._beside(op, product, change)
            return
        found = self.changes.get(op.inputs[1]) if op.kind == "linear" else None
        if found is None:
            self.ops.append(op)
        elif has_residual(self.graph, at):
            self.ops.append(op)
            self.held = op, found
        else:
            self._beside(op, op, found)

    def _beside(self, last: Op, product: Op, change: LowRank) -> None:
        """Append `last`, which puts out the product or its sum with a residual, and then that with the change added."""
        y = self.values[last.outputs[0]]
        before = self._value(f"{y.name}.base", replace(y, kind=Kind.TENSOR))
        self.ops.append(replace(last, name=f"{last.name}.base", outputs=(before,)))
        low = self._low(product, change)
        added = self._value(f"{product.outputs[0]}.change", replace(y, kind=Kind.TENSOR))
        scale = change.scale * product.scale
        self._op("linear", added, last.stage, (low, self._weight(change.b), ""), scale)
        self._op("add", y.name, last.stage, (before, added))

    def _low(self, product: Op, change: LowRank) -> str:
        x = self.values[product.inputs[0]]
        key = x.name, change.a.name
        if key not in self.low:
            made = Value(f"{product.outputs[0]}.low", (x.shape[0], change.rank), x.dtype, Kind.TENSOR)
            self.low[key] = self._value(made.name, made)
            self._op("linear", made.name, product.stage, (x.name, self._weight(change.a), ""))
        return self.low[key]

    def _weight(self, weight: Value) -> str:
        return self._value(weight.name, weight)

    def _value(self, name: str, like: Value) -> str:
        self.values[name] = replace(like, name=name)
        return name

    def _op(self, kind: str, y: str, stage: str, inputs: tuple[str, ...], scale: float = 1.0) -> None:
        attrs: dict[str, Attr] = {} if scale == 1.0 else {SCALE: scale}
        self.ops.append(Op(kind, y, stage, inputs, (y,), MappingProxyType(attrs)))

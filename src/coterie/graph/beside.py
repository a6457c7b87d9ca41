"""The graph of a model of which some matrices are a sum of two: a base's and a difference, each where it lies.

    y = x W^T           y = x W^T + x D^T             also of tokens' rows: table[tokens] + D[tokens]
    r + x W^T           (r + x W^T) + x D^T           where a residual is all that reads the product

Ops are those that there are, and each product with a difference is followed by its sum, which is one kernel of a fused
graph. Knows nothing about files, or how a difference is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from coterie.graph.ir import Graph, Kind, Op, Value

_READERS = ("linear", "embed")  # ops whose result is a sum where their matrix, input 1, is one


def summable(graph: Graph) -> set[str]:
    """The weights that may be a sum: matrices that nothing reads but products, and tables of tokens' rows."""
    reads = [(name, op.kind in _READERS and at == 1) for op in graph.ops for at, name in enumerate(op.inputs) if name]
    otherwise = {name for name, as_matrix in reads if not as_matrix}
    return {name for name, _ in reads if graph.values[name].kind is Kind.WEIGHT} - otherwise


def with_differences(graph: Graph, differences: Mapping[str, Value]) -> Graph:
    """The graph in which each weight of these names has a matrix of its shape added to it, by adding what it gives.

    Raises ValueError for a weight that may not be a sum.
    """
    if others := differences.keys() - summable(graph):
        raise ValueError(f"{graph.name} reads {', '.join(sorted(others))} in other ways than as a product's matrix")
    grown = _Grown(graph, differences, dict(graph.values))
    for at, op in enumerate(graph.ops):
        grown.add(at, op)
    return replace(graph, values=MappingProxyType(grown.values), ops=tuple(grown.ops))


def has_residual(graph: Graph, at: int) -> bool:
    """Whether the op behind a product adds it to something, and nothing else reads it: these are one kernel."""
    op = graph.ops[at]
    (y,), following = op.outputs, graph.ops[at + 1 : at + 2]
    readers = [reader for reader in graph.ops if y in reader.inputs]
    added = [later for later in following if later.kind == "add" and later.stage == op.stage]
    return bool(added) and readers == added and added[0].inputs[1] == y and added[0].inputs[0] != y


@dataclass(slots=True)
class _Grown:
    graph: Graph
    differences: Mapping[str, Value]
    values: dict[str, Value]
    ops: list[Op] = field(default_factory=list)
    held: Op | None = None  # a product whose residual comes next

    def add(self, at: int, op: Op) -> None:
        """Append an op of the graph, and what belongs beside it."""
        if self.held is not None:
            product, self.held = self.held, None
            self._beside(op, product)
        elif op.kind not in _READERS or op.inputs[1] not in self.differences:
            self.ops.append(op)
        elif has_residual(self.graph, at):
            self.ops.append(op)
            self.held = op
        else:
            self._beside(op, op)

    def _beside(self, last: Op, product: Op) -> None:
        """Append `last`, which puts out the product or its sum with a residual, and then that with the change added."""
        y, difference = last.outputs[0], self.differences[product.inputs[1]]
        self.values[difference.name] = difference
        before, change = (
            self._like(y, f"{name}.{what}") for name, what in ((y, "base"), (product.outputs[0], "change"))
        )
        inputs = (product.inputs[0], difference.name, *("" for _ in product.inputs[2:]))  # the bias is there already
        self.ops += (
            replace(last, name=f"{last.name}.base", outputs=(before,)),
            replace(product, name=change, inputs=inputs, outputs=(change,)),
            Op("add", y, last.stage, (before, change), (y,), MappingProxyType({})),
        )

    def _like(self, y: str, name: str) -> str:
        self.values[name] = replace(self.values[y], name=name, kind=Kind.TENSOR)
        return name

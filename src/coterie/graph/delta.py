"""The graph of a model in which some matrices are the sum of a base's matrix and a difference, stored separately.

    y = x W^T           y = x W^T + x D^T             embeddings too: table[tokens] + D[tokens]
    r + x W^T           (r + x W^T) + x D^T           if only a residual add reads the product

It needs no new ops. Each product with a difference is followed by its sum, and fusion makes these one kernel. Inputs of
a difference of few bits are rounded to 8 bits. Knows nothing about files, or how a difference is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias

from coterie.core.dtypes import PACKED
from coterie.graph.ir import Attr, Graph, Kind, Op, Value
from coterie.graph.ops import INT8_OR_FINER, ROUNDING

_READERS = ("linear", "embed")  # ops that are linear in their matrix, input 1
# Rounding activations to 8 bits costs 0.5 % of a product, a fifteenth of what 4 bits of a difference have lost already.
_FEW_BITS = 4


def summable(graph: Graph) -> set[str]:
    """The weights that may be a sum: those read only as a product's matrix or as an embedding table."""
    reads = [(name, op.kind in _READERS and at == 1) for op in graph.ops for at, name in enumerate(op.inputs) if name]
    otherwise = {name for name, as_matrix in reads if not as_matrix}
    return {name for name, _ in reads if graph.values[name].kind is Kind.WEIGHT} - otherwise


def with_differences(graph: Graph, differences: Mapping[str, Value]) -> Graph:
    """The graph in which each named weight has a difference of its shape added, by adding the two products.

    Raises ValueError for a weight that may not be a sum.
    """
    if others := differences.keys() - summable(graph):
        raise ValueError(f"{graph.name} reads {', '.join(sorted(others))} in other ways than as a product's matrix")

    def change(grown: Grown, product: Op, y: str) -> None:
        difference = differences[product.inputs[1]]
        grown.values[difference.name] = difference
        inputs = (product.inputs[0], difference.name, *("" for _ in product.inputs[2:]))  # the base adds the bias
        attrs = MappingProxyType({**product.attrs, **_rounding(product, difference)})
        grown.ops.append(replace(product, name=y, inputs=inputs, outputs=(y,), attrs=attrs))

    return with_changes(graph, lambda op: op.kind in _READERS and op.inputs[1] in differences, change)


def _rounding(product: Op, difference: Value) -> dict[str, Attr]:
    coarse = difference.dtype in PACKED and PACKED[difference.dtype][0] <= _FEW_BITS
    return {ROUNDING: INT8_OR_FINER} if coarse and product.kind == "linear" else {}


def with_changes(graph: Graph, changed: Callable[[Op], bool], change: Change) -> Graph:
    """The graph in which a change is added to the result of each product for which `changed` is true.

    If only a residual add reads a product, the change is added after it, so that product and residual stay one kernel.
    `change` appends the ops that compute a product's change, under the name that it is given.
    """
    grown = Grown(dict(graph.values))
    held: Op | None = None  # a product whose residual add comes next
    for at, op in enumerate(graph.ops):
        if held is not None:
            grown.add_change(op, held, change)
            held = None
        elif not changed(op):
            grown.ops.append(op)
        elif _has_residual(graph, at):
            grown.ops.append(op)
            held = op
        else:
            grown.add_change(op, op, change)
    return replace(graph, values=MappingProxyType(grown.values), ops=tuple(grown.ops))


def _has_residual(graph: Graph, at: int) -> bool:
    """Whether the op after a product adds it to something and is its only reader: the two are one kernel."""
    op = graph.ops[at]
    (y,), following = op.outputs, graph.ops[at + 1 : at + 2]
    readers = [reader for reader in graph.ops if y in reader.inputs]
    added = [later for later in following if later.kind == "add" and later.stage == op.stage]
    return bool(added) and readers == added and added[0].inputs[1] == y and added[0].inputs[0] != y


@dataclass(slots=True)
class Grown:
    """Values and ops of a graph under construction."""

    values: dict[str, Value]
    ops: list[Op] = field(default_factory=list)

    def add_change(self, last: Op, product: Op, change: Change) -> None:
        """Append `last`, which outputs the product or its sum with a residual, then the change and their sum."""
        (y,) = last.outputs
        before, added = self._like(y, f"{y}.base"), self._like(y, f"{product.outputs[0]}.change")
        self.ops.append(replace(last, name=f"{last.name}.base", outputs=(before,)))
        change(self, product, added)
        self.ops.append(Op("add", y, last.stage, (before, added), (y,), MappingProxyType({})))

    def _like(self, y: str, name: str) -> str:
        self.values[name] = replace(self.values[y], name=name, kind=Kind.TENSOR)
        return name


Change: TypeAlias = Callable[[Grown, Op, str], None]

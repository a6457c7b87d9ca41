"""The graph of a model with a low-rank change added to some of its products: an adapter, unmerged.

    y = x W^T         u = x A^T        z = y + scale * u B^T          z takes the place of y
    r + x W^T         u = x A^T        (r + x W^T) + scale * u B^T    if only a residual add reads the product

It needs no new ops, so neither fusion rules nor kernels know about it. Ops fused with a product stay fused with it
unless the sum comes between them.
Knows nothing about adapters' files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from coterie.core.shapes import trailing
from coterie.graph.delta import Grown, with_changes
from coterie.graph.ir import Attr, Graph, Kind, Op, Value
from coterie.graph.ops import SCALE


@dataclass(frozen=True, slots=True)
class LowRank:
    """Two matrices, `a` [rank, in] and `b` [out, rank], and the factor that multiplies their product."""

    a: Value
    b: Value
    scale: float

    @property
    def rank(self) -> int:
        """The rank."""
        return trailing((1, self.a.shape[0]))


def linear_weights(graph: Graph) -> dict[str, Op]:
    """The weights of linear ops, in execution order, each with its op."""
    return {op.inputs[1]: op for op in graph.ops if op.kind == "linear"}


def with_low_rank(graph: Graph, changes: Mapping[str, LowRank]) -> Graph:
    """The graph in which a low-rank change is added to the products with these weights, given by name.

    Other readers of such a weight, an embedding say, are unchanged. Raises ValueError for one that no `linear` reads.
    """
    if unread := changes.keys() - linear_weights(graph).keys():
        raise ValueError(f"no linear op of {graph.name} reads {', '.join(sorted(unread))}")
    low: dict[tuple[str, str], str] = {}  # (input, A) -> their product, computed once

    def change(grown: Grown, product: Op, y: str) -> None:
        found, x = changes[product.inputs[1]], grown.values[product.inputs[0]]
        key = x.name, found.a.name
        if key not in low:
            low[key] = f"{product.outputs[0]}.low"
            made = Value(low[key], (x.shape[0], found.rank), x.dtype, Kind.TENSOR)
            grown.values |= {value.name: value for value in (made, found.a)}
            grown.ops.append(_linear(made.name, product.stage, x.name, found.a.name))
        grown.values[found.b.name] = found.b
        grown.ops.append(_linear(y, product.stage, low[key], found.b.name, found.scale * product.scale))

    return with_changes(graph, lambda op: op.kind == "linear" and op.inputs[1] in changes, change)


def _linear(y: str, stage: str, x: str, weight: str, scale: float = 1.0) -> Op:
    attrs: dict[str, Attr] = {} if scale == 1.0 else {SCALE: scale}
    return Op("linear", y, stage, (x, weight, ""), (y,), MappingProxyType(attrs))

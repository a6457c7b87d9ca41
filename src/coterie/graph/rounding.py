"""The graph whose packed weights meet activations rounded to int8: another computation, so another architecture key.

Knows nothing about how activations are rounded (core.packed) or when that is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from coterie.graph.ir import Graph, Op
from coterie.graph.ops import INT8, ROUNDING


def with_rounding(graph: Graph) -> Graph:
    """Every linear of a packed weight rounds what it reads to int8; a graph without packed weights stays as it is."""
    return replace(graph, ops=tuple(_rounding(graph, op) for op in graph.ops))


def _rounding(graph: Graph, op: Op) -> Op:
    if op.kind != "linear" or not graph.values[op.inputs[1]].dtype.is_packed:
        return op
    return replace(op, attrs=MappingProxyType({**op.attrs, ROUNDING: INT8}))

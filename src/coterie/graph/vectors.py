"""The graph of a model without its head: a step returns a vector for each of its rows instead of a token.

    ... x -> take_rows -> norm -> linear (-> softcap) -> sample -> next_tokens        tokens are sampled
    ... x -> take_rows -> norm                                                        rows of the last norm are returned

Up to the head both are the same, op by op, so both produce the same KV state. Knows nothing about what vectors are for.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.graph.ir import Graph, Kind, Op


def samples_tokens(graph: Graph) -> bool:
    """Whether a step samples tokens."""
    return any(op.kind == "sample" for op in reversed(graph.ops))  # it is near the end, if there is one


def row_values(graph: Graph) -> str:
    """The name of the value [R, *] that a step computes per row: logits or vectors; empty if there is none."""
    sampled = next((op.inputs[0] for op in graph.ops if op.kind == "sample"), "")
    left = (v.name for v in graph.values.values() if v.kind is Kind.OUTPUT and v.dtype is not DType.I32)
    return sampled or next(left, "")


def vectors_graph(graph: Graph) -> Graph:
    """The graph up to the last norm, whose rows [R, D] become its output; unchanged if the graph samples nothing.

    Raises UnsupportedError if there is no norm of the rows before the head.
    """
    if not samples_tokens(graph):
        return graph
    place = next((at for at, op in enumerate(graph.ops) if op.kind == "take_rows"), None)
    norm = None if place is None else _norm_of(graph, place)
    if norm is None:
        fact = "there is no norm of a step's rows before its head"
        raise UnsupportedError(graph.name, fact, "ask a model that has one for vectors")
    ops = graph.ops[: norm + 1]
    (made,) = ops[-1].outputs
    used = {name for op in ops for name in (*op.inputs, *op.outputs)} | {"rows", "sampling"}
    kept = {name for name, value in graph.values.items() if value.kind is Kind.STATE}  # even if unread: page layout
    values = {name: value for name, value in graph.values.items() if name in used | kept}
    values[made] = replace(values[made], kind=Kind.OUTPUT)
    return Graph(graph.name, MappingProxyType(values), ops)


def _norm_of(graph: Graph, place: int) -> int | None:
    """Index of the norm that reads the result of the op at `place`; None if there is none."""
    (taken,) = graph.ops[place].outputs
    return next((at for at, op in enumerate(graph.ops) if _is_norm_of(op, taken)), None)


def _is_norm_of(op: Op, x: str) -> bool:
    return op.kind in ("rms_norm", "layer_norm") and op.inputs[0] == x

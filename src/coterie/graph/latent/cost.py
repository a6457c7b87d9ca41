"""Flops of the latent attention ops, and the bytes of the part of the weight that each of them reads.

Knows nothing about machines, or about the costs of other ops (cost.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.core.shapes import Sizes, numbers_in
from coterie.graph.flops import NORM_FLOPS, ROTATED_FLOPS, SOFTMAX_FLOPS, Flops
from coterie.graph.ir import Graph, Op, Value
from coterie.graph.latent.ops import APPEND, ATTEND, QUERIES, VALUES, head_rows, key_rows


def _append_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    normed = numbers_in(graph.values[op.inputs[1]].shape)
    rotated = numbers_in(graph.values[op.inputs[0]].shape[1:]) - normed
    return sizes.T * (NORM_FLOPS * normed + ROTATED_FLOPS * rotated)


def _queries_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    heads, keys = numbers_in(graph.values[op.inputs[0]].shape[1:2]), key_rows(graph, op)
    rotated = numbers_in(graph.values[op.inputs[0]].shape[2:]) - keys
    return sizes.T * heads * (2 * keys * numbers_in(graph.values[op.inputs[1]].shape[1:]) + ROTATED_FLOPS * rotated)


def _attend_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """For each pair of a token and a visible position: q . row, the softmax, and p times the latent part of the row."""
    heads, numbers = (numbers_in((dim,)) for dim in graph.values[op.inputs[0]].shape[1:])
    taken = numbers_in(graph.values[op.outputs[0]].shape[2:])
    return sizes.pairs * heads * (2 * numbers + 2 * taken + SOFTMAX_FLOPS)


def _values_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    columns = numbers_in(graph.values[op.inputs[1]].shape[1:])
    return 2 * sizes.T * numbers_in(graph.values[op.outputs[0]].shape[1:]) * columns


def head_bytes(graph: Graph, op: Op, weight: Value) -> int:
    """Bytes of the weight's rows that an op reads: of every head, those for keys or those for values."""
    each, keys = head_rows(graph, op), key_rows(graph, op)
    whole = weight.dtype.tensor_bytes([numbers_in((dim,)) for dim in weight.shape])
    return whole // each * (keys if op.kind == QUERIES else each - keys)


LATENT_FLOPS: Mapping[str, Flops] = {
    APPEND: _append_flops,
    QUERIES: _queries_flops,
    ATTEND: _attend_flops,
    VALUES: _values_flops,
}

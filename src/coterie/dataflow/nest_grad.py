"""The loop nests of ops of the backward pass, where they differ from those of forward ops.

Knows nothing about machines or tiles.
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.core.shapes import Sizes
from coterie.dataflow.loops import Access, Index, Loop, MakeNest, Nest, Tag, axes, dims, flat, over
from coterie.graph.ir import Graph, Op


def _linear_dx(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    dy, dx = op.inputs[0], op.outputs[0]
    n, k = dims(graph, dy, sizes)[1:], dims(graph, dx, sizes)[1:]
    n_index, k_index = axes("n", len(n)), axes("k", len(k))
    loops = (
        Loop("t", dims(graph, dx, sizes)[0], Tag.PARALLEL),
        *over("k", k),
        *over("n", n, Tag.REDUCTION, online=True),
    )
    reads = (Access(dy, (("t",), *n_index)), Access(op.inputs[1], (flat(n_index), flat(k_index))))
    return Nest(op, loops, reads, (Access(dx, (("t",), *k_index)),))


def _products(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """The gradient of a matrix or bias: a sum over rows, accumulated tile by tile and complete after the last."""
    (t, *n), k = dims(graph, op.inputs[0], sizes), dims(graph, op.inputs[1], sizes)[1:] if op.inputs[1:] else ()
    n_index, k_index = axes("n", len(n)), axes("k", len(k))
    loops = (
        Loop("t", t, Tag.REDUCTION, online=True),
        *over("n", n),
        *over("k", k),
    )
    matrix = (flat(n_index), flat(k_index)) if k else (flat(n_index),)
    reads = [Access(op.inputs[0], (("t",), *n_index))]
    reads += [Access(name, (("t",), *k_index)) for name in op.inputs[1:2]]
    reads += [Access(name, matrix) for name in op.inputs[2:] if name]
    return Nest(op, loops, tuple(reads), (Access(op.outputs[0], matrix),))


def _summed_rows(by_token: bool = False) -> MakeNest:
    """The gradient of a vector or table: each row may contribute to any part of it. `by_token`: to all of it."""

    def row(graph: Graph, op: Op, sizes: Sizes) -> Nest:
        out = dims(graph, op.outputs[0], sizes)
        loops = (
            Loop("t", dims(graph, op.inputs[0], sizes)[0], Tag.REDUCTION, online=True),
            *over("w", out),
        )
        ranks = ((name, len(graph.values[name].shape)) for name in op.inputs)
        columns: Index = () if by_token else ("w1",)
        reads = tuple(Access(name, (("t",), *(columns,) * (rank - 1))) for name, rank in ranks)
        return Nest(op, loops, reads, (Access(op.outputs[0], axes("w", len(out))),), by_token=by_token)

    return row


def _by_rows(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """Each row of the result depends on the same row of every operand, whatever their widths."""
    rows, columns = dims(graph, op.outputs[0], sizes)
    width = max(dims(graph, name, sizes)[-1] for name in op.inputs)
    loops = (
        Loop("t", rows, Tag.PARALLEL),
        Loop("d", columns, Tag.PARALLEL),
        Loop("v", width, Tag.REDUCTION),
    )
    ranks = ((name, len(graph.values[name].shape)) for name in op.inputs)
    reads = tuple(Access(name, (("t",), *(("v",),) * (rank - 1))) for name, rank in ranks)
    return Nest(op, loops, reads, (Access(op.outputs[0], (("t",), ("d",))),), by_token=True)


def _attention_grad(graph: Graph, op: Op, sizes: Sizes) -> Nest:
    """Walks queries; keys and values are kept whole, and their gradients are complete after the last query."""
    t, heads, channels = dims(graph, op.inputs[1], sizes)
    kv_heads = dims(graph, op.inputs[2], sizes)[1]
    loops = (
        Loop("t", t, Tag.PARALLEL),
        Loop("h", heads, Tag.PARALLEL),
        Loop("c", channels, Tag.PARALLEL),
        Loop("s", t, Tag.PARALLEL),
        Loop("k", kv_heads, Tag.PARALLEL),
    )
    query, key = (("t",), ("h",), ("c",)), (("s",), ("k",), ("c",))
    reads = [Access(name, query) for name in op.inputs[:2]]
    reads += [Access(name, ((), ("k",), ("c",))) for name in op.inputs[2:4]]
    reads += [Access(name, ((),)) for name in op.inputs[4:]]
    writes = tuple(Access(name, index) for name, index in zip(op.outputs, (query, key, key), strict=True))
    return Nest(op, loops, tuple(reads), writes, by_token=True)


GRAD_NESTS: Mapping[str, MakeNest] = {
    "linear_dx": _linear_dx,
    "linear_dw": _products,
    "bias_dw": _products,
    "rms_norm_dw": _summed_rows(by_token=True),
    "layer_norm_dw": _summed_rows(by_token=True),
    "embed_dw": _summed_rows(),
    "positions_dw": _summed_rows(),
    "loss_parts": _by_rows,
    "loss_part_dx": _by_rows,
    "attention_grad": _attention_grad,
}

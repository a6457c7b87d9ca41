"""The legality rules of the ops of a backward pass, a row each.

Knows nothing about which rule makes which op (backward/build.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coterie.core.dtypes import DType
from coterie.core.shapes import Shape, trailing
from coterie.graph.checks import R, Row, T, binary, unary
from coterie.graph.ir import Kind
from coterie.graph.legal import check_rope


def _gradient(row: Row, shape: Shape) -> None:
    """Check that the result is a weight's gradient of this shape: an output, or completed to one by an all_reduce."""
    row.same(row.output.shape, shape, row.output.name)
    name, kind = row.output.name, row.output.kind
    completed = (op for op in row.graph.ops if name in op.inputs and op.kind == "all_reduce")
    if kind is not Kind.OUTPUT and not (kind is Kind.TENSOR and any(completed)):
        raise row.error(f"{name} is {kind.value}", "declare the gradient an output")


def _linear_dx(row: Row) -> None:
    dy = row.input(0)
    row.float_rows(dy, row.output)
    row.same(row.output.shape[:1], dy.shape[:1], row.output.name)
    row.weight(1, (trailing(dy.shape), trailing(row.output.shape)), matrix=True, sparse=True)


def _linear_dw(row: Row) -> None:
    dy, x = row.input(0), row.input(1)
    row.float_rows(dy, x)
    row.same(x.shape[:1], dy.shape[:1], x.name)
    shape: Shape = (trailing(dy.shape), trailing(x.shape))
    density = 1.0
    if row.op.inputs[2]:
        row.weight(2, shape, matrix=True, sparse=True)
        density = row.input(2).density
    if row.output.density != density:
        fact = f"{row.output.name} has a density of {row.output.density:g}, its weight one of {density:g}"
        raise row.error(fact, "make them agree, and name the weight whose pattern it has")
    _gradient(row, shape)


def _bias_dw(row: Row) -> None:
    row.rows(row.input(0))
    _gradient(row, (trailing(row.input(0).shape),))


def _norm_dx(row: Row) -> None:
    binary(row)
    row.weight(2, row.input(1).shape[-1:])


def _norm_dw(row: Row) -> None:
    row.rows(row.input(0), row.input(1))
    row.same(row.input(1).shape, row.input(0).shape, row.input(1).name)
    _gradient(row, row.input(0).shape[-1:])


def _rope_dx(row: Row) -> None:
    unary(row)
    row.row_input(1, T)
    check_rope(row, row.input(0), row.input(2))


def _attention_grad(row: Row) -> None:
    dy, q, k, v = (row.input(position) for position in range(4))
    row.float_rows(dy, q, k, v, first=(T,))
    row.same(q.shape, dy.shape, q.name)
    row.same(v.shape, k.shape, v.name)
    for name, like in zip(row.op.outputs, (q, k, v), strict=True):
        row.same(row.graph.values[name].shape, like.shape, name)
    row.row_input(4, T)
    row.row_input(5, T)


def _take_rows_dx(row: Row) -> None:
    row.rows(row.input(0), first=(R,))
    row.rows(row.output, first=(T,))
    row.row_input(1, R)
    row.same(row.output.shape[1:], row.input(0).shape[1:], row.output.name)


def _loss_dx(row: Row) -> None:
    unary(row)
    row.row_input(1, R)


def _loss_parts(row: Row) -> None:
    row.rows(row.input(0), first=(R,))
    row.activations(row.input(0), row.output)
    row.same(row.output.shape, (R, 2), row.output.name)


def _loss_part_dx(row: Row) -> None:
    unary(row)
    parts = row.input(1)
    row.rows(parts, first=(R,))
    if len(parts.shape) != 2 or trailing(parts.shape) % 2 or row.op.integer("first_row") < 0:
        fact = f"{parts.name} has shape {parts.shape}, first_row is {row.op.integer('first_row')}"
        raise row.error(fact, "give a maximum and a sum of each rank, and a row of the vocabulary")
    row.row_input(2, R)


def _embed_dw(row: Row) -> None:
    row.rows(row.input(0), first=(T,))
    if int(row.op.attrs.get("first_row", 0)) < 0:
        raise row.error(f"first_row is {row.op.attrs['first_row']}", "give the first token of this rank")
    row.scale()
    row.row_input(1, T)
    _gradient(row, (row.output.shape[0], *row.input(0).shape[1:]))
    if row.output.dtype not in (DType.F32, DType.F16, DType.BF16):
        raise row.error(f"{row.output.name} is {row.output.dtype.value}", "give a float type")


def _positions_dw(row: Row) -> None:
    _embed_dw(row)
    rows, offset = row.output.shape[0], row.op.integer("offset")
    if not isinstance(rows, int) or not 0 <= offset < rows:
        raise row.error(f"offset {offset} in {row.output.name} of {rows} rows", "begin within the table")


def _gelu_dx(row: Row) -> None:
    binary(row)
    row.gelu_form()


BACKWARD_LEGAL: Mapping[str, Callable[[Row], None]] = {
    "linear_dx": _linear_dx,
    "linear_dw": _linear_dw,
    "bias_dw": _bias_dw,
    "rms_norm_dx": _norm_dx,
    "rms_norm_dw": _norm_dw,
    "layer_norm_dx": _norm_dx,
    "layer_norm_dw": _norm_dw,
    "rope_dx": _rope_dx,
    "silu_dx": binary,
    "gelu_dx": _gelu_dx,
    "attention_grad": _attention_grad,
    "take_rows_dx": _take_rows_dx,
    "loss_dx": _loss_dx,
    "loss_parts": _loss_parts,
    "loss_part_dx": _loss_part_dx,
    "embed_dw": _embed_dw,
    "positions_dw": _positions_dw,
}

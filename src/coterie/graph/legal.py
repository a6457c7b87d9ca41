"""The legality rules of a model's ops, a row per op. Those of PyTorch's kernels are in eager/legal.py.

Knows nothing about fusion or devices. The meaning of each op is in ops.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from coterie.core.dtypes import DType
from coterie.core.shapes import Shape, Symbol, Times, trailing
from coterie.graph.checks import Row, binary, unary
from coterie.graph.ir import Kind, Value, norms_all_heads
from coterie.graph.ops import HORIZON, INT8, INT8_OR_FINER, INT16, INTERLEAVED, OFFSET

T, B, R = Symbol.T, Symbol.B, Symbol.R


def _embed(row: Row) -> None:
    row.row_input(0, T)
    row.rows(row.output, first=(T,))
    table = row.input(1)
    row.fixed(table.shape, table)
    if len(table.shape) != 2:
        raise row.error(f"{table.name} has shape {table.shape}", "a table has rows and columns")
    row.weight(1, (table.shape[0], trailing(row.output.shape)), matrix=True)
    row.activations(row.output)
    row.scale()


def _rms_norm(row: Row) -> None:
    _norm(row, norm_weight(row))
    offset = row.op.attrs.get(OFFSET, 0.0)
    if not isinstance(offset, int | float) or not math.isfinite(offset):
        raise row.error(f"its offset is {offset!r}", "give a number, or leave it out")


def norm_weight(row: Row) -> Shape:
    """The shape of a norm's weight: the length of the last axis, or of all heads together."""
    x = row.input(0).shape
    return (trailing(x),) if norms_all_heads(row.graph, row.op) else x[-1:]


def _norm(row: Row, weight: Shape) -> None:
    x = row.input(0)
    row.like(x)
    row.weight_or_constant(1, weight)
    row.eps()


def _linear(row: Row) -> None:
    x, y = row.input(0), row.output
    row.float_rows(x, y)
    row.same(y.shape[:1], x.shape[:1], y.name)
    row.weight(1, (trailing(y.shape), trailing(x.shape)), matrix=True, sparse=True)
    if row.op.inputs[2]:
        row.weight(2, (trailing(y.shape),))
    row.scale()
    row.rounding(row.input(1), INT16, INT8, INT8_OR_FINER)


def _rope(row: Row) -> None:
    x, frequencies = row.input(0), row.input(2)
    row.like(x, first=(T,))
    row.row_input(1, T)
    check_rope(row, x, frequencies)


def check_rope(row: Row, x: Value, frequencies: Value) -> None:
    """Check for an even number of channels per head, and a constant with a frequency for each pair or the first few."""
    channels = x.shape[-1]
    if len(x.shape) != 3 or not isinstance(channels, int) or channels % 2:
        raise row.error(f"{x.name} has shape {x.shape}", "give [T, heads, channels] with an even number of channels")
    count = len(frequencies.data)
    if frequencies.kind is not Kind.CONSTANT or not 0 < count <= channels // 2:
        fact = f"{frequencies.name} has {count} numbers for {channels} channels"
        raise row.error(fact, f"give {channels // 2}, or fewer where the last channels pass")
    interleaved(row)


def interleaved(row: Row) -> None:
    """Check that the attribute `interleaved` is 0, 1 or absent."""
    if (said := row.op.attrs.get(INTERLEAVED, 0)) not in (0, 1) or type(said) is not int:
        raise row.error(f"{INTERLEAVED} is {said!r}", "give 0 or 1, or leave it out")


def _kv_append(row: Row) -> None:
    k, v = row.input(0), row.input(1)
    heads, channels = row.state(5)
    row.activations(k, v)
    for value in (k, v):
        row.same(value.shape, (T, heads, channels), value.name)
    pages(row, 2)
    row.appends(5)


def _attention(row: Row) -> None:
    queries = _query_heads(row, 4)
    if row.op.integer("window") < 0:
        raise row.error(f"window is {row.op.integer('window')}", "give 0 (none) or a number of tokens")
    if HORIZON in row.op.inputs and row.op.growth:
        raise row.error("it sees all of a sequence, but its queries grow with their position", "let them not grow")
    row.cap()
    row.growth()
    row.rounding(row.input(4))
    if row.op.inputs[5:]:
        row.weight(5, (queries,))


def pages(row: Row, first: int) -> None:
    """Check positions, sequences and block tables, from operand `first` on."""
    for position, symbol in ((first, T), (first + 1, T), (first + 2, B)):
        row.row_input(position, symbol)


def _gelu(row: Row) -> None:
    unary(row)
    row.gelu_form()


def _softcap(row: Row) -> None:
    unary(row)
    row.cap()


def _xielu(row: Row) -> None:
    unary(row)
    for position, shape in enumerate(((1,), (1,), (), ()), 1):
        row.weight(position, shape)


def _take_rows(row: Row) -> None:
    x = row.input(0)
    row.rows(x, first=(T,))
    row.rows(row.output, first=(R,))
    row.activations(x, row.output)
    row.row_input(1, R)
    row.same(row.output.shape[1:], x.shape[1:], row.output.name)


def _sample(row: Row) -> None:
    logits = row.input(0)
    row.float_rows(logits, first=(R,))
    row.row_input(1, R, DType.F32)
    row.same(row.output.shape, (R,), row.output.name)
    if len(logits.shape) != 2 or row.output.kind is not Kind.OUTPUT or row.output.dtype is not DType.I32:
        raise row.error(f"it draws {row.output.dtype.value} from {logits.shape}", "give [R, V] and an I32 output [R]")
    tables = [row.graph.values[op.inputs[1]] for op in row.graph.ops if op.kind == "embed"]
    for table in tables:  # a drawn token is the next one to embed
        rows, vocab = trailing((T, table.shape[0])), trailing(logits.shape)
        if rows < vocab:
            raise row.error(f"{vocab} tokens may be drawn but {table.name} has {rows} rows", "give each token a row")


def _layer_norm(row: Row) -> None:
    _norm(row, row.input(0).shape[-1:])
    if row.op.inputs[2]:
        row.weight(2, row.input(0).shape[-1:])


def _alibi_attention(row: Row) -> None:
    row.constant(4, _query_heads(row, 5))


def _relative_attention(row: Row) -> None:
    queries, table = _query_heads(row, 6), row.input(4)
    rows = _table_rows(table)
    row.fixed(table.shape, table)
    row.weight_or_constant(4, (rows, queries))
    buckets = row.input(5).data if row.op.inputs[5] else ()
    if row.op.inputs[5] and (row.input(5).kind is not Kind.CONSTANT or len(buckets) % 2 == 0):
        raise row.error(f"{row.input(5).name} has {len(buckets)} numbers", "give a constant of one for each distance")
    if not all(number in range(rows) for number in buckets) or (rows != 1 and not buckets):
        raise row.error(f"{table.name} has {rows} rows", "give one for each bucket, or without buckets one")


def _query_heads(row: Row, state: int) -> int:
    """The checks common to all kinds of attention, with the KV state at operand `state`; returns the query heads."""
    q = row.input(0)
    queries, _ = row.heads(q)
    heads, channels = row.state(state)
    row.like(q, first=(T,))
    row.same(q.shape[2:], (channels,), q.name)
    if queries % heads:
        raise row.error(f"{queries} query heads share {heads} key/value heads", "make one a multiple")
    pages(row, 1)
    return queries


def _group_attention(row: Row) -> None:
    q, k, v = (row.input(i) for i in range(3))
    row.rows(q)
    row.heads(q, k, v)
    row.activations(q, k, v, row.output)
    for value in (k, v, row.output):
        row.same(value.shape, q.shape, value.name)
    row.grouped(q, row.op.integer("group"))


def _take_heads(row: Row) -> None:
    x, y = row.input(0), row.output
    row.float_rows(x, y)
    heads, channels = row.heads(y, x)
    of, first, count = (row.op.integer(key) for key in ("of", "first", "count"))
    if of < 1 or heads % of or not 0 <= first < first + count <= of:
        raise row.error(f"{count} from {first} on of each {of} of {heads} heads", "stay within the heads")
    row.same(y.shape, (x.shape[0], heads // of * count, channels), y.name)


def _add_bias(row: Row) -> None:
    unary(row)
    row.weight(1, (trailing(row.output.shape),))


def _add_positions(row: Row) -> None:
    unary(row)
    row.rows(row.output, first=(T,))
    row.row_input(1, T)
    table, offset = row.input(2), row.op.integer("offset")
    row.weight(2, (*table.shape[:1], *row.output.shape[1:]), matrix=True)
    rows = _table_rows(table)
    if not 0 <= offset < rows:
        raise row.error(f"offset {offset} in {table.name} of {rows} rows", "begin within the table")


def _table(row: Row) -> None:
    unary(row)
    rows = _table_rows(row.input(1))
    row.grouped(row.input(0), rows)
    row.weight(1, (rows, *row.output.shape[1:]))


def _table_rows(table: Value) -> int:
    """The number of rows; 0 if the first dimension is symbolic."""
    return table.shape[0] if table.shape and isinstance(table.shape[0], int) else 0


def _first_row(row: Row) -> None:
    _regrouped(row, 1)
    row.weight(1, row.input(0).shape[1:])


def _regrouped(row: Row, more: int) -> None:
    """Check that each group of rows grows by `more` (-1: shrinks by one) in the result."""
    x, y, group = row.input(0), row.output, row.op.integer("group")
    row.float_rows(x, y)
    row.same(y.shape, (Times(row.grouped(x, group) * (group + more)), *x.shape[1:]), y.name)


def _merge_rows(row: Row) -> None:
    x, rows, y = row.input(0), row.input(2), row.output
    row.rows(x, y, first=(T,))
    row.rows(rows)
    row.activations(x, rows, y)
    row.same(y.shape, x.shape, y.name)
    row.same(rows.shape[1:], x.shape[1:], rows.name)
    row.row_input(1, T)


def _swap(row: Row) -> None:
    x, y = row.input(0), row.output
    row.float_rows(x, y)
    outer, middle, inner = (row.op.integer(key) for key in ("outer", "middle", "inner"))
    row.same(x.shape[1:], (inner,), x.name)
    groups = row.grouped(x, outer * middle)
    row.same(y.shape, (Times(groups * inner * middle), outer), y.name)


def _embed_part(row: Row) -> None:
    _embed(row)
    if row.op.integer("first_row") < 0:
        raise row.error(f"first_row is {row.op.integer('first_row')}", "give the first token of this rank")


def _ranks(row: Row) -> int:
    ranks = row.op.integer("ranks")
    if ranks < 2:
        raise row.error(f"{ranks} ranks exchange nothing", "give two or more")
    return ranks


def _all_reduce(row: Row) -> None:
    """Check a reduction of rows, or of a weight's gradient, which has the weight's shape."""
    if row.output.kind is Kind.OUTPUT:
        row.activations(row.input(0), row.output)
        row.fixed(row.output.shape, row.output)
        row.same(row.input(0).shape, row.output.shape, row.input(0).name)
    else:
        unary(row)
    _ranks(row)


def _all_gather(row: Row) -> None:
    x, y = row.input(0), row.output
    row.float_rows(x, y)
    second = x.shape[1] if isinstance(x.shape[1], int) else 0
    row.same(y.shape, (x.shape[0], second * _ranks(row), *x.shape[2:]), y.name)


LEGAL: Mapping[str, Callable[[Row], None]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "kv_append": _kv_append,
    "attention": _attention,
    "add": binary,
    "silu": unary,
    "mul": binary,
    "take_rows": _take_rows,
    "sample": _sample,
    "layer_norm": _layer_norm,
    "relu": unary,
    "relu_squared": unary,
    "add_positions": _add_positions,
    "gelu": _gelu,
    "softcap": _softcap,
    "xielu": _xielu,
    "alibi_attention": _alibi_attention,
    "relative_attention": _relative_attention,
    "group_attention": _group_attention,
    "take_heads": _take_heads,
    "add_bias": _add_bias,
    "add_table": _table,
    "mul_table": _table,
    "first_row": _first_row,
    "drop_first": lambda row: _regrouped(row, -1),
    "merge_rows": _merge_rows,
    "swap": _swap,
    "sub": binary,
    "embed_part": _embed_part,
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
}

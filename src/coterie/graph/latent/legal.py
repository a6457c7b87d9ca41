"""The legality rules of the latent attention ops, a row each.

Knows nothing about which families use them. The meaning of each op is in latent/ops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coterie.core.shapes import trailing
from coterie.graph.checks import Row, T
from coterie.graph.ir import Kind
from coterie.graph.latent.ops import APPEND, ATTEND, QUERIES, VALUES, head_rows, key_rows
from coterie.graph.legal import interleaved, pages


def _state(row: Row, position: int) -> int:
    """Check for a state [L, 1, 1, N] that has the op's layer; returns N."""
    value = row.input(position)
    fits = value.kind is Kind.STATE and len(value.shape) == 4 and value.shape[1:3] == (1, 1) and value.dtype.is_float
    if not fits:
        fact = f"{value.name} is {value.kind.value} {value.shape}"
        raise row.error(fact, "give a float state [L, 1, 1, N]: a row of each layer and position")
    return row.layer_shape(value)[-1]


def _rotated(row: Row, position: int) -> int:
    """How many channels the frequencies rotate."""
    value = row.input(position)
    if value.kind is not Kind.CONSTANT or not value.data:
        raise row.error(f"{value.name} is {value.kind.value} of {len(value.data)} numbers", "give frequencies")
    interleaved(row)
    return 2 * len(value.data)


def _append(row: Row) -> None:
    x = row.input(0)
    numbers = _state(row, 6)
    row.float_rows(x, first=(T,))
    row.same(x.shape, (T, numbers), x.name)
    row.weight(1, (numbers - _rotated(row, 5),))
    pages(row, 2)
    row.appends(6)


def _head_weight(row: Row) -> tuple[int, int]:
    """Check the weight [heads * rows per head, R]; returns a head's rows for keys, and all of its rows."""
    x, weight = row.input(0), row.input(1)
    heads, _ = row.heads(x)
    each, keys = head_rows(row.graph, row.op), key_rows(row.graph, row.op)
    if not 0 < keys < each:
        fact = f"{weight.name} has {weight.shape[0]} rows for {heads} heads, {keys} of each for its keys"
        raise row.error(fact, "give every head as many, some for keys and some for values")
    row.weight(1, (heads * each, *weight.shape[1:]))
    return keys, each


def _queries(row: Row) -> None:
    x, y = row.input(0), row.output
    row.float_rows(x, y, first=(T,))
    rotated = _rotated(row, 3)
    _head_weight(row)
    row.row_input(2, T)
    row.same(y.shape, (*x.shape[:2], trailing(row.input(1).shape) + rotated), y.name)


def _attend(row: Row) -> None:
    q, y = row.input(0), row.output
    numbers = _state(row, 4)
    row.float_rows(q, y, first=(T,))
    row.heads(q, y)
    row.same(q.shape[2:], (numbers,), q.name)
    row.same(y.shape[:2], q.shape[:2], y.name)
    if not 0 < trailing((0, *y.shape[2:])) <= numbers:
        raise row.error(f"{y.name} has shape {y.shape} of rows of {numbers} numbers", "take the first of a row")
    pages(row, 1)


def _values(row: Row) -> None:
    x, y = row.input(0), row.output
    row.float_rows(x, y, first=(T,))
    keys, each = _head_weight(row)
    row.same(x.shape[2:], row.input(1).shape[1:], x.name)
    row.same(y.shape, (*x.shape[:2], each - keys), y.name)


LATENT_LEGAL: Mapping[str, Callable[[Row], None]] = {
    APPEND: _append,
    QUERIES: _queries,
    ATTEND: _attend,
    VALUES: _values,
}

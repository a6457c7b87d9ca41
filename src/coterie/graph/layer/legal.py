"""The legality rules of the ops of per-layer inputs and scalars, a row each.

Knows nothing about which families have them. The meaning of each op is in layer/ops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coterie.graph.checks import Row, T
from coterie.graph.layer.ops import MUL_ONE, MUL_PART, PART


def _mul_part(row: Row) -> None:
    a, b, y = row.input(0), row.input(1), row.output
    row.float_rows(a, b, y, first=(T,))
    parts, channels = row.heads(b)
    row.same(a.shape, (T, channels), a.name)
    row.same(y.shape, a.shape, y.name)
    part = row.op.attrs[PART]
    if type(part) is not int or not 0 <= part < parts:
        raise row.error(f"{PART} is {part!r} of the {parts} of {b.name}", "give one of them")


def _mul_one(row: Row) -> None:
    row.like(row.input(0))
    row.weight(1, (1,))


LAYER_LEGAL: Mapping[str, Callable[[Row], None]] = {MUL_PART: _mul_part, MUL_ONE: _mul_one}

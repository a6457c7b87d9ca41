"""What is legal for activations that have more than a name, a row each; and for whatever keeps the shape of its input.

Knows nothing about where in a decoder they stand. The meaning of each op is in ops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coterie.graph.checks import GELU_FORMS, Row


def unary(row: Row) -> None:
    """A result of the shape and type of the first operand."""
    x = row.input(0)
    row.like(x)


def _gelu(row: Row) -> None:
    unary(row)
    if row.op.attrs["form"] not in GELU_FORMS:
        raise row.wrong(f"its form is {row.op.attrs['form']!r}", f"give one of {', '.join(GELU_FORMS)}")


def _softcap(row: Row) -> None:
    unary(row)
    row.cap()


def _xielu(row: Row) -> None:
    unary(row)
    for position, shape in enumerate(((1,), (1,), (), ()), 1):
        row.weight(position, shape)


ACTIVATIONS: Mapping[str, Callable[[Row], None]] = {"gelu": _gelu, "softcap": _softcap, "xielu": _xielu}

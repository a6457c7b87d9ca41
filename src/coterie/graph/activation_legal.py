"""What is legal for activations that have more than a name, a row each; and for whatever keeps the shape of its input.

Knows nothing about where in a decoder they stand. The meaning of each op is in ops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coterie.graph.checks import Row


def unary(row: Row) -> None:
    """A result of the shape and type of the first operand."""
    row.like(row.input(0))


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


ACTIVATIONS: Mapping[str, Callable[[Row], None]] = {"gelu": _gelu, "softcap": _softcap, "xielu": _xielu}

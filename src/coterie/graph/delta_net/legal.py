"""The legality rules of the ops of gated delta nets, a row each.

Knows nothing about which families have such layers. The meaning of each op is in delta_net/ops.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coterie.core.dtypes import DType
from coterie.core.shapes import trailing
from coterie.graph.checks import Row, T
from coterie.graph.delta_net.ops import CONV, DELTA, KEY_HEADS, PARTS, PLAIN
from coterie.graph.ir import Kind
from coterie.graph.legal import pages


def kept_state(row: Row, position: int, dims: int) -> tuple[int, ...]:
    """Check for a float32 state [L, ...] of `dims` dimensions that has the op's layer; returns those after L."""
    value = row.input(position)
    if value.kind is not Kind.STATE or value.dtype is not DType.F32 or len(value.shape) != dims:
        fact = f"{value.name} is {value.kind.value} {value.dtype.value} {value.shape}"
        raise row.error(fact, f"give an F32 state of {dims} dimensions, layers first")
    return row.layer_shape(value)


def _conv(row: Row) -> None:
    x = row.input(0)
    row.like(x, first=(T,))
    past, channels = kept_state(row, 6, 3)
    row.same(x.shape, (T, channels), x.name)
    row.weight(1, (channels, 1, past + 1))
    if row.op.attrs.get(PLAIN, 1) != 1:
        raise row.error(f"{PLAIN} is {row.op.attrs[PLAIN]!r}", "give 1, or leave it out")
    if row.op.inputs[2]:
        row.weight(2, (channels,))
    pages(row, 3)


def _parts(row: Row) -> None:
    qkvz, ba = row.input(0), row.input(1)
    x, z, a, b = (row.graph.values[name] for name in row.op.outputs)
    row.float_rows(qkvz, ba, x, z, a, b, first=(T,))
    heads, value_dim = row.heads(z)
    key_heads, inner = row.op.integer(KEY_HEADS), heads * value_dim
    keys = trailing(qkvz.shape) - 2 * inner  # q and k of all heads
    if key_heads < 1 or heads % key_heads or keys < 1 or keys % (2 * key_heads):
        fact = f"{qkvz.name} has shape {qkvz.shape} for {key_heads} key heads and {heads} value heads of {value_dim}"
        raise row.error(fact, "give q and k of each key head, and v and z of each value head")
    row.same(x.shape, (T, keys + inner), x.name)
    row.same((ba.shape[0], trailing(ba.shape)), (T, 2 * heads), ba.name)
    for value in (a, b):
        row.same(value.shape, (T, heads), value.name)


def _delta(row: Row) -> None:
    x, a, b = (row.input(i) for i in range(3))
    row.rows(x, row.output, first=(T,))
    row.activations(x, a, b, row.output)
    heads, key_dim, value_dim = kept_state(row, 8, 4)
    key_heads = row.op.integer(KEY_HEADS)
    if key_heads < 1 or heads % key_heads:
        raise row.error(f"{heads} value heads share {key_heads} key heads", "make one a multiple of the other")
    wanted = 2 * key_heads * key_dim + heads * value_dim
    if trailing(x.shape) != wanted:
        raise row.error(f"{x.name} has shape {x.shape}", f"give {wanted} numbers: those of q, k and v")
    for value in (a, b):
        row.same(value.shape, (T, heads), value.name)
    row.same(row.output.shape, (T, heads, value_dim), row.output.name)
    for position in (3, 4):
        row.weight(position, (heads,))
    pages(row, 5)


DELTA_LEGAL: Mapping[str, Callable[[Row], None]] = {CONV: _conv, DELTA: _delta, PARTS: _parts}

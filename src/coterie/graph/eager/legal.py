"""The legality rules of PyTorch's kernels: a row per op of eager/ops.py.

Knows nothing about which kernels an op of a model becomes (eager/rewrite.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coterie.core.shapes import Dim, Shape, Symbol
from coterie.graph.checks import Row, unary
from coterie.graph.legal import norm_weight, pages

T, B, R, S, TS = Symbol.T, Symbol.B, Symbol.R, Symbol.S, Symbol.TS


def _cast(row: Row) -> None:
    x, y = row.input(0), row.output
    row.rows(x, y)
    row.same(y.shape, x.shape, y.name)
    for value in (x, y):
        row.activations(value)


def _mean(row: Row) -> None:
    x, y = row.input(0), row.output
    row.float_rows(x, y)
    row.same(y.shape, _mean_shape(x.shape, y.shape), y.name)


def _mean_shape(x: Shape, mean: Shape) -> Shape:
    """The expected shape of a mean: over all axes but the first if `mean` has that shape, else over the last axis."""
    all_but_first: Shape = (x[0], *(1,) * (len(x) - 1))
    return mean if mean == all_but_first else (*x[:-1], 1)


def _mul_last(row: Row) -> None:
    unary(row)
    x, r = row.input(0), row.input(1)
    row.activations(x, r)
    row.same(r.shape, _mean_shape(x.shape, r.shape), r.name)


def _mul_weight(row: Row) -> None:
    unary(row)
    row.weight_or_constant(1, norm_weight(row))


def _mul_heads(row: Row) -> None:
    unary(row)
    x, c = row.input(0), row.input(1)
    row.heads(x)
    row.activations(x, c)
    row.same(c.shape, (x.shape[0], x.shape[2]), c.name)


def _last(shape: tuple[Dim, ...]) -> int:
    return shape[-1] if isinstance(shape[-1], int) else 0


def _cat(row: Row) -> None:
    a, b, y = row.input(0), row.input(1), row.output
    row.float_rows(a, b, y)
    row.same(b.shape[:-1], a.shape[:-1], b.name)
    row.same(y.shape, (*a.shape[:-1], _last(a.shape) + _last(b.shape)), y.name)
    if "in_turn" in row.op.attrs:
        row.same(b.shape, a.shape, b.name)


def _slice(row: Row) -> None:
    x, y = row.input(0), row.output
    row.float_rows(x, y)
    first, count, step = row.op.integer("first"), row.op.integer("count"), int(row.op.attrs.get("step", 1))
    if min(step, count) < 1 or not 0 <= first <= first + (count - 1) * step < _last(x.shape):
        raise row.error(f"{count} from {first} on of {_last(x.shape)} numbers", "stay within them")
    row.same(y.shape, (*x.shape[:-1], count), y.name)


def _to_float(row: Row) -> None:
    row.row_input(0, T)
    row.float_rows(row.output, first=(T,))
    row.same(row.output.shape, (T, 1), row.output.name)


def _angles(row: Row) -> None:
    x, y = row.input(0), row.output
    row.float_rows(x, y, first=(T,))
    row.same(x.shape, (T, 1), x.name)
    row.constant(1, _last(y.shape))


def _kv_cat(row: Row) -> None:
    k, y = row.input(0), row.output
    heads, channels = row.state(4)
    row.activations(k, y)
    row.same(k.shape, (T, heads, channels), k.name)
    row.same(y.shape, (S, heads, channels), y.name)
    pages(row, 1)
    if row.op.integer("which") not in (0, 1):
        raise row.error(f"which is {row.op.integer('which')}", "give 0 for keys or 1 for values")
    row.appends(4)


def _repeat_heads(row: Row) -> None:
    x, y = row.input(0), row.output
    row.float_rows(x, y)
    heads, channels = row.heads(x)
    row.same(y.shape, (x.shape[0], heads * row.op.integer("times"), channels), y.name)


def _mask(row: Row) -> None:
    _tokens(row, 0)
    row.activations(row.output)
    row.same(row.output.shape, (TS, 1), row.output.name)


def _add_mask(row: Row) -> None:
    unary(row)
    x, mask = row.input(0), row.input(1)
    row.activations(x, mask)
    row.same(x.shape[:1], (TS,), x.name)
    row.same(mask.shape, (TS, 1), mask.name)


def _alibi(row: Row) -> None:
    _tokens(row, 0)
    y = row.output
    row.activations(y)
    row.same(y.shape[:1], (S,), y.name)
    row.constant(2, _last(y.shape))


def _scores(row: Row) -> None:
    q, k, y = row.input(0), row.input(1), row.output
    heads, channels = row.heads(q)
    row.activations(q, k, y)
    row.same(q.shape[:1], (T,), q.name)
    row.same(k.shape, (S, heads, channels), k.name)
    row.same(y.shape, (TS, heads), y.name)


def _plain_scores(row: Row) -> None:
    _scores(row)
    _tokens(row, 2)


def _alibi_scores(row: Row) -> None:
    _scores(row)
    bias = row.input(2)
    row.activations(row.output, bias)
    row.same(bias.shape, (S, *row.output.shape[1:]), bias.name)
    _tokens(row, 3)


def _context_softmax(row: Row) -> None:
    unary(row)
    row.same(row.output.shape[:1], (TS,), row.output.name)
    _tokens(row, 1)


def _mix(row: Row) -> None:
    p, v, y = row.input(0), row.input(1), row.output
    heads, channels = row.heads(v)
    row.activations(p, v, y)
    row.same(v.shape[:1], (S,), v.name)
    row.same(p.shape, (TS, heads), p.name)
    row.same(y.shape, (T, heads, channels), y.name)
    _tokens(row, 2)


def _group_scores(row: Row) -> None:
    q, k, y = row.input(0), row.input(1), row.output
    row.float_rows(q, k, y)
    row.heads(q, k)
    row.same(k.shape, q.shape, k.name)
    row.grouped(q, row.op.integer("group"))
    row.same(y.shape, (*q.shape[:2], row.op.integer("group")), y.name)


def _group_mix(row: Row) -> None:
    p, v, y = row.input(0), row.input(1), row.output
    row.float_rows(p, v, y)
    row.heads(p, v)
    row.grouped(v, row.op.integer("group"))
    row.same(p.shape, (*v.shape[:2], row.op.integer("group")), p.name)
    row.same(y.shape, v.shape, y.name)


def _tokens(row: Row, first: int) -> None:
    """Check positions and sequences, which say what part of the contexts belongs to each token."""
    row.row_input(first, T)
    row.row_input(first + 1, T)


EAGER_LEGAL: Mapping[str, Callable[[Row], None]] = {
    **dict.fromkeys(
        ("copy", "square", "rsqrt", "neg", "cos", "sin", "sigmoid", "tanh", "softmax", "scale", "shift", "heads_first"),
        unary,
    ),
    "cast": _cast,
    "mean": _mean,
    "mul_last": _mul_last,
    "mul_weight": _mul_weight,
    "mul_heads": _mul_heads,
    "cat": _cat,
    "slice": _slice,
    "to_float": _to_float,
    "angles": _angles,
    "kv_cat": _kv_cat,
    "repeat_heads": _repeat_heads,
    "mask": _mask,
    "add_mask": _add_mask,
    "alibi": _alibi,
    "scores": _plain_scores,
    "alibi_scores": _alibi_scores,
    "context_softmax": _context_softmax,
    "mix": _mix,
    "group_scores": _group_scores,
    "group_mix": _group_mix,
}

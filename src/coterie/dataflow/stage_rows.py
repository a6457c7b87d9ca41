"""The stages of each op in a section, with a row for each op that is more than elementwise.

Attention is three stages (scores, softmax, weigh): with the online softmax over blocks of keys, no row of scores is
stored.
Knows nothing about how many units there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from coterie.core.shapes import Sizes, numbers_in
from coterie.dataflow.loops import Tag
from coterie.dataflow.stage import Seen, Stage, Unit
from coterie.dataflow.walk import Walk
from coterie.graph.cost import FLOPS, pairs_of
from coterie.graph.flops import SOFTMAX_FLOPS
from coterie.graph.ir import Graph, Kind, Op, Value, state_of
from coterie.graph.ops import SCALE

_Rows: TypeAlias = Callable[[Graph, Op, Sizes, "_Where"], Sequence[Stage]]


@dataclass(frozen=True, slots=True)
class _Where:
    """An op in its section: its position, the rows it walks, its phase, and which size it walks along."""

    op: int
    rows: int
    phase: int
    walks: str


def stages_of(graph: Graph, walk: Walk, sizes: Sizes) -> tuple[Stage, ...]:
    """The stages of a section's ops, in order. Views have none: their readers index what their producers wrote.

    A section that consists of views is a copy, with its last view as a stage.
    """
    found: list[Stage] = []
    copies = all(nest.is_view for nest in walk.nests)
    for at, nest in enumerate(walk.nests):
        if nest.is_view and not (copies and at == len(walk.nests) - 1):
            continue
        where = _Where(at, walk.tiles_of(at), walk.phases[at], _walked_size(walk, at))
        found += WORK.get(nest.op.kind, _simd)(graph, nest.op, sizes, where)
    return tuple(found)


def _walked_size(walk: Walk, at: int) -> str:
    """The size of the stage that the walked loop belongs to."""
    name = walk.loops[at]
    if not name:
        return ""
    sides = {
        "linear": {"t": "m", "n": "n", "k": "k"},
        "linear_dx": {"t": "m", "n": "k", "k": "n"},
        "linear_dw": {"t": "k", "n": "m", "k": "n"},
    }
    if walk.nests[at].op.kind in sides:
        return sides[walk.nests[at].op.kind][name[0]]
    return "m" if walk.nests[at].loop(name).tag is not Tag.REDUCTION or name == "s" else "n"


def _linear(graph: Graph, op: Op, sizes: Sizes, where: _Where) -> Sequence[Stage]:
    """A linear or one of its gradients: the same three extents (tokens, rows, columns) in different roles."""
    weight = graph.values[op.outputs[0] if op.kind == "linear_dw" else op.inputs[1]]
    (rows, columns), t = (sizes.of(dim) for dim in weight.shape), sizes.of(graph.values[op.inputs[0]].shape[0])
    m, n, k = {
        "linear": (t, rows, _dense(columns, weight)),
        "linear_dx": (t, columns, _dense(rows, weight)),
        "linear_dw": (rows, _dense(columns, weight), t),
    }[op.kind]
    flops = FLOPS[op.kind](graph, op, sizes)
    stage = Stage(op.name, op.kind, where.op, Unit.SYSTOLIC, where.rows, where.phase, flops)
    return (replace(stage, m=m, n=n, k=k, walks=where.walks),)


def _dense(size: int, weight: Value) -> int:
    """The effective size of a dimension of a sparse matrix, if every output sums equally many elements.

    Optimistic: with an irregular pattern, lanes would be idle.
    """
    return max(1, math.ceil(weight.density * size))


def _attention(graph: Graph, op: Op, sizes: Sizes, where: _Where) -> Sequence[Stage]:
    q = graph.values[op.inputs[0]]
    heads, channels = (sizes.of(dim) for dim in q.shape[1:])
    kv_heads = _kv_heads(graph, op)
    flops = FLOPS[op.kind](graph, op, sizes)
    pairs = pairs_of(op, sizes)
    seen = _seen_by(op, sizes, pairs)
    base = Stage(op.name, op.kind, where.op, Unit.SYSTOLIC, where.rows, where.phase, 0, seen=seen)
    product = pairs * heads * 2 * channels
    m, context = sizes.of(q.shape[0]) * max(1, heads // kv_heads), max(1, round(sizes.context_tokens / max(1, sizes.B)))
    scores = replace(base, name=f"{op.name}.scores", kind="scores", flops=product, batch=kv_heads, m=m, n=context)
    softmax = replace(base, name=f"{op.name}.softmax", kind="softmax", unit=Unit.SIMD, m=m * kv_heads, n=context)
    weigh = replace(base, name=f"{op.name}.weigh", kind="weigh", flops=product, batch=kv_heads, m=m, n=channels)
    return (
        replace(scores, k=channels),
        replace(softmax, flops=flops - 2 * product, reduces=True),
        replace(weigh, k=context),
    )


def _group_attention(graph: Graph, op: Op, sizes: Sizes, where: _Where) -> Sequence[Stage]:
    """Every row of a group sees the whole group; groups and heads form the batch."""
    rows, heads, channels = (sizes.of(dim) for dim in graph.values[op.inputs[0]].shape)
    group = op.integer("group")
    flops, product = FLOPS[op.kind](graph, op, sizes), 2 * rows * group * heads * channels
    base = Stage(op.name, op.kind, where.op, Unit.SYSTOLIC, where.rows, where.phase, product)
    base = replace(base, batch=rows // group * heads, m=group, walks="m" if rows == group else "batch")
    return (
        replace(base, name=f"{op.name}.scores", kind="scores", n=group, k=channels),
        replace(
            base,
            name=f"{op.name}.softmax",
            kind="softmax",
            unit=Unit.SIMD,
            flops=flops - 2 * product,
            n=group,
            reduces=True,
        ),
        replace(base, name=f"{op.name}.weigh", kind="weigh", n=channels, k=group),
    )


def _attention_grad(graph: Graph, op: Op, sizes: Sizes, where: _Where) -> Sequence[Stage]:
    """Five products of the size of the scores, and the softmax with its gradient, as one stage."""
    (t, heads, channels), kv_heads = (sizes.of(d) for d in graph.values[op.inputs[1]].shape), graph.values[op.inputs[2]]
    groups = sizes.of(kv_heads.shape[1])
    flops = FLOPS[op.kind](graph, op, sizes)
    seen = _seen_by(op, sizes, pairs_of(op, sizes))
    base = Stage(op.name, "scores", where.op, Unit.SYSTOLIC, where.rows, where.phase, flops, seen=seen)
    keys = max(1, sizes.context_tokens // max(1, sizes.B))
    return (replace(base, batch=groups, m=t * heads // groups, n=keys, k=5 * channels + SOFTMAX_FLOPS),)


def _kv_heads(graph: Graph, op: Op) -> int:
    """Number of KV heads of an attention op."""
    return numbers_in(state_of(graph, op).shape[2:3])


def _seen_by(op: Op, sizes: Sizes, pairs: int) -> Seen:
    """The keys visible to each token, assuming equal sequences."""
    new = max(1, sizes.T // max(1, sizes.B))
    past = max(0.0, sizes.context_tokens / max(1, sizes.B) - new)
    guess = Seen(past, new, int(op.attrs.get("window", 0)), 1.0)
    counted = guess.pairs(0, max(1, sizes.T))
    return replace(guess, scale=pairs / counted if counted else 1.0)


def _simd(graph: Graph, op: Op, sizes: Sizes, where: _Where) -> Sequence[Stage]:
    """Elementwise work and norms, over the larger of operand and result; `passes` by op kind."""
    unit, passes, reduces = SIMD.get(op.kind, (Unit.SIMD, 1, False))
    unit = Unit.SIMD if op.kind in SCALED_ROWS and SCALE in op.attrs else unit
    shapes = [graph.values[name].shape for name in (op.inputs[0], *op.outputs) if graph.values[name].kind is not STATE]
    widest = max(shapes, key=sizes.count) if op.kind not in ("embed_dw", "positions_dw") else shapes[0]
    m = max(1, sizes.of(widest[0]) if widest else 1)
    m, n = (
        (m, sizes.count(widest) // m)
        if m % max(1, where.rows) == 0
        else (where.rows, sizes.count(widest) // where.rows)
    )
    flops = FLOPS[op.kind](graph, op, sizes)
    stage = Stage(op.name, op.kind, where.op, unit, where.rows, where.phase, flops, 1, m, max(1, n))
    return (replace(stage, walks="m", passes=passes, reduces=reduces),)


STATE = Kind.STATE
SCALED_ROWS = ("embed", "embed_part")  # run on memory units, unless they have a scale
# (unit, passes over the values, whether a row is reduced). A PCU has six stages: an activation fits in one pass; a norm
# needs two, one for the sum and one to scale.
SIMD: Mapping[str, tuple[Unit, int, bool]] = {
    **dict.fromkeys(("rms_norm", "layer_norm", "sample"), (Unit.SIMD, 2, True)),
    **dict.fromkeys(("rms_norm_dx", "layer_norm_dx", "loss_dx", "loss_parts"), (Unit.SIMD, 2, True)),
    **dict.fromkeys(("embed", "embed_part", "embed_dw", "positions_dw", "kv_append"), (Unit.MEMORY, 1, False)),
    **dict.fromkeys(("merge_rows", "first_row", "drop_first", "take_rows", "take_rows_dx"), (Unit.MEMORY, 1, False)),
    **dict.fromkeys(("swap", "take_heads"), (Unit.MEMORY, 1, False)),
    **dict.fromkeys(("all_reduce", "all_gather"), (Unit.LINK, 1, False)),
}
WORK: Mapping[str, _Rows] = {
    "linear": _linear,
    "attention": _attention,
    "alibi_attention": _attention,
    "group_attention": _group_attention,
    "linear_dx": _linear,
    "linear_dw": _linear,
    "attention_grad": _attention_grad,
}

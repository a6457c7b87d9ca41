"""What one firing of an op computes: a tile of its result, or a tile's contribution to a sum over tiles.

Most ops apply graph/reference.py to the tile; the others, which depend on the tile's position, are here.
Attention uses the online softmax over blocks of keys (running maximum, sum and result): it never holds a row of scores.

Knows nothing about FIFOs, bytes or time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from coterie.core.scales import in_bf16
from coterie.dataflow.loops import Nest
from coterie.dataflow.walk import dimension_of
from coterie.graph.ir import Graph, Op
from coterie.graph.ops import ROUNDING
from coterie.graph.reference import run_op
from coterie.graph.rope import grown
from coterie.graph.sampling import Settings
from coterie.graph.step import KvState, Step

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Outside:
    """What a firing may use besides its operands: the section's inputs, KV state, sampling settings."""

    values: Mapping[str, Array]
    state: KvState | None
    sampling: Sequence[Settings]


@dataclass(frozen=True, slots=True)
class Firing:
    """One firing: iterations [first, last) of the op's walked loop of `size`, with its operand tiles.

    `reads_keys(op, sequence, begin, end)` is called for each range of keys read.
    """

    graph: Graph
    nest: Nest
    loop: str
    first: int
    last: int
    size: int
    operands: Mapping[str, Array]
    outside: Outside
    key_block: int
    reads_keys: Callable[[Op, int, int, int], None]

    @property
    def op(self) -> Op:
        """The op that fires."""
        return self.nest.op

    def operand(self, at: int) -> Array:
        """The tile of an operand, by position."""
        return self.operands[self.op.inputs[at]]


def compute(firing: Firing) -> dict[str, Array]:
    """The op's results by name; empty for an op that only writes state."""
    return WORK.get(firing.op.kind, _plain)(firing)


def _plain(firing: Firing, op: Op | None = None, operands: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Run the reference implementation with shapes reduced to the tile."""
    op = op or firing.op
    names = (name for name in (*op.inputs, *op.outputs) if name)
    values = {name: firing.graph.values[name] for name in names}
    for access in firing.nest.writes:
        dimension, shape = dimension_of(access, firing.loop), list(values[access.value].shape)
        if dimension is not None and isinstance(dim := shape[dimension], int):
            shape[dimension] = dim * (firing.last - firing.first) // firing.size
            values[access.value] = replace(values[access.value], shape=tuple(shape))
    known = dict(firing.operands if operands is None else operands)
    state = cast(KvState, firing.outside.state)  # may be None, but then no op uses it
    step = Step(Graph(firing.graph.name, values, (op,)), known, state, firing.outside.sampling)
    run_op(step, op)
    return {name: step.values[name] for name in op.outputs if name in step.values}


def _linear(firing: Firing) -> dict[str, Array]:
    """In a sum over tiles, only the first tile adds the bias."""
    op = firing.op
    if firing.loop.startswith("k") and firing.first:
        op = replace(op, inputs=(*op.inputs[:2], ""))
    return _plain(firing, op)


def _sample(firing: Firing) -> dict[str, Array]:
    rows = slice(firing.first, firing.last)
    values = firing.outside.values
    operands = {**firing.operands, "positions": values["positions"], "rows": values["rows"][rows]}
    outside = replace(firing.outside, sampling=firing.outside.sampling[rows])
    return _plain(replace(firing, outside=outside), operands=operands)


def _by_table(firing: Firing) -> dict[str, Array]:
    """Select the table's rows that belong to the tile; the table repeats."""
    table = firing.op.inputs[1]
    if dimension_of(firing.nest.writes[0], firing.loop) != 0:
        return _plain(firing)
    rows = np.arange(firing.first, firing.last) % len(firing.operands[table])
    return _plain(firing, operands={**firing.operands, table: firing.operands[table][rows]})


def _mean_slope(firing: Firing) -> dict[str, Array]:
    """Scale by the tile's share of the rows, since the loss is a mean over all rows."""
    (name,), share = firing.op.outputs, np.float32((firing.last - firing.first) / firing.size)
    return {name: np.asarray(_plain(firing)[name] * share, np.float32)}


def _put_rows(firing: Firing) -> dict[str, Array]:
    x, rows = firing.operand(0), firing.operand(1)
    if dimension_of(firing.nest.writes[0], firing.loop) != 0:
        first, last = 0, len(firing.outside.values["positions"])
    else:
        first, last = firing.first, firing.last
    made = np.zeros((last - first, *x.shape[1:]), np.float32)
    own = (rows >= first) & (rows < last)
    np.add.at(made, rows[own] - first, x[own])
    return {firing.op.outputs[0]: made}


def _merge_rows(firing: Firing) -> dict[str, Array]:
    """Skip the `rows` that tokens of earlier tiles consumed."""
    _, tokens, rows = firing.op.inputs
    before = int((firing.outside.values[tokens][: firing.first] == firing.op.integer("token")).sum())
    return _plain(firing, operands={**firing.operands, rows: firing.operands[rows][before:]})


def _table_slope(firing: Firing) -> dict[str, Array]:
    """Rows of a table's gradient: all, or those of the tile if the table is walked."""
    op = firing.op
    first = int(op.attrs.get("first_row", 0)) - int(op.attrs.get("offset", 0))
    first += firing.first if firing.loop == "w0" else 0
    return _plain(firing, replace(op, kind="embed_dw", attrs={"first_row": first, "scale": op.scale}))


@dataclass(slots=True)
class _Running:
    """Online softmax for groups of queries [G, T, H, C]: running maximum, sum of exponentials, weighted values.

    `rounds`: queries and exponentials (relative to the running maximum) are rounded to bfloat16.
    """

    q: Array
    scale: np.float32
    cap: float
    rounds: bool
    maximum: Array
    total: Array
    result: Array

    @classmethod
    def over(cls, q: Array, scale: float, channels: int, cap: float = 0.0, rounds: bool = False) -> _Running:
        """The initial state."""
        start = np.full(q.shape[:3], -np.inf, np.float32)
        result = np.zeros((*q.shape[:3], channels), np.float32)
        return cls(in_bf16(q) if rounds else q, np.float32(scale), cap, rounds, start, np.zeros_like(start), result)

    def scores(self, keys: Array, bias: Array) -> Array:
        """Scores [G, T, H, S] for a block of keys [G, S, H, C]; `bias` [H, S]."""
        scores = np.einsum("gthc,gshc->gths", self.q, keys) * self.scale
        if self.cap:
            scores = np.float32(self.cap) * np.tanh(scores / np.float32(self.cap))
        return np.asarray(scores + bias, np.float32)

    def add(self, keys: Array, held: Array, bias: Array) -> None:
        """Accumulate a block of keys and values."""
        scores = self.scores(keys, bias)
        higher = np.maximum(self.maximum, scores.max(axis=-1))
        fade, p = np.exp(self.maximum - higher), np.exp(scores - higher[..., None])
        p = in_bf16(p) if self.rounds else p
        self.total = self.total * fade + p.sum(axis=-1)
        self.result = self.result * fade[..., None] + np.einsum("gths,gshc->gthc", p, held)
        self.maximum = higher

    def sink(self, scores: Array) -> None:
        """Accumulate attention sinks: an extra score per head that has no value."""
        higher = np.maximum(self.maximum, scores)
        fade = np.exp(self.maximum - higher)
        self.total, self.result = self.total * fade + np.exp(scores - higher), self.result * fade[..., None]
        self.maximum = higher

    def shares(self, keys: Array, bias: Array) -> Array:
        """The softmax of a block, once all keys were accumulated."""
        return np.asarray(np.exp(self.scores(keys, bias) - self.maximum[..., None]) / self.total[..., None], np.float32)

    @property
    def mixed(self) -> Array:
        """The result, once all keys were accumulated."""
        return np.asarray(self.result / self.total[..., None], np.float32)


def _blocks(length: int, block: int) -> Iterable[slice]:
    return (slice(at, min(length, at + block)) for at in range(0, length, block))


NO_BIAS = np.zeros((1, 1), np.float32)


def _attention(firing: Firing) -> dict[str, Array]:
    """Each token attends to its visible keys, read from the pages of its sequence."""
    op, state = firing.op, cast(KvState, firing.outside.state)
    q = grown(op, firing.operand(0), firing.operand(1))
    window = int(op.attrs.get("window", 0))
    slopes = firing.operand(4)[:, None] if op.kind == "alibi_attention" else NO_BIAS
    positions, sequences, tables = (firing.operand(at) for at in (1, 2, 3))
    made = np.empty_like(q)
    for t, position in enumerate(positions):
        length = int(position) + 1
        begin = max(0, length - window) if window else 0
        firing.reads_keys(op, int(sequences[t]), begin, length)
        k, v = (state.context(op, i, tables[sequences[t]], length)[begin:] for i in (0, 1))
        share = q.shape[1] // k.shape[1]
        running = _Running.over(q[None, None, t], op.number("scale"), v.shape[2], op.cap, ROUNDING in op.attrs)
        for block in _blocks(len(k), firing.key_block):
            bias = slopes * np.arange(begin + block.start, begin + block.stop, dtype=np.float32)
            running.add(np.repeat(k[block], share, axis=1)[None], np.repeat(v[block], share, axis=1)[None], bias)
        if op.sinks:
            running.sink(firing.operand(5))
        made[t] = running.mixed[0, 0]
    return {op.outputs[0]: made}


def _group_attention(firing: Firing) -> dict[str, Array]:
    """Attention within whole groups; a single group may be walked by rows, each of which sees all of it."""
    op = firing.op
    groups = len(firing.operand(1)) // op.integer("group")
    q, k, v = (firing.operand(at).reshape(groups, -1, *firing.operand(at).shape[1:]) for at in range(3))
    running = _Running.over(q, op.number("scale"), v.shape[3])
    for block in _blocks(k.shape[1], firing.key_block):
        running.add(k[:, block], v[:, block], NO_BIAS)
    return {op.outputs[0]: running.mixed.reshape(-1, *running.mixed.shape[2:])}


def _attention_grad(firing: Firing) -> dict[str, Array]:
    """Two passes over the keys of each query: online softmax, then gradients; dk and dv are sums over queries.

    The gradient of a score is p * (dp - sum of p * dp), where that sum equals dy * y.
    """
    op = firing.op
    dy, q, k, v, positions, sequence = (firing.operand(at) for at in range(6))
    share, window, scale = q.shape[1] // k.shape[1], op.integer("window"), np.float32(op.number("scale"))
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for t, at in enumerate(range(firing.first, firing.last)):
        ago = positions[at] - positions
        seen = np.flatnonzero((sequence == sequence[at]) & (ago >= 0) & ((ago < window) if window else True))
        running = _Running.over(q[None, None, t], op.number("scale"), v.shape[2])
        blocks = [seen[block] for block in _blocks(len(seen), firing.key_block)]
        for block in blocks:
            running.add(np.repeat(k[block], share, axis=1)[None], np.repeat(v[block], share, axis=1)[None], NO_BIAS)
        mean = (dy[t] * running.mixed[0, 0]).sum(axis=-1)
        for block in blocks:
            keys, held = (np.repeat(array[block], share, axis=1) for array in (k, v))
            p = running.shares(keys[None], NO_BIAS)[0, 0]
            ds = p * (np.einsum("hc,shc->hs", dy[t], held) - mean[:, None]) * scale
            dq[t] += np.einsum("hs,shc->hc", ds, keys)
            for out, wide in ((dk, np.einsum("hs,hc->shc", ds, q[t])), (dv, np.einsum("hs,hc->shc", p, dy[t]))):
                out[block] += wide.reshape(len(block), k.shape[1], share, -1).sum(axis=2)
    return dict(zip(op.outputs, (dq, dk, dv), strict=True))


WORK: Mapping[str, Callable[[Firing], dict[str, Array]]] = {
    "linear": _linear,
    "attention": _attention,
    "alibi_attention": _attention,
    "group_attention": _group_attention,
    "attention_grad": _attention_grad,
    "sample": _sample,
    "mul_table": _by_table,
    "add_table": _by_table,
    "merge_rows": _merge_rows,
    "loss_dx": _mean_slope,
    "loss_part_dx": _mean_slope,
    "take_rows_dx": _put_rows,
    "embed_dw": _table_slope,
    "positions_dw": _table_slope,
}

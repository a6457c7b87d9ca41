"""The slow, plain NumPy interpreter of a graph. It defines what is correct; every device is tested against it.

Float32 throughout, except that the KV state is rounded to its own type, and operands as an op's `rounding` says.
Knows nothing about devices or speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from coterie.core.errors import UsageError
from coterie.core.scales import in_bf16
from coterie.core.shapes import fixed
from coterie.graph.backward.reference import BACKWARD_RUN
from coterie.graph.branch.reference import BRANCH_RUN, gelu, round_activations, silu, softmax
from coterie.graph.delta_net.reference import DELTA_RUN
from coterie.graph.eager.reference import EAGER_RUN
from coterie.graph.ir import Graph, Kind, Op
from coterie.graph.latent.reference import LATENT_RUN
from coterie.graph.layer.ops import MUL_ONE, MUL_PART, PART
from coterie.graph.ops import COLLECTIVES, DERIVED_ROWS, ROUNDING, ROW_INPUTS, SCALE, TYPES
from coterie.graph.program import Region
from coterie.graph.rope import grown, rotate
from coterie.graph.rows import derived_rows
from coterie.graph.sampling import Settings, draw
from coterie.graph.scan.reference import SCAN_RUN
from coterie.graph.step import F32, Array, KvState, Run, Step

__all__ = ["KvState", "Reference", "Step", "collective_results", "run_op", "run_ranks"]


class Reference:
    """Interprets one graph. Weights are float32 arrays by name; sparse ones are dense arrays with their zeros.

    Raises UsageError if a weight is missing, has the wrong shape, or more nonzero elements than its density allows.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, F32]) -> None:
        self.graph = graph
        for value in graph.weights:
            found = weights[value.name].shape if value.name in weights else None
            if found != value.shape:
                raise UsageError(graph.name, f"weight {value.name} is {found}, not {value.shape}", "give every weight")
            whole = weights[value.name].size
            held = whole if value.density == 1.0 else np.count_nonzero(weights[value.name])
            if held > round(value.density * whole):
                fact = f"weight {value.name} has {held} of {whole} elements, its density is {value.density:g}"
                raise UsageError(graph.name, fact, "set the others to zero")
        constants = {v.name: np.array(v.data, np.float32) for v in graph.values.values() if v.kind is Kind.CONSTANT}
        self.fixed: dict[str, Array] = {**constants, **weights}

    def run(self, rows: Mapping[str, Array], sampling: Sequence[Settings], state: KvState) -> dict[str, Array]:
        """Run a step and return every value by name.

        `rows` has tokens, positions, sequence, block_tables and rows, and for pairs of texts also types.
        """
        step = self.begun(rows, sampling, state)
        for op in self.graph.ops:
            run_op(step, op)
        return step.values

    def begun(self, rows: Mapping[str, Array], sampling: Sequence[Settings], state: KvState) -> Step:
        """The step that `run` executes, before its first op."""
        types_T = np.asarray(rows.get(TYPES, ())).tolist()
        positions_T, sequence_T = [np.asarray(rows.get(name, ())) for name in ("positions", "sequence")]
        more = derived_rows(self.graph, positions_T, sequence_T, types_T)
        return Step(self.graph, {**self.fixed, **rows, **more}, state, sampling)

    def run_region(
        self, region: Region, values: Mapping[str, Array], sampling: Sequence[Settings], state: KvState
    ) -> dict[str, Array]:
        """Run one region's ops and return its outputs. `values` holds its inputs and the step's rows."""
        known = {name: values[name] for name in (*region.inputs, *ROW_INPUTS, *DERIVED_ROWS) if name in values}
        step = Step(self.graph, {**self.fixed, **known}, state, sampling)
        for op in region.ops:
            run_op(step, op)
        return {name: step.values[name] for name in region.outputs if name in step.values}


def run_ranks(
    ranks: Sequence[Reference],
    rows: Mapping[str, Array],
    sampling: Sequence[Settings],
    states: Sequence[KvState],
) -> list[dict[str, Array]]:
    """Run a step of a sharded graph on all its ranks, op by op; return every value of each rank by name.

    Each rank has its own graph (shard.py), weights and KV state, and the same rows.
    """
    steps = [rank.begun(rows, sampling, state) for rank, state in zip(ranks, states, strict=True)]
    for ops in zip(*(rank.graph.ops for rank in ranks), strict=True):
        if ops[0].kind not in COLLECTIVES:
            for step, op in zip(steps, ops, strict=True):
                run_op(step, op)
            continue
        parts = [step.values[op.inputs[0]] for step, op in zip(steps, ops, strict=True)]
        for step, op, joined in zip(steps, ops, collective_results(ops[0], parts), strict=True):
            step.values[op.outputs[0]] = joined
    return [step.values for step in steps]


def collective_results(op: Op, parts: Sequence[Array]) -> list[Array]:
    """Each rank's result of a collective, given all ranks' inputs; every `ranks` neighbouring ranks form a group."""
    found: list[Array] = []
    for first in range(0, len(parts), op.integer("ranks")):
        group = parts[first : first + op.integer("ranks")]
        joined = np.concatenate(group, axis=1) if op.kind == "all_gather" else np.sum(group, axis=0)
        found += [np.asarray(joined, np.float32)] * len(group)
    return found


def run_op(step: Step, op: Op) -> None:
    """Run one op on the step's values."""
    result = OPS[op.kind](step, op, [_operand(step, name) for name in op.inputs])
    if result is not None:
        step.values[op.outputs[0]] = result


def _operand(step: Step, name: str) -> Array | None:
    """The value of an operand; None if it is absent, or if the op finds it in the step itself."""
    if not name or name == "sampling" or step.graph.values[name].kind is Kind.STATE:
        return None
    return step.values[name]


def _embed(step: Step, op: Op, x: list[Any]) -> Array:
    rows = x[1][x[0]]
    shape = [dim for dim in step.graph.values[op.outputs[0]].shape[1:] if isinstance(dim, int)]
    return _scaled(op, rows.reshape(len(rows), *shape))


def _scaled(op: Op, y: Array) -> Array:
    return np.asarray(y * np.float32(op.scale) if SCALE in op.attrs else y, np.float32)


def _rms_norm(step: Step, op: Op, x: list[Any]) -> Array:
    rows = x[0].reshape(-1, len(x[1]))
    mean = np.mean(np.square(rows), axis=-1, keepdims=True, dtype=np.float32)
    weight = x[1] + np.float32(op.offset) if op.offset else x[1]
    y = rows / np.sqrt(mean + np.float32(op.number("eps"))) * weight
    return np.asarray(y.reshape(x[0].shape), np.float32)


def _linear(step: Step, op: Op, x: list[Any]) -> Array:
    flat = round_activations(op, x[0].reshape(len(x[0]), x[1].shape[1]), step.graph.values[op.inputs[1]].dtype)
    y = flat @ x[1].T
    if x[2] is not None:
        y = y + x[2]
    shape = fixed(step.graph.values[op.outputs[0]].shape[1:])
    return _scaled(op, y.reshape(len(flat), *shape))


def _kv_append(step: Step, op: Op, x: list[Any]) -> None:
    k, v, positions, sequence, tables = x[:5]
    for t, position in enumerate(positions):
        for which, part in enumerate((k, v)):
            step.state.append(op, which, tables[sequence[t]], int(position), part[t])


def _attention(step: Step, op: Op, x: list[Any]) -> Array:
    return _attend(step, op, x, op.integer("window"))


def _alibi_attention(step: Step, op: Op, x: list[Any]) -> Array:
    return _attend(step, op, x, 0, lambda keys_S, position: x[4][:, None] * keys_S.astype(np.float32))


def _relative_attention(step: Step, op: Op, x: list[Any]) -> Array:
    table, buckets = x[4].reshape(-1, x[0].shape[1]), x[5]

    def bias(keys_S: Array, position: int) -> Array:
        distances_S = keys_S - position
        if buckets is None:
            return np.asarray(-table.T * np.abs(distances_S).astype(np.float32))
        reach = len(buckets) // 2
        return np.asarray(table[buckets[np.clip(distances_S, -reach, reach) + reach].astype(np.int32)].T)

    return _attend(step, op, x, 0, bias)


def _attend(step: Step, op: Op, x: list[Any], window: int, bias: Callable[[Array, int], Array] | None = None) -> Array:
    q, limits, sequence, tables = x[:4]
    q, y = grown(op, q, limits), np.empty_like(q)
    rounds = ROUNDING in op.attrs
    for t, limit in enumerate(limits):
        position = int(step.values["positions"][t])  # differs from `limit` in bidirectional attention
        first = max(0, position + 1 - window) if window else 0
        length = min(int(limit), position + window - 1 if window else int(limit)) + 1
        k, v = (step.state.context(op, i, tables[sequence[t]], length)[first:] for i in (0, 1))
        share = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, share, axis=1), np.repeat(v, share, axis=1)
        scores = np.einsum("hc,shc->hs", in_bf16(q[t]) if rounds else q[t], k) * np.float32(op.number("scale"))
        scores = _capped(scores, op.cap) if op.cap else scores
        scores = scores if bias is None else scores + bias(np.arange(first, length), position)
        if op.sinks:
            scores = np.concatenate([scores, x[5][:, None]], axis=1)
        y[t] = np.einsum("hs,shc->hc", _weights(scores, len(k), rounds), v)
    return np.asarray(y, np.float32)


def _weights(scores: Array, count: int, rounds: bool) -> Array:
    """Softmax weights of the first `count` values.

    Rounding applies to exponentials relative to the largest of their scores; a CPU uses the largest of each span of
    keys instead.
    """
    if not rounds:
        return softmax(scores)[:, :count]
    p, own = np.exp(scores - scores.max(axis=-1, keepdims=True)), scores[:, :count]
    highest = own.max(axis=-1, keepdims=True)
    p[:, :count] = in_bf16(np.exp(own - highest)) * np.exp(highest - scores.max(axis=-1, keepdims=True))
    return np.asarray((p / p.sum(axis=-1, keepdims=True))[:, :count])


def _capped(x: Array, cap: float) -> Array:
    return np.asarray(np.float32(cap) * np.tanh(x / np.float32(cap)), np.float32)


def _sample(step: Step, op: Op, x: list[Any]) -> Array:
    positions = step.values["positions"][step.values["rows"]]
    drawn = [draw(row, s, int(p)) for row, s, p in zip(x[0], step.sampling, positions, strict=True)]
    return np.array(drawn, np.int32)


def _layer_norm(step: Step, op: Op, x: list[Any]) -> Array:
    centred = x[0] - np.mean(x[0], axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True, dtype=np.float32)
    y = centred / np.sqrt(variance + np.float32(op.number("eps"))) * x[1]
    return np.asarray(y if x[2] is None else y + x[2], np.float32)


def _group_attention(step: Step, op: Op, x: list[Any]) -> Array:
    q, k, v = (part.reshape(-1, op.integer("group"), *part.shape[1:]) for part in x)
    scores = np.einsum("gthc,gshc->gths", q, k) * np.float32(op.number("scale"))
    y = np.einsum("gths,gshc->gthc", softmax(scores), v)
    return np.asarray(y.reshape(x[0].shape), np.float32)


def _take_heads(step: Step, op: Op, x: list[Any]) -> Array:
    first, of, (rows, heads, channels) = op.integer("first"), op.integer("of"), x[0].shape
    groups = x[0].reshape(rows, heads // of, of, channels)[:, :, first : first + op.integer("count")]
    return np.asarray(groups.reshape(rows, groups.shape[1] * groups.shape[2], channels))


def _table(x: list[Any]) -> Array:
    """The table, repeated for each group of rows."""
    return np.tile(x[1], (len(x[0]) // len(x[1]), 1))


def _first_row(step: Step, op: Op, x: list[Any]) -> Array:
    groups = x[0].reshape(-1, op.integer("group"), x[0].shape[1])
    rows = np.broadcast_to(x[1], (len(groups), 1, x[0].shape[1]))
    return np.asarray(np.concatenate([rows, groups], axis=1).reshape(-1, x[0].shape[1]), np.float32)


def _drop_first(step: Step, op: Op, x: list[Any]) -> Array:
    return np.asarray(x[0].reshape(-1, op.integer("group"), x[0].shape[1])[:, 1:].reshape(-1, x[0].shape[1]))


def _merge_rows(step: Step, op: Op, x: list[Any]) -> Array:
    y, taken = x[0].copy(), x[1] == op.integer("token")
    y[taken] = x[2][: int(taken.sum())]
    return np.asarray(y)


def _swap(step: Step, op: Op, x: list[Any]) -> Array:
    seen = x[0].reshape(-1, op.integer("outer"), op.integer("middle"), op.integer("inner"))
    return np.asarray(seen.transpose(0, 3, 2, 1).reshape(-1, op.integer("outer")))


def _embed_part(step: Step, op: Op, x: list[Any]) -> Array:
    local = x[0] - op.integer("first_row")
    own = (local >= 0) & (local < len(x[1]))
    return _scaled(op, np.where(own[:, None], x[1][np.where(own, local, 0)], np.float32(0)))


def _collective(step: Step, op: Op, x: list[Any]) -> Array:
    fact = f"{op.kind} needs the values of all {op.integer('ranks')} ranks"
    raise UsageError(f"{step.graph.name}: {op.name}", fact, "interpret all ranks together with run_ranks")


def _xielu(x: F32, alpha_p: F32, alpha_n: F32, beta: F32, eps: F32) -> F32:
    above, below = (np.logaddexp(np.float32(0), alpha) for alpha in (alpha_p, alpha_n))
    left = (np.expm1(np.minimum(x, eps)) - x) * (beta + below)
    return np.asarray(np.where(x > 0, above * x * x, left) + beta * x, np.float32)


OPS: Mapping[str, Run] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": lambda step, op, x: rotate(op, x),
    "kv_append": _kv_append,
    "attention": _attention,
    "add": lambda step, op, x: np.asarray(x[0] + x[1], np.float32),
    "silu": lambda step, op, x: silu(x[0]),
    "mul": lambda step, op, x: np.asarray(x[0] * x[1], np.float32),
    MUL_PART: lambda step, op, x: np.asarray(x[0] * x[1][:, op.integer(PART)], np.float32),
    MUL_ONE: lambda step, op, x: np.asarray(x[0] * x[1][0], np.float32),
    "take_rows": lambda step, op, x: np.asarray(x[0][x[1]]),
    "sample": _sample,
    "layer_norm": _layer_norm,
    "relu": lambda step, op, x: np.asarray(np.maximum(x[0], 0), np.float32),
    "relu_squared": lambda step, op, x: np.asarray(np.square(np.maximum(x[0], 0)), np.float32),
    "xielu": lambda step, op, x: _xielu(*x),
    "add_positions": lambda step, op, x: np.asarray(x[0] + x[2][x[1] + op.integer("offset")], np.float32),
    "gelu": lambda step, op, x: gelu(x[0], str(op.attrs["form"])),
    "softcap": lambda step, op, x: _capped(x[0], op.cap),
    "alibi_attention": _alibi_attention,
    "relative_attention": _relative_attention,
    "group_attention": _group_attention,
    "take_heads": _take_heads,
    "add_bias": lambda step, op, x: np.asarray(x[0] + x[1].reshape(x[0].shape[1:]), np.float32),
    "add_table": lambda step, op, x: np.asarray(x[0] + _table(x), np.float32),
    "mul_table": lambda step, op, x: np.asarray(x[0] * _table(x), np.float32),
    "first_row": _first_row,
    "drop_first": _drop_first,
    "merge_rows": _merge_rows,
    "swap": _swap,
    "sub": lambda step, op, x: np.asarray(x[0] - x[1], np.float32),
    "embed_part": _embed_part,
    "all_reduce": _collective,
    "all_gather": _collective,
    **BRANCH_RUN,
    **DELTA_RUN,
    **SCAN_RUN,
    **LATENT_RUN,
    **EAGER_RUN,
    **BACKWARD_RUN,
}

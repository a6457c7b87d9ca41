"""The slow, plain NumPy interpreter of a graph. It defines what is correct; every device is tested against it.

Float32 throughout; only the KV state is rounded to its own type. Knows nothing about devices or speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.errors import UsageError
from coterie.graph.ir import Graph, Kind, Op
from coterie.graph.ops import ROW_INPUTS
from coterie.graph.program import Region
from coterie.graph.sampling import Settings, draw

Array: TypeAlias = npt.NDArray[Any]
F32: TypeAlias = npt.NDArray[np.float32]


class KvState:
    """KV pages of a graph: [blocks, L, 2, K, Z, C], in float32 but holding only numbers that the KV type can hold."""

    def __init__(self, graph: Graph, num_blocks: int, tokens_per_block: int) -> None:
        state = next(value for value in graph.values.values() if value.kind is Kind.STATE)
        layers, two, heads, channels = (int(dim) for dim in state.shape if isinstance(dim, int))
        self.dtype: DType = state.dtype
        self.tokens_per_block = tokens_per_block
        self.pages = np.zeros((num_blocks, layers, two, heads, tokens_per_block, channels), np.float32)

    def append(self, layer: int, which: int, position: int, block: int, heads_KC: F32) -> None:
        """Store one token's K (which 0) or V (1), rounded to nearest even."""
        rounded = to_f32(from_f32(heads_KC, self.dtype), self.dtype)
        self.pages[block, layer, which, :, position % self.tokens_per_block] = rounded

    def context(self, layer: int, which: int, blocks: Array, length: int) -> F32:
        """K or V of the first `length` tokens of a sequence: [length, K, C]."""
        used = blocks[: -(-length // self.tokens_per_block)]
        pages = self.pages[used, layer, which]
        flat: F32 = pages.transpose(0, 2, 1, 3).reshape(-1, pages.shape[1], pages.shape[3])[:length]
        return flat


@dataclass(slots=True)
class Step:
    """Everything an op may read: values by name, the KV state, and the sampling settings of each row."""

    graph: Graph
    values: dict[str, Array]
    state: KvState
    sampling: Sequence[Settings] = field(default_factory=tuple)


class Reference:
    """Interprets one graph with weights given as float32 arrays by name.

    Raises UsageError when a weight of the graph is missing or has another shape.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, F32]) -> None:
        self.graph = graph
        for value in graph.weights:
            found = weights[value.name].shape if value.name in weights else None
            if found != value.shape:
                raise UsageError(graph.name, f"weight {value.name} is {found}, not {value.shape}", "give every weight")
        constants = {v.name: np.array(v.data, np.float32) for v in graph.values.values() if v.kind is Kind.CONSTANT}
        self._fixed: dict[str, Array] = {**constants, **weights}

    def run(self, rows: Mapping[str, Array], sampling: Sequence[Settings], state: KvState) -> dict[str, Array]:
        """Run a step and return every value by name. `rows` has tokens, positions, sequence, block_tables and rows."""
        step = Step(self.graph, {**self._fixed, **rows}, state, sampling)
        for op in self.graph.ops:
            run_op(step, op)
        return step.values

    def run_region(
        self, region: Region, values: Mapping[str, Array], sampling: Sequence[Settings], state: KvState
    ) -> dict[str, Array]:
        """Run the ops of one region on its inputs, found in `values` with the step's rows; return what it puts out."""
        known = {name: values[name] for name in (*region.inputs, *ROW_INPUTS) if name in values}
        step = Step(self.graph, {**self._fixed, **known}, state, sampling)
        for op in region.ops:
            run_op(step, op)
        return {name: step.values[name] for name in region.outputs if name in step.values}


def run_op(step: Step, op: Op) -> None:
    """Run one op on the step's values."""
    result = OPS[op.kind](step, op, [_operand(step, name) for name in op.inputs])
    if result is not None:
        step.values[op.outputs[0]] = result


def _operand(step: Step, name: str) -> Array | None:
    """The value of an operand; None where it is left out, or where the op finds it in the step itself."""
    if not name or name == "sampling" or step.graph.values[name].kind is Kind.STATE:
        return None
    return step.values[name]


def _embed(step: Step, op: Op, x: list[Any]) -> Array:
    return np.asarray(x[1][x[0]])


def _rms_norm(step: Step, op: Op, x: list[Any]) -> Array:
    mean = np.mean(np.square(x[0]), axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(x[0] / np.sqrt(mean + np.float32(op.number("eps"))) * x[1], np.float32)


def _linear(step: Step, op: Op, x: list[Any]) -> Array:
    flat = x[0].reshape(len(x[0]), x[1].shape[1])
    y = flat @ x[1].T
    if x[2] is not None:
        y = y + x[2]
    shape = [dim for dim in step.graph.values[op.outputs[0]].shape[1:] if isinstance(dim, int)]
    return np.asarray(y.reshape(len(flat), *shape), np.float32)


def _rope(step: Step, op: Op, x: list[Any]) -> Array:
    angles = x[1].astype(np.float32)[:, None, None] * x[2]
    cos, sin = (np.asarray(f(angles) * np.float32(op.number("scale")), np.float32) for f in (np.cos, np.sin))
    left, right = np.split(x[0], 2, axis=-1)
    return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def _kv_append(step: Step, op: Op, x: list[Any]) -> None:
    k, v, positions, sequence, tables = x[:5]
    for t, position in enumerate(positions):
        block = int(tables[sequence[t]][position // step.state.tokens_per_block])
        step.state.append(op.integer("layer"), 0, int(position), block, k[t])
        step.state.append(op.integer("layer"), 1, int(position), block, v[t])


def _attention(step: Step, op: Op, x: list[Any]) -> Array:
    q, positions, sequence, tables = x[:4]
    y = np.empty_like(q)
    for t, position in enumerate(positions):
        length, window = int(position) + 1, op.integer("window")
        first = max(0, length - window) if window else 0
        k, v = (step.state.context(op.integer("layer"), i, tables[sequence[t]], length)[first:] for i in (0, 1))
        share = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, share, axis=1), np.repeat(v, share, axis=1)
        scores = np.einsum("hc,shc->hs", q[t], k) * np.float32(op.number("scale"))
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        y[t] = np.einsum("hs,shc->hc", p / p.sum(axis=-1, keepdims=True), v)
    return np.asarray(y, np.float32)


def _silu(step: Step, op: Op, x: list[Any]) -> Array:
    # exp(-|x|) never overflows; the two branches are the same function.
    e = np.exp(-np.abs(x[0]))
    return np.asarray(x[0] * np.where(x[0] >= 0, 1, e) / (1 + e), np.float32)


def _sample(step: Step, op: Op, x: list[Any]) -> Array:
    positions = step.values["positions"][step.values["rows"]]
    drawn = [draw(row, s, int(p)) for row, s, p in zip(x[0], step.sampling, positions, strict=True)]
    return np.array(drawn, np.int32)


_Run: TypeAlias = Callable[[Step, Op, list[Any]], Array | None]
OPS: Mapping[str, _Run] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "linear": _linear,
    "rope": _rope,
    "kv_append": _kv_append,
    "attention": _attention,
    "add": lambda step, op, x: np.asarray(x[0] + x[1], np.float32),
    "silu": _silu,
    "mul": lambda step, op, x: np.asarray(x[0] * x[1], np.float32),
    "take_rows": lambda step, op, x: np.asarray(x[0][x[1]]),
    "sample": _sample,
}

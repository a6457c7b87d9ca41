"""The kernels of PyTorch in NumPy, a row each, for the reference interpreter.

Scores of a step are one flat list: for each token in turn, the positions of its sequence's context.
Knows nothing about which kernels an op of a model becomes (eager/rewrite.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from coterie.graph.branch.reference import softmax
from coterie.graph.ir import Op
from coterie.graph.step import Array, Run, Step


def _lengths(positions: Array, sequence: Array) -> list[int]:
    """The length of each sequence's context after this step, by sequence number."""
    count = int(sequence.max(initial=-1)) + 1
    return [int(positions[sequence == row].max(initial=-1)) + 1 for row in range(count)]


def _spans(positions: Array, sequence: Array) -> Iterator[tuple[int, slice, slice]]:
    """For each token: its index, its slice of the flat scores, and its sequence's slice of the contexts."""
    lengths = _lengths(positions, sequence)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    at = 0
    for token, row in enumerate(sequence):
        length = lengths[row]
        yield token, slice(at, at + length), slice(int(starts[row]), int(starts[row]) + length)
        at += length


def _num_scores(positions: Array, sequence: Array) -> int:
    lengths = _lengths(positions, sequence)
    return sum(lengths[row] for row in sequence)


def _kv_cat(step: Step, op: Op, x: list[Any]) -> Array:
    k, positions, sequence, tables = x[:4]
    which = op.integer("which")
    for t, position in enumerate(positions):
        step.state.append(op, which, tables[sequence[t]], int(position), k[t])
    parts = [
        step.state.context(op, which, tables[row], length) for row, length in enumerate(_lengths(positions, sequence))
    ]
    return np.concatenate(parts) if parts else np.zeros((0, *k.shape[1:]), np.float32)


def _scores(q: Array, k: Array, positions: Array, sequence: Array) -> Array:
    y = np.zeros((_num_scores(positions, sequence), q.shape[1]), np.float32)
    for token, scores, context in _spans(positions, sequence):
        y[scores] = np.einsum("hc,shc->sh", q[token], k[context])
    return np.asarray(y)


def _alibi_scores(step: Step, op: Op, x: list[Any]) -> Array:
    q, k, bias, positions, sequence = x
    y = _scores(q, k, positions, sequence) * np.float32(op.number("scale"))
    for _, scores, context in _spans(positions, sequence):
        y[scores] += bias[context]
    return y


def _alibi(step: Step, op: Op, x: list[Any]) -> Array:
    parts = [np.arange(length, dtype=np.float32)[:, None] * x[2] for length in _lengths(x[0], x[1])]
    return np.concatenate(parts) if parts else np.zeros((0, len(x[2])), np.float32)


def _mask(step: Step, op: Op, x: list[Any]) -> Array:
    positions, sequence = x
    y = np.zeros((_num_scores(positions, sequence), 1), np.float32)
    for token, scores, context in _spans(positions, sequence):
        ago = int(positions[token]) - np.arange(context.stop - context.start)
        hidden = (ago < 0) | ((ago >= op.integer("window")) if op.integer("window") else False)
        y[scores][hidden] = -np.inf
    return y


def _context_softmax(step: Step, op: Op, x: list[Any]) -> Array:
    y: Array = np.zeros(x[0].shape, np.float32)
    for _, scores, _ in _spans(x[1], x[2]):
        y[scores] = softmax(x[0][scores], axis=0)
    return y


def _mix(step: Step, op: Op, x: list[Any]) -> Array:
    p, v, positions, sequence = x
    y = np.zeros((len(positions), *v.shape[1:]), np.float32)
    for token, scores, context in _spans(positions, sequence):
        y[token] = np.einsum("sh,shc->hc", p[scores], v[context])
    return y


def _grouped(op: Op, x: list[Any]) -> list[Array]:
    return [part.reshape(-1, op.integer("group"), *part.shape[1:]) for part in x]


def _group_scores(step: Step, op: Op, x: list[Any]) -> Array:
    q, k = _grouped(op, x)
    return np.asarray(np.einsum("gthc,gshc->gths", q, k).reshape(*x[0].shape[:2], op.integer("group")))


def _group_mix(step: Step, op: Op, x: list[Any]) -> Array:
    p, v = _grouped(op, x)
    return np.asarray(np.einsum("gths,gshc->gthc", p, v).reshape(x[1].shape))


def _mean(step: Step, op: Op, x: list[Any]) -> Array:
    one, all_but_first = step.graph.values[op.outputs[0]].shape[1:], tuple(range(1, x[0].ndim))
    axes = all_but_first if set(one) == {1} else -1
    return np.asarray(np.mean(x[0], axis=axes, keepdims=True), np.float32)


def _slice(step: Step, op: Op, x: list[Any]) -> Array:
    first, step_ = op.integer("first"), int(op.attrs.get("step", 1))
    return np.asarray(x[0][..., first : first + op.integer("count") * step_ : step_])


def _cat(step: Step, op: Op, x: list[Any]) -> Array:
    if "in_turn" in op.attrs:
        return np.stack(x, axis=-1).reshape(*x[0].shape[:-1], -1)
    return np.concatenate(x, axis=-1)


def _unary(function: Callable[[Array], Array]) -> Run:
    return lambda step, op, x: np.asarray(function(x[0]), np.float32)


EAGER_RUN: Mapping[str, Run] = {
    # Numbers stay float32 here: the storage type matters only for byte counts.
    "cast": _unary(lambda x: x),
    "copy": _unary(np.copy),
    "square": _unary(np.square),
    "rsqrt": _unary(lambda x: 1 / np.sqrt(x)),
    "neg": _unary(np.negative),
    "cos": _unary(np.cos),
    "sin": _unary(np.sin),
    "sigmoid": _unary(lambda x: 0.5 * (1 + np.tanh(0.5 * x))),
    "tanh": _unary(np.tanh),
    "softmax": _unary(softmax),
    "heads_first": _unary(lambda x: x),
    "scale": lambda step, op, x: np.asarray(x[0] * np.float32(op.number("factor")), np.float32),
    "shift": lambda step, op, x: np.asarray(x[0] + np.float32(op.number("number")), np.float32),
    "mean": _mean,
    "mul_last": lambda step, op, x: np.asarray(x[0] * x[1], np.float32),
    "mul_weight": lambda step, op, x: np.asarray(
        (x[0].reshape(-1, len(x[1])) * (x[1] + np.float32(op.offset))).reshape(x[0].shape), np.float32
    ),
    "mul_heads": lambda step, op, x: np.asarray(x[0] * x[1][:, None], np.float32),
    "cat": _cat,
    "slice": _slice,
    "to_float": lambda step, op, x: x[0].astype(np.float32)[:, None],
    "angles": lambda step, op, x: np.asarray(x[0] * x[1], np.float32),
    "kv_cat": _kv_cat,
    "repeat_heads": lambda step, op, x: np.repeat(x[0], op.integer("times"), axis=1),
    "mask": _mask,
    "add_mask": lambda step, op, x: np.asarray(x[0] + x[1], np.float32),
    "alibi": _alibi,
    "scores": lambda step, op, x: _scores(*x),
    "alibi_scores": _alibi_scores,
    "context_softmax": _context_softmax,
    "mix": _mix,
    "group_scores": _group_scores,
    "group_mix": _group_mix,
}

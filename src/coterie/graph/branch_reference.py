"""The ops of layers with branches in NumPy, a row each, for the reference interpreter.

Knows nothing about which families have such layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from coterie.core.packed import MAX_INT8, MAX_INT16, rounded
from coterie.graph.branch_ops import CHOOSE, DOWN, GATE_UP, MATRICES_FROM, TOP_K
from coterie.graph.ir import Op
from coterie.graph.step import F32, Array, Step

ROUNDED = {"int16": MAX_INT16, "int8": MAX_INT8}  # the largest of activations rounded so
LEAST = np.float32(1e-30)  # of the weight of a branch that is taken, so that none of them is 0

_Run: TypeAlias = Callable[[Step, Op, list[Any]], Array]


def silu(x: Array) -> F32:
    """x * sigmoid(x): exp(-|x|) never overflows, and the two branches are the same function."""
    e = np.exp(-np.abs(x))
    return np.asarray(x * np.where(x >= 0, 1, e) / (1 + e), np.float32)


def _choose(step: Step, op: Op, x: list[Any]) -> Array:
    logits_TE = x[0]
    chosen_TA = np.argsort(-logits_TE, axis=-1, kind="stable")[:, : op.integer(TOP_K)]
    p_TE = np.exp(logits_TE - logits_TE.max(axis=-1, keepdims=True))
    taken_TA = np.take_along_axis(p_TE, chosen_TA, axis=-1)
    total_T1 = (taken_TA if op.integer("normalise") else p_TE).sum(axis=-1, keepdims=True)
    y = np.zeros_like(logits_TE)
    weights_TA = np.maximum(taken_TA / total_T1 * np.float32(op.scale), LEAST)
    np.put_along_axis(y, chosen_TA, weights_TA, axis=-1)
    return np.asarray(y, np.float32)


def _pairs(weights_TE: F32) -> Iterator[tuple[int, Array, Array]]:
    """Each branch that is taken, by which tokens, and its place among those of each."""
    places_TE = np.cumsum(weights_TE != 0, axis=-1) - 1
    for branch in range(weights_TE.shape[1]):
        tokens = np.flatnonzero(weights_TE[:, branch])
        if len(tokens):
            yield branch, tokens, places_TE[tokens, branch]


def _rounded(step: Step, op: Op, x: F32) -> F32:
    if "rounding" not in op.attrs:
        return x
    return rounded(x, step.graph.values[op.inputs[MATRICES_FROM]].dtype, ROUNDED[str(op.attrs["rounding"])])


def _gate_up(step: Step, op: Op, x: list[Any]) -> Array:
    data_TD, weights_TE, matrices = x[0], x[1], x[MATRICES_FROM:]
    y = np.zeros((len(data_TD), op.integer(TOP_K), matrices[0].shape[0]), np.float32)
    data_TD = _rounded(step, op, data_TD)
    for branch, tokens, places in _pairs(weights_TE):
        gate, up = matrices[branch], matrices[branch + len(matrices) // 2]
        y[tokens, places] = silu(data_TD[tokens] @ gate.T) * (data_TD[tokens] @ up.T)
    return y


def _down(step: Step, op: Op, x: list[Any]) -> Array:
    data_TAF, weights_TE, matrices = x[0], x[1], x[MATRICES_FROM:]
    y = np.zeros((len(data_TAF), matrices[0].shape[0]), np.float32)
    for branch, tokens, places in _pairs(weights_TE):
        data = _rounded(step, op, data_TAF[tokens, places])
        y[tokens] += weights_TE[tokens, branch, None] * (data @ matrices[branch].T)
    return y


BRANCH_RUN: Mapping[str, _Run] = {CHOOSE: _choose, GATE_UP: _gate_up, DOWN: _down}

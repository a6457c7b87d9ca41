"""The ops of layers with branches in NumPy, a row each, for the reference interpreter.

Knows nothing about which families have such layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from coterie.core.dtypes import DType
from coterie.core.packed import MAX_INT8, MAX_INT16, rounded
from coterie.core.scales import in_bf16
from coterie.graph.branch.ops import (
    ADD_BIAS,
    ADDED_SUM,
    ALPHA,
    CHOOSE,
    CLIPPED,
    DOWN,
    GATE_UP,
    GELU_UP,
    GROUP_BEST,
    GROUPS,
    LIMIT,
    MATRICES_FROM,
    MIN_SUM,
    SCORES,
    TAKEN_GROUPS,
    TOP_K,
    matrices_of,
)
from coterie.graph.ir import Op
from coterie.graph.ops import BF16, INT8, INT8_OR_FINER, INT16, ROUNDING
from coterie.graph.step import F32, Array, Run, Step

_MAX_INT = {INT16: MAX_INT16, INT8: MAX_INT8, INT8_OR_FINER: MAX_INT8}  # for activations multiplied by packed weights
MIN_WEIGHT = np.float32(1e-30)  # smallest weight of a taken branch: 0 would mean not taken


def sigmoid(x: Array) -> F32:
    """1 / (1 + exp(-x)): exp(-|x|) never overflows, and the two branches are the same function."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e), np.float32)


def silu(x: Array) -> F32:
    """x * sigmoid(x)."""
    return np.asarray(x * sigmoid(x), np.float32)


def gelu(x: Any, form: str) -> F32:
    """x * Phi(x), with Phi as `form` says."""
    wide: Any = x.astype(np.float64)
    return np.asarray(wide * normal_cdf(wide, form), np.float32)


def normal_cdf(wide: Any, form: str) -> Any:
    """Phi in float64: by erf, or approximated by tanh or sigmoid."""
    if form == "erf":
        return 0.5 * (1 + np.frompyfunc(math.erf, 1, 1)(wide / math.sqrt(2)).astype(np.float64))
    if form == "tanh":
        return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    return 0.5 * (1 + np.tanh(0.5 * 1.702 * wide))


def softmax(x: Array, axis: int = -1) -> F32:
    """Softmax over one axis."""
    p = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(p / p.sum(axis=axis, keepdims=True), np.float32)


def round_activations(op: Op, x_TK: F32, dtype: DType) -> F32:
    """Activations, rounded as the op says for a product with a weight of this type."""
    if ROUNDING not in op.attrs:
        return x_TK
    to = str(op.attrs[ROUNDING])
    return in_bf16(x_TK) if to == BF16 else rounded(x_TK, dtype, _MAX_INT[to])


def _round_activations(step: Step, op: Op, x: F32) -> F32:
    return round_activations(op, x, step.graph.values[op.inputs[MATRICES_FROM]].dtype)


def _choose(step: Step, op: Op, x: list[Any]) -> Array:
    logits_TE, bias_E, *factors_E = x
    scores_TE = sigmoid(logits_TE) if SCORES in op.attrs else softmax(logits_TE)
    rank_TE = logits_TE if bias_E is None and GROUPS not in op.attrs else scores_TE
    rank_TE = rank_TE if bias_E is None else rank_TE + bias_E
    if GROUPS in op.attrs:
        rank_TE = np.where(_in_best_groups(op, rank_TE), rank_TE, -np.inf)
    chosen_TA = np.argsort(-rank_TE, axis=-1, kind="stable")[:, : op.integer(TOP_K)]
    weights_TA = np.take_along_axis(scores_TE, chosen_TA, axis=-1)
    if op.integer("normalise"):
        least, added = (np.float32(op.attrs.get(name, 0.0)) for name in (MIN_SUM, ADDED_SUM))
        weights_TA = weights_TA / (np.maximum(weights_TA.sum(axis=-1, keepdims=True), least) + added)
    weights_TA = weights_TA * np.float32(op.scale)
    weights_TA = weights_TA * factors_E[0][chosen_TA] if factors_E else weights_TA
    y = np.zeros_like(logits_TE)
    np.put_along_axis(y, chosen_TA, np.where(np.abs(weights_TA) < MIN_WEIGHT, MIN_WEIGHT, weights_TA), axis=-1)
    return np.asarray(y, np.float32)


def _in_best_groups(op: Op, rank_TE: F32) -> Array:
    """Which branches are in the groups that a token may use."""
    groups = op.integer(GROUPS)
    by_group = rank_TE.reshape(len(rank_TE), groups, -1)
    rank_TG = np.sort(by_group, axis=-1)[:, :, -op.integer(GROUP_BEST) :].sum(axis=-1)
    best = np.argsort(-rank_TG, axis=-1, kind="stable")[:, : op.integer(TAKEN_GROUPS)]
    taken_TG = np.zeros(rank_TG.shape, bool)
    np.put_along_axis(taken_TG, best, True, axis=-1)
    return np.repeat(taken_TG, by_group.shape[2], axis=-1)


def _pairs(weights_TE: F32) -> Iterator[tuple[int, Array, Array]]:
    """Each taken branch, the tokens that take it, and its place among the branches of each."""
    places_TE = np.cumsum(weights_TE != 0, axis=-1) - 1
    for branch in range(weights_TE.shape[1]):
        tokens = np.flatnonzero(weights_TE[:, branch])
        if len(tokens):
            yield branch, tokens, places_TE[tokens, branch]


def _gate_up(step: Step, op: Op, x: list[Any]) -> Array:
    data_TD, weights_TE, matrices = x[0], x[1], matrices_of(op.kind, x)
    y = np.zeros((len(data_TD), op.integer(TOP_K), matrices[0].shape[0]), np.float32)
    data_TD = _round_activations(step, op, data_TD)
    for branch, tokens, places in _pairs(weights_TE):
        gate, up = (data_TD[tokens] @ matrices[at].T for at in (branch, branch + len(matrices) // 2))
        if op.kind == CLIPPED:
            y[tokens, places] = clipped(gate + x[-2][branch], up + x[-1][branch], op.number(ALPHA), op.number(LIMIT))
        else:
            y[tokens, places] = (gelu(gate, str(op.attrs["form"])) if op.kind == GELU_UP else silu(gate)) * up
    return y


def clipped(gate: Array, up: Array, alpha: float, limit: float) -> F32:
    """(u + 1) * g * sigmoid(alpha * g), where g is at most `limit` and u within -limit and limit."""
    a, most = np.float32(alpha), np.float32(limit)
    return np.asarray((np.clip(up, -most, most) + 1) * (silu(a * np.minimum(gate, most)) / a), np.float32)


def _add_bias(step: Step, op: Op, x: list[Any]) -> Array:
    data_TD, weights_TE, bias_ED = x
    y = data_TD.copy()
    for branch, tokens, _ in _pairs(weights_TE):
        y[tokens] += weights_TE[tokens, branch, None] * bias_ED[branch]
    return np.asarray(y, np.float32)


def _down(step: Step, op: Op, x: list[Any]) -> Array:
    data_TAF, weights_TE, matrices = x[0], x[1], x[MATRICES_FROM:]
    y = np.zeros((len(data_TAF), matrices[0].shape[0]), np.float32)
    for branch, tokens, places in _pairs(weights_TE):
        data = _round_activations(step, op, data_TAF[tokens, places])
        y[tokens] += weights_TE[tokens, branch, None] * (data @ matrices[branch].T)
    return y


BRANCH_RUN: Mapping[str, Run] = {
    CHOOSE: _choose,
    GATE_UP: _gate_up,
    GELU_UP: _gate_up,
    CLIPPED: _gate_up,
    ADD_BIAS: _add_bias,
    DOWN: _down,
}

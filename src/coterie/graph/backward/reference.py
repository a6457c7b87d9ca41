"""The ops of a backward pass in NumPy, a row each, for the reference interpreter.

Knows nothing about which rule makes which op (backward/build.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from coterie.core.shapes import fixed
from coterie.graph.branch.reference import normal_cdf, sigmoid, softmax
from coterie.graph.ir import Op
from coterie.graph.rope import rotate
from coterie.graph.step import Array, Run, Step


def _fixed(step: Step, op: Op) -> list[int]:
    return list(fixed(step.graph.values[op.outputs[0]].shape[1:]))


def _linear_dx(step: Step, op: Op, x: list[Any]) -> Array:
    return np.asarray((x[0].reshape(len(x[0]), -1) @ x[1]).reshape(-1, *_fixed(step, op)), np.float32)


def _linear_dw(step: Step, op: Op, x: list[Any]) -> Array:
    dy, data = (array.reshape(len(array), -1) for array in x[:2])
    dw = np.asarray(dy.T @ data, np.float32)
    return dw if x[2] is None else np.where(x[2] != 0, dw, np.float32(0))


def _normed(op: Op, x: Array) -> tuple[Array, Array]:
    """x / rms(x), and 1 / rms(x)."""
    r = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32) + np.float32(op.number("eps")))
    return x * r, r


def _rms_norm_dx(step: Step, op: Op, x: list[Any]) -> Array:
    y, r = _normed(op, x[1])
    g = x[0] * x[2]
    return np.asarray(r * (g - y * np.mean(g * y, axis=-1, keepdims=True, dtype=np.float32)), np.float32)


def _centred(op: Op, x: Array) -> tuple[Array, Array]:
    """(x - mean) / std, and 1 / std."""
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    return _normed(op, np.asarray(centred, np.float32))


def _layer_norm_dx(step: Step, op: Op, x: list[Any]) -> Array:
    y, r = _centred(op, x[1])
    g = x[0] * x[2]
    means = (np.mean(part, axis=-1, keepdims=True, dtype=np.float32) for part in (g, g * y))
    return np.asarray(r * (g - next(means) - y * next(means)), np.float32)


def _norm_dw(normed: Callable[[Op, Array], tuple[Array, Array]]) -> Run:
    """The weight gradient of a norm, given the function that normalises x."""

    def run(step: Step, op: Op, x: list[Any]) -> Array:
        y, _ = normed(op, x[1])
        return np.asarray((x[0] * y).reshape(-1, y.shape[-1]).sum(axis=0), np.float32)

    return run


def _silu_dx(step: Step, op: Op, x: list[Any]) -> Array:
    s = sigmoid(x[1])
    return np.asarray(x[0] * s * (1 + x[1] * (1 - s)), np.float32)


def _gelu_dx(step: Step, op: Op, x: list[Any]) -> Array:
    """The derivative of x * Phi(x) is Phi(x) + x * Phi'(x)."""
    wide, form = x[1].astype(np.float64), str(op.attrs["form"])
    phi = normal_cdf(wide, form)
    if form == "erf":
        slope = np.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    else:
        steep = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * wide**2) if form == "tanh" else 0.5 * 1.702
        slope = 2 * phi * (1 - phi) * steep
    return np.asarray(x[0] * (phi + wide * slope), np.float32)


def _attention_grad(step: Step, op: Op, x: list[Any]) -> None:
    dy, q, k, v, positions, sequence = x
    share, scale, window = q.shape[1] // k.shape[1], np.float32(op.number("scale")), op.integer("window")
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for t, position in enumerate(positions):
        ago = position - positions
        seen = np.flatnonzero((sequence == sequence[t]) & (ago >= 0) & ((ago < window) if window else True))
        keys, held = (np.repeat(array[seen], share, axis=1) for array in (k, v))
        scores = np.einsum("hc,shc->hs", q[t], keys) * scale
        p = softmax(scores)
        dp = np.einsum("hc,shc->hs", dy[t], held)
        ds = p * (dp - (p * dp).sum(axis=1, keepdims=True)) * scale
        dq[t] = np.einsum("hs,shc->hc", ds, keys)
        for out, wide in ((dk, np.einsum("hs,hc->shc", ds, q[t])), (dv, np.einsum("hs,hc->shc", p, dy[t]))):
            out[seen] += wide.reshape(len(seen), k.shape[1], share, -1).sum(axis=2)
    for name, array in zip(op.outputs, (dq, dk, dv), strict=True):
        step.values[name] = array


def _take_rows_dx(step: Step, op: Op, x: list[Any]) -> Array:
    dx = np.zeros((len(step.values["positions"]), *x[0].shape[1:]), np.float32)
    np.add.at(dx, x[1], x[0])
    return dx


def _loss_dx(step: Step, op: Op, x: list[Any]) -> Array:
    p = softmax(x[0])
    p[np.arange(len(p)), x[1]] -= 1
    return np.asarray(p / max(1, len(p)), np.float32)


def _embed_dw(step: Step, op: Op, x: list[Any]) -> Array:
    shape = fixed(step.graph.values[op.outputs[0]].shape)
    dw = np.zeros(shape, np.float32)
    rows = x[1] - int(op.attrs.get("first_row", 0))
    own = (rows >= 0) & (rows < len(dw))
    np.add.at(dw, rows[own], x[0][own] * np.float32(op.scale))
    return dw


def _positions_dw(step: Step, op: Op, x: list[Any]) -> Array:
    dw = np.zeros(fixed(step.graph.values[op.outputs[0]].shape), np.float32)
    np.add.at(dw, x[1] + op.integer("offset"), x[0])
    return dw


def _loss_parts(step: Step, op: Op, x: list[Any]) -> Array:
    most = x[0].max(axis=-1)
    return np.asarray(np.stack([most, np.exp(x[0] - most[:, None]).sum(axis=-1)], axis=1), np.float32)


def _loss_part_dx(step: Step, op: Op, x: list[Any]) -> Array:
    logits, (maxima, sums) = x[0], (x[1][:, part::2] for part in (0, 1))
    most = maxima.max(axis=-1, keepdims=True)
    p = np.exp(logits - most) / (sums * np.exp(maxima - most)).sum(axis=-1, keepdims=True)
    columns = x[2] - op.integer("first_row")
    own = np.flatnonzero((columns >= 0) & (columns < logits.shape[1]))
    p[own, columns[own]] -= 1
    return np.asarray(p / max(1, len(p)), np.float32)


BACKWARD_RUN: Mapping[str, Run] = {
    "linear_dx": _linear_dx,
    "linear_dw": _linear_dw,
    "bias_dw": lambda step, op, x: np.asarray(x[0].reshape(len(x[0]), -1).sum(axis=0), np.float32),
    "rms_norm_dx": _rms_norm_dx,
    "rms_norm_dw": _norm_dw(_normed),
    "layer_norm_dx": _layer_norm_dx,
    "layer_norm_dw": _norm_dw(_centred),
    "rope_dx": lambda step, op, x: rotate(op, x, way=-1),
    "silu_dx": _silu_dx,
    "gelu_dx": _gelu_dx,
    "attention_grad": _attention_grad,
    "take_rows_dx": _take_rows_dx,
    "loss_dx": _loss_dx,
    "embed_dw": _embed_dw,
    "positions_dw": _positions_dw,
    "loss_parts": _loss_parts,
    "loss_part_dx": _loss_part_dx,
}

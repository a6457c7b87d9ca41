"""The ops of a backward pass in NumPy, a row each, for the reference interpreter.

Knows nothing about which rule makes which op (backward.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from coterie.graph.ir import Op
from coterie.graph.step import Array, Step

_Run: TypeAlias = Callable[[Step, Op, list[Any]], Array | None]


def _fixed(step: Step, op: Op) -> list[int]:
    return [dim for dim in step.graph.values[op.outputs[0]].shape[1:] if isinstance(dim, int)]


def _linear_dx(step: Step, op: Op, x: list[Any]) -> Array:
    return np.asarray((x[0].reshape(len(x[0]), -1) @ x[1]).reshape(-1, *_fixed(step, op)), np.float32)


def _linear_dw(step: Step, op: Op, x: list[Any]) -> Array:
    dy, data = (array.reshape(len(array), -1) for array in x)
    return np.asarray(dy.T @ data, np.float32)


def _normed(op: Op, x: Array) -> tuple[Array, Array]:
    """x / rms(x), and 1 / rms(x)."""
    r = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32) + np.float32(op.number("eps")))
    return x * r, r


def _rms_norm_dx(step: Step, op: Op, x: list[Any]) -> Array:
    y, r = _normed(op, x[1])
    g = x[0] * x[2]
    return np.asarray(r * (g - y * np.mean(g * y, axis=-1, keepdims=True, dtype=np.float32)), np.float32)


def _rms_norm_dw(step: Step, op: Op, x: list[Any]) -> Array:
    y, _ = _normed(op, x[1])
    return np.asarray((x[0] * y).reshape(-1, y.shape[-1]).sum(axis=0), np.float32)


def _rope_dx(step: Step, op: Op, x: list[Any]) -> Array:
    angles = x[1].astype(np.float32)[:, None, None] * x[2]
    cos, sin = (np.asarray(f(angles) * np.float32(op.number("scale")), np.float32) for f in (np.cos, np.sin))
    left, right = np.split(x[0], 2, axis=-1)
    return np.concatenate([left * cos + right * sin, right * cos - left * sin], axis=-1)


def _silu_dx(step: Step, op: Op, x: list[Any]) -> Array:
    e = np.exp(-np.abs(x[1]))
    s = np.where(x[1] >= 0, 1, e) / (1 + e)
    return np.asarray(x[0] * s * (1 + x[1] * (1 - s)), np.float32)


def _attention_grad(step: Step, op: Op, x: list[Any]) -> None:
    dy, q, k, v, positions, sequence = x
    share, scale, window = q.shape[1] // k.shape[1], np.float32(op.number("scale")), op.integer("window")
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for t, position in enumerate(positions):
        ago = position - positions
        seen = np.flatnonzero((sequence == sequence[t]) & (ago >= 0) & ((ago < window) if window else True))
        keys, held = (np.repeat(array[seen], share, axis=1) for array in (k, v))
        scores = np.einsum("hc,shc->hs", q[t], keys) * scale
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
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
    p = np.exp(x[0] - x[0].max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    p[np.arange(len(p)), x[1]] -= 1
    return np.asarray(p / max(1, len(p)), np.float32)


def _embed_dw(step: Step, op: Op, x: list[Any]) -> Array:
    shape = [dim for dim in step.graph.values[op.outputs[0]].shape if isinstance(dim, int)]
    dw = np.zeros(shape, np.float32)
    np.add.at(dw, x[1], x[0])
    return dw


BACKWARD_RUN: Mapping[str, _Run] = {
    "linear_dx": _linear_dx,
    "linear_dw": _linear_dw,
    "bias_dw": lambda step, op, x: np.asarray(x[0].reshape(len(x[0]), -1).sum(axis=0), np.float32),
    "rms_norm_dx": _rms_norm_dx,
    "rms_norm_dw": _rms_norm_dw,
    "rope_dx": _rope_dx,
    "silu_dx": _silu_dx,
    "attention_grad": _attention_grad,
    "take_rows_dx": _take_rows_dx,
    "loss_dx": _loss_dx,
    "embed_dw": _embed_dw,
}

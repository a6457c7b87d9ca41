"""The ops of gated delta nets in NumPy, a row each, for the reference interpreter: token by token, float32.

Knows nothing about which families have such layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coterie.core.shapes import fixed
from coterie.graph.branch.reference import silu
from coterie.graph.delta_net.ops import CONV, DELTA, KEY_HEADS, PARTS, PLAIN
from coterie.graph.ir import Op
from coterie.graph.step import F32, Array, Run, Step

NORM_EPS = np.float32(1e-6)  # added to the squared norm of q and k


def _conv(step: Step, op: Op, x: list[Any]) -> Array:
    data_TN, weight_N1K, bias_N, positions, sequence, tables = x[:6]
    y = np.empty_like(data_TN)
    for t, position in enumerate(positions):
        past_KN = step.state.recurrent(op, tables[sequence[t]], int(position))
        window = np.concatenate([past_KN, data_TN[t][None]])
        total = np.asarray((window * weight_N1K[:, 0].T).sum(axis=0), np.float32)
        total = total if bias_N is None else total + bias_N
        y[t] = total if PLAIN in op.attrs else silu(total)
        past_KN[:] = window[1:]
    return np.asarray(y, np.float32)


def _parts(step: Step, op: Op, x: list[Any]) -> None:
    key_heads = op.integer(KEY_HEADS)
    heads, value_dim = (dim for dim in step.graph.values[op.outputs[1]].shape if isinstance(dim, int))
    share, inner = heads // key_heads, heads * value_dim // key_heads
    qkvz_TGN, ba_TGN = (part.reshape(len(part), key_heads, -1) for part in x)
    key_dim = qkvz_TGN.shape[2] // 2 - inner
    *qkv, z = np.split(qkvz_TGN, np.cumsum([key_dim, key_dim, inner]), axis=2)
    b, a = np.split(ba_TGN, [share], axis=2)
    joined = np.concatenate([part.reshape(len(part), -1) for part in qkv], axis=1)
    made = joined, z.reshape(-1, heads, value_dim), a.reshape(-1, heads), b.reshape(-1, heads)
    step.values |= {name: np.asarray(value, np.float32) for name, value in zip(op.outputs, made, strict=True)}


def _delta(step: Step, op: Op, x: list[Any]) -> Array:
    data_TN, a_TH, b_TH, a_log, dt_bias, positions, sequence, tables = x[:8]
    shape = step.graph.values[op.inputs[-1]].shape
    _, heads, key_dim, value_dim = fixed(shape)
    key_heads = op.integer(KEY_HEADS)
    q, k, v = np.split(data_TN, [key_heads * key_dim, 2 * key_heads * key_dim], axis=1)
    q, k = (np.repeat(_unit(part.reshape(-1, key_heads, key_dim)), heads // key_heads, axis=1) for part in (q, k))
    v = v.reshape(-1, heads, value_dim)
    decay = np.exp(-np.exp(a_log) * np.logaddexp(np.float32(0), a_TH + dt_bias))
    beta = np.exp(-np.logaddexp(np.float32(0), -b_TH))
    y = np.empty(v.shape, np.float32)
    for t, position in enumerate(positions):
        matrix_HKC = step.state.recurrent(op, tables[sequence[t]], int(position))
        matrix_HKC *= decay[t][:, None, None]
        change = (v[t] - np.einsum("hk,hkc->hc", k[t], matrix_HKC)) * beta[t][:, None]
        matrix_HKC += k[t][:, :, None] * change[:, None]
        y[t] = np.einsum("hk,hkc->hc", q[t], matrix_HKC) * np.float32(key_dim**-0.5)
    return y


def _unit(x: F32) -> F32:
    """Heads normalised to length 1 (slightly less, because of NORM_EPS)."""
    return np.asarray(x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + NORM_EPS), np.float32)


DELTA_RUN: Mapping[str, Run] = {CONV: _conv, DELTA: _delta, PARTS: _parts}

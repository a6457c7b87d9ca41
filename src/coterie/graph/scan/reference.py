"""The ops of selective state spaces in NumPy, a row each, for the reference interpreter: token by token, float32.

Knows nothing about which families have such layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coterie.core.shapes import fixed
from coterie.graph.ir import Op
from coterie.graph.scan.ops import GROUP_NORM, GROUPS, MAX_STEP, MIN_STEP, MUL_ROW, SCAN
from coterie.graph.step import Array, Run, Step


def _scan(step: Step, op: Op, x: list[Any]) -> Array:
    data_TN, dt_TH, a_log, dt_bias, skip, positions, sequence, tables = x[:8]
    _, heads, state, channels = fixed(step.graph.values[op.inputs[-1]].shape)
    groups = op.integer(GROUPS)
    inner = heads * channels
    own, write, read = np.split(data_TN, [inner, inner + groups * state], axis=1)
    own_THC = own.reshape(-1, heads, channels)
    write_THK, read_THK = (
        np.repeat(part.reshape(-1, groups, state), heads // groups, axis=1) for part in (write, read)
    )
    steps_TH = np.logaddexp(np.float32(0), dt_TH + dt_bias)
    steps_TH = np.clip(steps_TH, np.float32(op.attrs.get(MIN_STEP, 0.0)), np.float32(op.attrs.get(MAX_STEP, np.inf)))
    decay_TH = np.exp(-np.exp(a_log) * steps_TH)
    y = np.empty(own_THC.shape, np.float32)
    for t, position in enumerate(positions):
        matrix_HKC = step.state.recurrent(op, tables[sequence[t]], int(position))
        matrix_HKC *= decay_TH[t][:, None, None]
        matrix_HKC += write_THK[t][:, :, None] * (own_THC[t] * steps_TH[t][:, None])[:, None]
        y[t] = np.einsum("hk,hkc->hc", read_THK[t], matrix_HKC) + own_THC[t] * skip[:, None]
    return y


def _group_norm(step: Step, op: Op, x: list[Any]) -> Array:
    data, weight = x
    rows = data.reshape(len(data), op.integer(GROUPS), -1)
    squares = np.square(rows).mean(axis=-1, keepdims=True)
    normed = (rows / np.sqrt(squares + np.float32(op.number("eps")))).reshape(len(data), -1) * weight
    return np.asarray(normed.reshape(data.shape), np.float32)


def _mul_row(step: Step, op: Op, x: list[Any]) -> Array:
    return np.asarray(x[0] * x[1], np.float32)


SCAN_RUN: Mapping[str, Run] = {SCAN: _scan, GROUP_NORM: _group_norm, MUL_ROW: _mul_row}

"""The latent attention ops in NumPy, a row each, for the reference interpreter.

Knows nothing about which families use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coterie.graph.branch.reference import softmax
from coterie.graph.ir import Op
from coterie.graph.latent.ops import APPEND, ATTEND, QUERIES, VALUES, key_rows
from coterie.graph.rope import rotate
from coterie.graph.step import F32, Array, Run, Step


def _append(step: Step, op: Op, x: list[Any]) -> None:
    data_TN, weight_R, positions, sequence, tables, inv_freq = x[:6]
    latent_TR, key_TP = np.split(data_TN, [len(weight_R)], axis=1)
    mean = np.mean(np.square(latent_TR), axis=-1, keepdims=True, dtype=np.float32)
    normed_TR = latent_TR / np.sqrt(mean + np.float32(op.number("eps"))) * weight_R
    rows_TN = np.concatenate([normed_TR, rotate(op, [key_TP[:, None], positions, inv_freq])[:, 0]], axis=1)
    for t, position in enumerate(positions):
        step.state.append(op, 0, tables[sequence[t]], int(position), np.asarray(rows_TN[t][None], np.float32))


def _queries(step: Step, op: Op, x: list[Any]) -> Array:
    q_THC, _, positions, inv_freq = x
    keys = key_rows(step.graph, op)
    plain_THN, rotated_THP = np.split(q_THC, [keys], axis=2)
    absorbed_THR = np.einsum("thn,hnr->thr", plain_THN, _by_head(q_THC, x[1])[:, :keys])
    return np.concatenate([absorbed_THR, rotate(op, [rotated_THP, positions, inv_freq])], axis=2, dtype=np.float32)


def _attend(step: Step, op: Op, x: list[Any]) -> Array:
    q_THC, positions, sequence, tables = x[:4]
    channels = step.graph.values[op.outputs[0]].shape[2]
    y: Array = np.empty((*q_THC.shape[:2], channels), np.float32)
    for t, position in enumerate(positions):
        context_SKC: Array = step.state.context(op, 0, tables[sequence[t]], int(position) + 1)
        rows_SC: Array = context_SKC[:, 0]
        p_HS = softmax(np.einsum("hc,sc->hs", q_THC[t], rows_SC) * np.float32(op.number("scale")))
        y[t] = np.einsum("hs,sc->hc", p_HS, rows_SC[:, : y.shape[2]])
    return y


def _values(step: Step, op: Op, x: list[Any]) -> Array:
    rows_HVR = _by_head(x[0], x[1])[:, key_rows(step.graph, op) :]
    return np.asarray(np.einsum("thr,hvr->thv", x[0], rows_HVR), np.float32)


def _by_head(x_THC: F32, weight_NR: F32) -> F32:
    """The weight by head: [H, rows per head, R]."""
    return weight_NR.reshape(x_THC.shape[1], -1, weight_NR.shape[1])


LATENT_RUN: Mapping[str, Run] = {APPEND: _append, QUERIES: _queries, ATTEND: _attend, VALUES: _values}

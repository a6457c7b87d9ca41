"""Lowers multi-head latent attention: maps operands to a program's values, constants and sizes.

Knows nothing about which families use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coterie.core.dtypes import DType
from coterie.core.shapes import trailing
from coterie.devices.real.lowering import Lowering
from coterie.devices.real.operands import Named, Operands
from coterie.graph.ir import Op
from coterie.graph.latent.ops import APPEND, ATTEND, QUERIES, VALUES, head_rows, key_rows
from coterie.kernels import cpu as kernels


def _append(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    x, norm, *paged = op.inputs[:5]
    T, C = low.value(x).shape
    sizes = {"T": low.size(T), "K": 1, "C": low.size(C), "latent": low.size(low.value(norm).shape[0])}
    own = {"x": low.at(x), "eps": op.number("eps")} | low.weight("norm", norm) | _turned(low, op, op.inputs[5])
    return own | low.pages(op, *paged) | sizes


def _queries(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    x, weight, positions, inv_freq = op.inputs
    ends = {"x": low.at(x), "positions": low.at(positions), "y": low.at(op.outputs[0])}
    rotated = {"rotated": 2 * len(low.value(inv_freq).data)}
    return ends | low.weight("weight", weight) | _turned(low, op, inv_freq) | _head_sizes(low, op) | rotated


def _attend(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    q, *paged = op.inputs[:4]
    T, H, C = low.value(q).shape
    latent = low.size(low.value(op.outputs[0]).shape[2])
    sizes = {"T": low.size(T), "B": Named("B"), "H": low.size(H), "K": 1, "C": low.size(C), "latent": latent}
    none: Operands = {"window": 0, "cap": 0.0, "growth": 0.0, "every": 1, "sinks": 0}
    none["sinks_dtype"] = kernels.dtype_number(DType.F32)
    ends = {"q": low.at(q), "y": low.at(op.outputs[0]), "scale": op.number("scale")}
    return ends | low.pages(op, *paged) | sizes | none


def _values(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    ends = {"x": low.at(op.inputs[0]), "y": low.at(op.outputs[0])}
    return ends | low.weight("weight", op.inputs[1]) | _head_sizes(low, op)


def _turned(low: Lowering, op: Op, inv_freq: str) -> Operands:
    return {"inv_freq": low.at(inv_freq), "scale": op.number("scale"), "interleaved": int(op.interleaved)}


def _head_sizes(low: Lowering, op: Op) -> Operands:
    T, H, _ = low.value(op.inputs[0]).shape
    keys = key_rows(low.program.graph, op)
    rows: Operands = {"N": keys, "V": head_rows(low.program.graph, op) - keys}
    return rows | {"T": low.size(T), "H": low.size(H), "latent": trailing(low.value(op.inputs[1]).shape)}


LATENT_LOWER: Mapping[str, Callable[[Lowering, Sequence[Op]], Operands]] = {
    APPEND: _append,
    QUERIES: _queries,
    ATTEND: _attend,
    VALUES: _values,
}

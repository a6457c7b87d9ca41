"""Lowers selective state spaces (Mamba): maps operands to a program's values, constants and sizes.

Knows nothing about which families have such layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from coterie.core.shapes import trailing
from coterie.devices.real.lower_delta_net import kept
from coterie.devices.real.lowering import Lowering
from coterie.devices.real.operands import Named, Operands
from coterie.graph.ir import Op
from coterie.graph.scan.ops import GROUP_NORM, GROUPS, MAX_STEP, MIN_STEP, MUL_ROW, SCAN


def _scan(low: Lowering, ops: Sequence[Op]) -> Operands:
    """The recurrence, alone or fused with the gate that follows it."""
    op, *rest = ops
    x, dt, a_log, dt_bias, skip = op.inputs[:5]
    T, H, C = low.value(op.outputs[0]).shape
    K = low.value(op.inputs[-1]).shape[2]
    ends: Operands = {"x": low.at(x), "dt": low.at(dt), "y": low.at(ops[-1].outputs[0])}
    ends |= {"z": low.at(rest[0].inputs[0])} if rest else {}
    sizes = {"T": low.size(T), "H": low.size(H), "C": low.size(C), "K": low.size(K), "B": Named("B")}
    own = low.weight("a_log", a_log) | low.weight("dt_bias", dt_bias) | low.weight("skip", skip)
    own |= {"groups": op.integer(GROUPS)}
    own |= {MIN_STEP: float(op.attrs.get(MIN_STEP, 0.0)), MAX_STEP: float(op.attrs.get(MAX_STEP, math.inf))}
    return ends | own | kept(low, op) | sizes


def _group_norm(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    shape, groups = low.value(op.outputs[0]).shape, op.integer(GROUPS)
    sizes: Operands = {
        "T": low.size(shape[0]),
        "groups": groups,
        "C": trailing(shape) // groups,
        "eps": op.number("eps"),
    }
    return {"x": low.at(op.inputs[0]), "y": low.at(op.outputs[0])} | low.weight("weight", op.inputs[1]) | sizes


def _mul_row(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    x, factors = op.inputs
    T, N = low.value(x).shape
    return {"x": low.at(x), "y": low.at(op.outputs[0]), "row": low.at(factors), "T": low.size(T), "N": low.size(N)}


SCAN_LOWER: Mapping[str, Callable[[Lowering, Sequence[Op]], Operands]] = {
    SCAN: _scan,
    "selective_scan_gate": _scan,
    GROUP_NORM: _group_norm,
    MUL_ROW: _mul_row,
}

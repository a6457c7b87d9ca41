"""Lowers mixture-of-experts layers ("branches"): maps operands to a program's values, constants and sizes.

Knows nothing about which families have such layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coterie.core.shapes import trailing
from coterie.devices.real.lowering import Lowering
from coterie.devices.real.operands import Operands
from coterie.graph.branch.ops import ALPHA, BOTH_UP, CLIPPED, GELU_UP, LIMIT, TOP_K, choice_of, matrices_of
from coterie.graph.ir import Op
from coterie.graph.ops import BF16, INT8, ROUNDING
from coterie.kernels import cpu as kernels


def _choose_branches(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    T, E = low.value(op.outputs[0]).shape
    ends = {"logits": low.at(op.inputs[0]), "y": low.at(op.outputs[0])}
    ends |= low.weight("factors", op.inputs[2] if op.inputs[2:] else "")
    return ends | low.weight("bias", op.inputs[1]) | {"T": low.size(T), "E": low.size(E)} | choice_of(op)


def _branches(low: Lowering, ops: Sequence[Op]) -> Operands:
    op, *adds = ops
    x, weights, *_ = op.inputs
    matrices = matrices_of(op.kind, op.inputs)
    y = (adds or [op])[0].outputs[0]
    rows, columns = low.value(matrices[0]).shape
    F, D = (rows, columns) if op.kind in BOTH_UP else (columns, rows)
    T, E = low.value(weights).shape
    dtype = kernels.dtype_number(low.value(matrices[0]).dtype, op.attrs.get(ROUNDING) in (INT8, BF16))
    ends: Operands = {"x": low.at(x), "weights": low.at(weights), "y": low.at(y), "dtype": dtype}
    sizes = {"T": low.size(T), "E": low.size(E), "taken": op.integer(TOP_K), "D": low.size(D), "F": low.size(F)}
    if adds:
        ends["residual"] = next(low.at(name) for name in adds[0].inputs if name != op.outputs[0])
    if op.kind == GELU_UP:
        ends["form"] = kernels.GELU_FORMS.index(str(op.attrs["form"]))
    if op.kind == CLIPPED:
        *_, gate_bias, up_bias = op.inputs
        ends |= low.weight("gate_bias", gate_bias) | low.weight("up_bias", up_bias)
        ends |= {"alpha": op.number(ALPHA), "limit": op.number(LIMIT)}
    return ends | {"branches": low.table(matrices)} | sizes


def _add_branch_bias(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    x, weights, bias = op.inputs
    (T, E), D = low.value(weights).shape, trailing(low.value(x).shape)
    ends = {"x": low.at(x), "weights": low.at(weights), "y": low.at(op.outputs[0])}
    return ends | low.weight("bias", bias) | {"T": low.size(T), "E": low.size(E), "D": D}


BRANCH_LOWER: Mapping[str, Callable[[Lowering, Sequence[Op]], Operands]] = {
    "choose_branches": _choose_branches,
    "branch_gate_up": _branches,
    "branch_gate_up_clipped": _branches,
    "branch_gate_up_gelu": _branches,
    "add_branch_bias": _add_branch_bias,
    "branch_down": _branches,
    "branch_down_add": _branches,
}

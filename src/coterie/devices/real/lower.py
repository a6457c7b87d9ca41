"""Lowers regions to instructions, for every real device: maps operands to a program's values, constants and sizes.

    region -> {operand: number | Weight(s) | Stored | Named}         once, at load; template.py encodes them as rows

Knows nothing about threads, lanes, memory or which device's kernels execute the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.shapes import trailing
from coterie.devices.real.lower_branches import BRANCH_LOWER
from coterie.devices.real.lower_delta_net import DELTA_LOWER, READ_THROUGH
from coterie.devices.real.lower_latent import LATENT_LOWER
from coterie.devices.real.lower_scan import SCAN_LOWER
from coterie.devices.real.lowering import Lowering
from coterie.devices.real.operands import Named, Operands
from coterie.graph.ir import Kind, Op
from coterie.graph.layer.ops import PART
from coterie.graph.ops import HORIZON, OPS
from coterie.graph.program import Region
from coterie.kernels import cpu as kernels


def lower(low: Lowering, region: Region) -> Operands:
    """The operands of a region. Raises UnsupportedError naming the op that has no kernel here."""
    view = next((op for op in region.ops if OPS[op.kind].view), None)
    if view is not None and region.kernel not in READ_THROUGH:
        fact = f"region {region.name} reads through {view.kind}, which {low.device} does not"
        raise UnsupportedError(low.program.graph.name, fact, "use a modelled machine")
    rule = _LOWER.get(region.kernel)
    if rule is None:
        fact = f"region {region.name} wants kernel {region.kernel}, which {low.device} does not have"
        raise UnsupportedError(low.program.graph.name, fact, f"use one of {', '.join(_LOWER)}")
    stored = (low.value(name) for name in region.outputs)
    narrow = next((v for v in stored if v.kind is Kind.TENSOR and v.dtype is not DType.F32), None)
    if narrow is not None:
        stored_as = f"region {region.name} stores {narrow.name} as {narrow.dtype.value}"
        fact = f"{stored_as}, but {low.device} computes in F32"
        raise UnsupportedError(low.program.graph.name, fact, "build the graph with F32 activations")
    return rule(low, region.ops)


def _embed(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    tokens, table = op.inputs
    shape = low.value(op.outputs[0]).shape
    ends = {"tokens": low.at(tokens), "y": low.at(op.outputs[0])}
    return ends | low.weight("table", table) | {"T": low.size(shape[0]), "D": trailing(shape), "scale": op.scale}


def _one_norm(low: Lowering, ops: Sequence[Op]) -> Operands:
    """rms_norm or layer_norm; the latter has a bias instead of an offset, and does not read through views."""
    seen, (op,) = low.seen(ops)
    shape = low.value(op.outputs[0]).shape
    C = trailing((0, *low.value(op.inputs[1]).shape))
    sizes: Operands = {"T": low.size(shape[0]), "per_token": trailing(shape) // C, "C": C, "eps": op.number("eps")}
    apart: Operands = {"offset": op.offset, "x_first": seen.first, "x_step": seen.step}
    own: Operands = low.weight("bias", op.inputs[2]) if op.kind == "layer_norm" else apart
    return {"x": low.at(seen.name), "y": low.at(op.outputs[0])} | low.weight("weight", op.inputs[1]) | sizes | own


def _linear(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    return low.linear(op)


def _rope(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    T, H, C = low.value(op.outputs[0]).shape
    x, positions, _ = op.inputs
    ends = {"x": low.at(x), "positions": low.at(positions), "y": low.at(op.outputs[0])}
    return ends | low.turns(op) | {"T": low.size(T), "H": low.size(H), "C": low.size(C)}


def _kv_append(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    k, v, *paged, _ = op.inputs
    T, K, C = low.value(k).shape
    sizes = {"T": low.size(T), "K": low.size(K), "C": low.size(C)}
    return {"k": low.at(k), "v": low.at(v)} | low.pages(op, *paged) | sizes


def _attention(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    window = op.integer("window")
    return _attended(low, op, -window if HORIZON in op.inputs else window)  # negative: later tokens are visible too


def _relative_attention(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    buckets = op.inputs[5]
    bias = low.weight("bias", op.inputs[4]) | {"buckets": low.at(buckets)}
    bias["reach"] = len(low.value(buckets).data) // 2 if buckets else 0
    return _attended(low, op, -1 if HORIZON in op.inputs else 0) | bias  # negative: not causal


def _attended(low: Lowering, op: Op, window: int) -> Operands:
    q, *paged = op.inputs[:4]
    T, H, C = low.value(q).shape
    sizes = {"T": low.size(T), "B": Named("B"), "H": low.size(H), "K": low.kv_heads(op), "C": low.size(C)}
    how: Operands = {"scale": op.number("scale"), "window": window, "cap": op.cap}
    how |= {"growth": op.growth, "every": op.growth_step, **low.weight("sinks", op.sinks)}
    return {"q": low.at(q), "y": low.at(op.outputs[0])} | low.pages(op, *paged) | sizes | how


def _elementwise(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    shape = low.value(op.outputs[0]).shape
    names = zip(("a", "b"), op.inputs, strict=True) if len(op.inputs) == 2 else [("x", op.inputs[0])]
    ends = {operand: low.at(name) for operand, name in names} | {"y": low.at(op.outputs[0])}
    return ends | _form(op) | {"T": low.size(shape[0]), "N": trailing(shape)}


def _xielu(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    x, *numbers = op.inputs
    shape = low.value(op.outputs[0]).shape
    found = {"x": low.at(x), "y": low.at(op.outputs[0]), "T": low.size(shape[0]), "N": trailing(shape)}
    for operand, name in zip(("alpha_p", "alpha_n", "beta", "eps"), numbers, strict=True):
        found |= low.weight(operand, name)
    return found


def _form(op: Op) -> Operands:
    """Attributes of an activation: the form of a gelu, the cap of a softcap."""
    if op.kind == "gelu":
        return {"form": kernels.GELU_FORMS.index(str(op.attrs["form"]))}
    return {"cap": op.cap} if op.kind == "softcap" else {}


def _mul_part(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    a, b = op.inputs
    T, N = low.value(a).shape
    width, step = trailing((T, N)), trailing(low.value(b).shape)
    ends = {"a": low.at(a), "b": low.at(b), "y": low.at(op.outputs[0])}
    return ends | {"T": low.size(T), "N": width, "b_first": op.integer(PART) * width, "b_step": step}


def _mul_one(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    x, weight = op.inputs
    shape = low.value(x).shape
    ends = {"x": low.at(x), "y": low.at(op.outputs[0])} | low.weight("weight", weight)
    return ends | {"T": low.size(shape[0]), "N": trailing(shape)}


def _take_rows(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    R, D = low.value(op.outputs[0]).shape
    ends = {"x": low.at(op.inputs[0]), "rows": low.at(op.inputs[1]), "y": low.at(op.outputs[0])}
    return ends | {"R": low.size(R), "D": low.size(D)}


def _sample(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    logits, settings = op.inputs
    R, V = low.value(logits).shape
    ends = {"logits": low.at(logits), "settings": low.at(settings), "tokens": low.at(op.outputs[0])}
    rows = {"positions": Named("positions"), "rows": Named("rows")}
    return ends | rows | {"R": low.size(R), "V": low.size(V)}


def _norm_qkv_rope_append(low: Lowering, ops: Sequence[Op]) -> Operands:
    first = None if ops[0].kind == "linear" else ops[0]
    q, k, v, *rest, append = ops[first is not None :]
    norms = [op for op in rest if op.kind == "rms_norm"]
    rope = next((op for op in rest if op.kind == "rope"), None)  # q's; the fusion rule requires k's to be the same
    operands = low.norm_of(first, q.inputs[0])
    for name, op in (("q", q), ("k", k), ("v", v)):
        operands |= low.projection(f"w{name}", f"b{name}", op)
    for name, head in (("q", q), ("k", k)):
        head_norm = next((op for op in norms if op.inputs[0] == head.outputs[0]), None)
        operands |= low.weight(f"{name}_norm", head_norm.inputs[1] if head_norm else "")
        operands[f"{name}_eps"] = head_norm.number("eps") if head_norm else 0.0
    made = rope.outputs[0] if rope else next((op for op in norms if op.inputs[0] == q.outputs[0]), q).outputs[0]
    T, H, C = low.value(made).shape
    sizes = {"T": low.size(T), "D": trailing(low.value(q.inputs[0]).shape), "H": low.size(H), "C": low.size(C)}
    ends = {"q": low.at(made), **low.turns(rope)}
    return operands | ends | low.pages(append, *append.inputs[2:5]) | sizes | {"K": low.kv_heads(append)}


def _norm_rope_append(low: Lowering, ops: Sequence[Op]) -> Operands:
    seen, (q_norm, k_norm, *ropes, append) = low.seen(ops)
    made = (ropes or [q_norm])[0].outputs[0]
    T, H, C = low.value(made).shape
    operands: Operands = {"offset": q_norm.offset, **low.turns(ropes[0] if ropes else None)}
    operands |= {"q_first": seen.first, "q_step": seen.step}
    for name, norm, x in (("q", q_norm, seen.name), ("k", k_norm, k_norm.inputs[0])):
        operands |= {f"{name}_in": low.at(x), f"{name}_eps": norm.number("eps")}
        operands |= low.weight(f"{name}_norm", norm.inputs[1])
        operands[f"{name}_width"] = trailing((0, *low.value(norm.inputs[1]).shape))
    operands |= {"v": low.at(append.inputs[1]), "q": low.at(made)}
    sizes = {"T": low.size(T), "H": low.size(H), "C": low.size(C), "K": low.kv_heads(append)}
    return operands | low.pages(append, *append.inputs[2:5]) | sizes


def _norm_add(low: Lowering, ops: Sequence[Op]) -> Operands:
    norm, add, *scaled = ops
    (residual,) = [name for name in add.inputs if name != norm.outputs[0]]
    T, D = low.value(add.outputs[0]).shape
    ends = {"residual": low.at(residual), "y": low.at(ops[-1].outputs[0])}
    factor = low.weight("factor", scaled[0].inputs[1] if scaled else "")
    return low.norm(norm) | ends | factor | {"T": low.size(T), "D": low.size(D)}


def _linear_add(low: Lowering, ops: Sequence[Op]) -> Operands:
    linear, add = ops
    (residual,) = [name for name in add.inputs if name != linear.outputs[0]]
    return low.linear(linear) | {"residual": low.at(residual), "y": low.at(add.outputs[0])}


def _norm_gate_up_mul(low: Lowering, ops: Sequence[Op]) -> Operands:
    *norms, gate, up, act, mul = ops
    x = (norms or [gate])[0].inputs[0]
    T, F = low.value(mul.outputs[0]).shape
    sizes = {"T": low.size(T), "D": trailing(low.value(x).shape), "F": low.size(F)}
    projections = low.projection("gate", "gate_bias", gate) | low.projection("up", "up_bias", up)
    normed = low.norm_of(norms[0] if norms else None, x)
    return normed | projections | _form(act) | {"y": low.at(mul.outputs[0])} | sizes


def _norm_linear_gelu(low: Lowering, ops: Sequence[Op]) -> Operands:
    *norms, linear, gelu = ops
    norm = norms[0] if norms else None
    T, N = low.value(gelu.outputs[0]).shape
    sizes = {"T": low.size(T), "D": trailing(low.value(linear.inputs[0]).shape), "N": low.size(N)}
    normed = low.norm_of(norm, linear.inputs[0]) | low.projection("weight", "bias", linear)
    return normed | _form(gelu) | {"y": low.at(gelu.outputs[0])} | sizes


def _take_norm_linear(low: Lowering, ops: Sequence[Op]) -> Operands:
    take, norm, linear = ops
    R, N = low.value(linear.outputs[0]).shape
    D = trailing(low.value(norm.outputs[0]).shape)
    ends = {"x": low.at(take.inputs[0]), "rows": low.at(take.inputs[1]), "y": low.at(linear.outputs[0])}
    sizes: Operands = {"R": low.size(R), "D": D, "N": low.size(N), "scale": linear.scale}
    normed = low.norm(norm) | low.projection("weight", "bias", linear)
    return normed | ends | sizes


_LOWER: Mapping[str, Callable[[Lowering, Sequence[Op]], Operands]] = {
    "embed": _embed,
    "rms_norm": _one_norm,
    "layer_norm": _one_norm,
    "linear": _linear,
    "rope": _rope,
    "kv_append": _kv_append,
    "attention": _attention,
    "relative_attention": _relative_attention,
    "add": _elementwise,
    "silu": _elementwise,
    "gelu": _elementwise,
    "softcap": _elementwise,
    "relu_squared": _elementwise,
    "xielu": _xielu,
    "mul": _elementwise,
    "mul_part": _mul_part,
    "mul_one": _mul_one,
    "take_rows": _take_rows,
    "sample": _sample,
    "norm_qkv_rope_append": _norm_qkv_rope_append,
    "norm_rope_append": _norm_rope_append,
    "linear_add": _linear_add,
    "norm_add": _norm_add,
    "norm_gate_up_silu_mul": _norm_gate_up_mul,
    "norm_gate_up_gelu_mul": _norm_gate_up_mul,
    "norm_linear_gelu": _norm_linear_gelu,
    "take_norm_linear": _take_norm_linear,
    **BRANCH_LOWER,
    **DELTA_LOWER,
    **LATENT_LOWER,
    **SCAN_LOWER,
}

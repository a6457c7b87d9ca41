"""Lowers gated delta nets and gated attention: maps operands to a program's values, constants and sizes.

Knows nothing about which families have such layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coterie.core.shapes import fixed, trailing
from coterie.devices.real.lowering import Lowering
from coterie.devices.real.operands import Named, Operands
from coterie.graph.delta_net.ops import CONV, CONV_STATE, DELTA, DELTA_STATE, KEY_HEADS, PARTS, PLAIN
from coterie.graph.ir import Op

STATE_TABLES = "state_tables"  # bound per run: the block tables from their first column on


def kept(low: Lowering, op: Op) -> Operands:
    """Operands that locate a layer's recurrent state: its units are the matrices, then the convolution's state."""
    positions, sequence, _, _ = op.inputs[-4:]
    layers = fixed(low.value(CONV_STATE).shape)[0]
    has_matrices = op.kind == CONV and DELTA_STATE in low.program.graph.values
    behind = fixed(low.value(DELTA_STATE).shape)[1] if has_matrices else 0
    first = op.integer("layer") * (low.program.kv.state_units // layers) + behind
    named: Operands = {name: Named(name) for name in (STATE_TABLES, "table_width", "kv", "block_bytes")}
    rows: Operands = {"positions": low.at(positions), "sequence": low.at(sequence)}
    return named | rows | {"unit_bytes": low.program.kv.unit_bytes, "first_unit": first}


def _conv(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    T, N = low.value(op.outputs[0]).shape
    taps = low.value(op.inputs[1]).shape[-1]
    ends = {"x": low.at(op.inputs[0]), "y": low.at(op.outputs[0])} | low.weight("weight", op.inputs[1])
    ends |= low.weight("bias", op.inputs[2])
    sizes = {"T": low.size(T), "B": Named("B"), "N": low.size(N), "taps": low.size(taps)}
    return ends | kept(low, op) | sizes | {PLAIN: int(PLAIN in op.attrs)}


def _parts(low: Lowering, ops: Sequence[Op]) -> Operands:
    (op,) = ops
    qkvz, ba = op.inputs
    T, H, C = low.value(op.outputs[1]).shape
    keys = trailing(low.value(op.outputs[0]).shape) - trailing(low.value(op.outputs[1]).shape)
    ends = {name: low.at(value) for name, value in zip(("x", "z", "a", "b"), op.outputs, strict=True)}
    sizes = {"T": low.size(T), "H": low.size(H), "C": low.size(C), "K": keys // (2 * op.integer(KEY_HEADS))}
    return {"qkvz": low.at(qkvz), "ba": low.at(ba)} | ends | sizes | {"key_heads": op.integer(KEY_HEADS)}


def _delta(low: Lowering, ops: Sequence[Op]) -> Operands:
    """The recurrence, alone or fused with the norm and gate that follow it."""
    op, *rest = ops
    x, a, b, a_log, dt_bias = op.inputs[:5]
    T, H, C = low.value(op.outputs[0]).shape
    K = low.value(op.inputs[-1]).shape[2]
    ends: Operands = {"x": low.at(x), "a": low.at(a), "b": low.at(b), "y": low.at(ops[-1].outputs[0])}
    sizes = {"T": low.size(T), "H": low.size(H), "C": low.size(C), "K": low.size(K), "B": Named("B")}
    own = low.weight("a_log", a_log) | low.weight("dt_bias", dt_bias) | {"key_heads": op.integer(KEY_HEADS)}
    behind: Operands = {}
    if rest:
        norm, silu, _ = rest
        behind = {"z": low.at(silu.inputs[0]), "eps": norm.number("eps"), "offset": norm.offset}
        behind |= low.weight("norm", norm.inputs[1])
    return ends | own | kept(low, op) | sizes | behind


def _sigmoid(low: Lowering, ops: Sequence[Op]) -> Operands:
    """A sigmoid, alone or fused with the multiplication that it gates; may read through a view."""
    seen, (op, *muls) = low.seen(ops)
    shape = low.value(op.outputs[0]).shape
    sizes: Operands = {"T": low.size(shape[0]), "N": trailing(shape), "C": low.size(shape[-1])}
    C = shape[-1] if isinstance(shape[-1], int) else 0
    read: Operands = {"x": low.at(seen.name), "x_first": seen.first, "x_step": seen.step or C}
    ends: Operands = {"y": low.at((muls or [op])[0].outputs[0])}
    if muls:
        ends["a"] = next(low.at(name) for name in muls[0].inputs if name != op.outputs[0])
    return read | ends | sizes


DELTA_LOWER: Mapping[str, Callable[[Lowering, Sequence[Op]], Operands]] = {
    CONV: _conv,
    PARTS: _parts,
    DELTA: _delta,
    "gated_delta_norm": _delta,
    "sigmoid": _sigmoid,
    "sigmoid_mul": _sigmoid,
}
READ_THROUGH = ("rms_norm", "norm_rope_append", "sigmoid", "sigmoid_mul")  # kernels that can read a view of heads

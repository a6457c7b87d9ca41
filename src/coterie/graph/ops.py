"""The closed table of ops: half a line of meaning, the operands and the attributes of each.

Shapes use the letters of core.shapes. T is always the first dimension of an activation; KV is the paged state.
The activations of an op are of one type, float32 on every real device; weights are as in the file.
`?` marks an optional operand.
Adding an op: a row here, in verify.py, cost.py and reference.py; kernels where wanted.

Knows nothing about how ops are computed or fused.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OpSpec:
    """What one row of the table says."""

    meaning: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[str, ...] = ()


OPS: dict[str, OpSpec] = {
    "embed": OpSpec("y = table[tokens]", ("tokens:T", "table:VD"), ("y:TD",)),
    "rms_norm": OpSpec("y = x / rms(x, last axis) * weight", ("x:T*C", "weight:C"), ("y:T*C",), ("eps",)),
    "linear": OpSpec("y = x @ weight.T + bias, trailing axes flattened", ("x:T*", "weight:NK", "bias?:N"), ("y:T*",)),
    "rope": OpSpec(
        "rotate the halves of each head by position * inv_freq, cos and sin times scale",
        ("x:THC", "positions:T", "inv_freq:C/2"),
        ("y:THC",),
        ("scale",),
    ),
    "kv_append": OpSpec(
        "store k and v at (page of position, layer)",
        ("k:TKC", "v:TKC", "positions:T", "sequence:T", "block_tables:B*", "kv:state"),
        ("kv:state",),
        ("layer",),
    ),
    "attention": OpSpec(
        "softmax(scale * q @ k.T, causal, within window if window > 0) @ v over the pages of each token's sequence",
        ("q:THC", "positions:T", "sequence:T", "block_tables:B*", "kv:state"),
        ("y:THC",),
        ("layer", "scale", "window"),
    ),
    "add": OpSpec("y = a + b", ("a:T*", "b:T*"), ("y:T*",)),
    "silu": OpSpec("y = x * sigmoid(x)", ("x:T*",), ("y:T*",)),
    "mul": OpSpec("y = a * b", ("a:T*", "b:T*"), ("y:T*",)),
    "take_rows": OpSpec("y = x[rows]", ("x:TD", "rows:R"), ("y:RD",)),
    "sample": OpSpec(
        "draw a token per row: argmax at temperature 0, else softmax after temperature, top-k, top-p, min-p",
        ("logits:RV", "sampling:R*"),
        ("tokens:R",),
    ),
}

# The inputs that every decoder graph declares: rows of the step, made by the engine and passed in a Binding.
ROW_INPUTS = ("tokens", "positions", "sequence", "block_tables", "rows", "sampling")

"""The ops of a backward pass: gradients of a loss by rules per op; backward/build.py builds graphs of them.

`dy` is the gradient of an op's result, of the activations' type. Knows nothing about which rule makes which op.
"""

from __future__ import annotations

from coterie.graph.opspec import OpSpec

BACKWARD_OPS: dict[str, OpSpec] = {
    "linear_dx": OpSpec("dx = dy @ weight, trailing axes flattened", ("dy:T*", "weight:NK"), ("dx:T*",)),
    "linear_dw": OpSpec(
        "dw = dy.T @ x, trailing axes flattened; of a sparse weight only the elements that it has",
        ("dy:T*", "x:T*", "weight?:NK"),
        ("dw:NK",),
    ),
    "bias_dw": OpSpec("db = the sum of dy over its rows", ("dy:T*",), ("db:N",)),
    "rms_norm_dx": OpSpec("gradient of rms_norm in x", ("dy:T*C", "x:T*C", "weight:C"), ("dx:T*C",), ("eps",)),
    "rms_norm_dw": OpSpec("gradient of rms_norm in its weight", ("dy:T*C", "x:T*C"), ("dw:C",), ("eps",)),
    "layer_norm_dx": OpSpec("gradient of layer_norm in x", ("dy:T*C", "x:T*C", "weight:C"), ("dx:T*C",), ("eps",)),
    "layer_norm_dw": OpSpec("gradient of layer_norm in its weight", ("dy:T*C", "x:T*C"), ("dw:C",), ("eps",)),
    "rope_dx": OpSpec(
        "rope by the opposite angles",
        ("dy:THC", "positions:T", "inv_freq:C/2"),
        ("dx:THC",),
        ("scale", "interleaved?"),
    ),
    "silu_dx": OpSpec("dx = dy * the slope of silu at x", ("dy:T*", "x:T*"), ("dx:T*",)),
    "gelu_dx": OpSpec("dx = dy * the slope of gelu at x", ("dy:T*", "x:T*"), ("dx:T*",), ("form",)),
    "attention_grad": OpSpec(
        "gradients of causal attention among the step's own tokens; scores are computed again",
        ("dy:THC", "q:THC", "k:TKC", "v:TKC", "positions:T", "sequence:T"),
        ("dq:THC", "dk:TKC", "dv:TKC"),
        ("scale", "window"),
    ),
    "take_rows_dx": OpSpec("rows put back where they were taken, 0 elsewhere", ("dy:RD", "rows:R"), ("dx:TD",)),
    "loss_dx": OpSpec(
        "gradient in the logits of the mean cross-entropy with the targets", ("logits:RV", "targets:R"), ("dx:RV",)
    ),
    "loss_parts": OpSpec(
        "per row the maximum of the logits, and the sum of their exponentials after it is taken off",
        ("logits:RV",),
        ("parts:R*",),
    ),
    "loss_part_dx": OpSpec(
        "loss_dx in one rank's logits, of tokens from first_row on, by the parts of all ranks",
        ("logits:RV", "parts:R*", "targets:R"),
        ("dx:RV",),
        ("first_row",),
    ),
    "embed_dw": OpSpec(
        "rows of scale * dy added up by token - first_row, those of other ranks left out",
        ("dy:TD", "tokens:T"),
        ("dtable:VD",),
        ("first_row?", "scale?"),
    ),
    "positions_dw": OpSpec(
        "rows of dy added up by position + offset", ("dy:TD", "positions:T"), ("dtable:ND",), ("offset",)
    ),
}

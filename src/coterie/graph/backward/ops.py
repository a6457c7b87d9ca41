"""The ops of a backward pass: gradients of a loss by rules per op; backward/build.py builds graphs of them.

`dy` is the gradient of an op's result, of the activations' type. Knows nothing about which rule makes which op.
"""

from __future__ import annotations

from coterie.graph.opspec import OpSpec

BACKWARD_OPS: dict[str, OpSpec] = {
    "linear_dx": OpSpec("dx = dy @ weight, trailing axes flattened", ("dy:T*", "weight:NK"), ("dx:T*",)),
    "linear_dw": OpSpec(
        "dw = dy.T @ x, trailing axes flattened; for a sparse weight, only its stored elements",
        ("dy:T*", "x:T*", "weight?:NK"),
        ("dw:NK",),
    ),
    "bias_dw": OpSpec("db = dy summed over rows", ("dy:T*",), ("db:N",)),
    "rms_norm_dx": OpSpec(
        "gradient of rms_norm with respect to x", ("dy:T*C", "x:T*C", "weight:C"), ("dx:T*C",), ("eps",)
    ),
    "rms_norm_dw": OpSpec("gradient of rms_norm with respect to its weight", ("dy:T*C", "x:T*C"), ("dw:C",), ("eps",)),
    "layer_norm_dx": OpSpec(
        "gradient of layer_norm with respect to x", ("dy:T*C", "x:T*C", "weight:C"), ("dx:T*C",), ("eps",)
    ),
    "layer_norm_dw": OpSpec(
        "gradient of layer_norm with respect to its weight", ("dy:T*C", "x:T*C"), ("dw:C",), ("eps",)
    ),
    "rope_dx": OpSpec(
        "rope with negated angles",
        ("dy:THC", "positions:T", "inv_freq:C/2"),
        ("dx:THC",),
        ("scale", "interleaved?"),
    ),
    "silu_dx": OpSpec("dx = dy * the derivative of silu at x", ("dy:T*", "x:T*"), ("dx:T*",)),
    "gelu_dx": OpSpec("dx = dy * the derivative of gelu at x", ("dy:T*", "x:T*"), ("dx:T*",), ("form",)),
    "attention_grad": OpSpec(
        "gradients of causal attention among the step's own tokens; scores are recomputed",
        ("dy:THC", "q:THC", "k:TKC", "v:TKC", "positions:T", "sequence:T"),
        ("dq:THC", "dk:TKC", "dv:TKC"),
        ("scale", "window"),
    ),
    "take_rows_dx": OpSpec(
        "scatter the rows back to where they were taken; 0 elsewhere", ("dy:RD", "rows:R"), ("dx:TD",)
    ),
    "loss_dx": OpSpec(
        "gradient of the mean cross-entropy with the targets, with respect to the logits",
        ("logits:RV", "targets:R"),
        ("dx:RV",),
    ),
    "loss_parts": OpSpec(
        "per row, the maximum m of the logits, and the sum of exp(logits - m)",
        ("logits:RV",),
        ("parts:R*",),
    ),
    "loss_part_dx": OpSpec(
        "loss_dx for one rank's logits (tokens from first_row on), from the loss_parts of all ranks",
        ("logits:RV", "parts:R*", "targets:R"),
        ("dx:RV",),
        ("first_row",),
    ),
    "embed_dw": OpSpec(
        "scatter-add the rows of scale * dy by token - first_row, without the tokens of other ranks",
        ("dy:TD", "tokens:T"),
        ("dtable:VD",),
        ("first_row?", "scale?"),
    ),
    "positions_dw": OpSpec(
        "scatter-add the rows of dy by position + offset", ("dy:TD", "positions:T"), ("dtable:ND",), ("offset",)
    ),
}

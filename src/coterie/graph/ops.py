"""The closed table of ops: what each computes, its operands and its attributes.

Shapes use the letters of core.shapes. T is always the first dimension of an activation; KV is the paged state.
All activations of an op have one type, float32 on every real device; weights are as in the file.
`?` marks an optional operand or attribute; `??` a last operand that may be missing from the list altogether; `+` an
operand that is repeated for each branch (expert of a mixture).
To add an op: a row here, in legal.py, cost.py and reference.py, or in those of its own folder; kernels where wanted.

Knows nothing about how ops are computed or fused.
"""

from __future__ import annotations

from coterie.graph.backward.ops import BACKWARD_OPS
from coterie.graph.branch.ops import BRANCH_OPS
from coterie.graph.delta_net.ops import DELTA_OPS
from coterie.graph.eager.ops import EAGER_OPS
from coterie.graph.latent.ops import LATENT_OPS
from coterie.graph.layer.ops import LAYER_OPS
from coterie.graph.opspec import OpSpec
from coterie.graph.scan.ops import SCAN_OPS

__all__ = [
    "ATTENTION",
    "BF16",
    "CAP",
    "COLLECTIVES",
    "GROWTH",
    "GROWTH_STEP",
    "HORIZON",
    "INT8",
    "INT8_OR_FINER",
    "INT16",
    "INTERLEAVED",
    "MORE_ROWS",
    "OFFSET",
    "OPS",
    "ROUNDING",
    "ROW_INPUTS",
    "SCALE",
    "TYPES",
    "OpSpec",
]

OPS: dict[str, OpSpec] = {
    "embed": OpSpec("y = scale * table[tokens]; without a scale 1", ("tokens:T", "table:VD"), ("y:T*",), ("scale?",)),
    "rms_norm": OpSpec(
        "y = x / rms(x) * (weight + offset), over the last axis; over all heads of a token where the weight is as "
        "long; a constant may stand for the weight",
        ("x:T*C", "weight:C"),
        ("y:T*C",),
        ("eps", "offset?"),
    ),
    "linear": OpSpec(
        "y = scale * (x @ weight.T + bias), trailing axes flattened; rounding int16 or int8: x as in "
        "core.packed.rounded, beside packed weights; bf16: each x to the nearest, beside bfloat16 ones",
        ("x:T*", "weight:NK", "bias?:N"),
        ("y:T*",),
        ("rounding?", "scale?"),
    ),
    "rope": OpSpec(
        "rotate the halves of each head by position * inv_freq, cos and sin times scale; with fewer of inv_freq, the "
        "halves of as many pairs of its first channels; interleaved 1: pairs are neighbours, not halves",
        ("x:THC", "positions:T", "inv_freq:C/2"),
        ("y:THC",),
        ("scale", "interleaved?"),
    ),
    "kv_append": OpSpec(
        "store k and v at (page of position, layer)",
        ("k:TKC", "v:TKC", "positions:T", "sequence:T", "block_tables:B*", "kv:state"),
        ("kv:state",),
        ("layer",),
    ),
    "attention": OpSpec(
        "softmax(scale * q @ k.T, causal, within window if window > 0) @ v over the pages of each token's sequence; "
        "with a cap, cap * tanh(score / cap) in place of each score; with growth, q times "
        "1 + growth * log(1 + position // every); with sinks, one score more of each head, of no value; with the row "
        "input horizon in place of positions, those behind are seen too, within the window if there is one, and keys "
        "and values are done with; rounding bf16: queries, and what each value is weighed by, to the nearest",
        ("q:THC", "positions:T", "sequence:T", "block_tables:B*", "kv:state", "sinks??:H"),
        ("y:THC",),
        ("layer", "scale", "window", "cap?", "growth?", "every?", "rounding?"),
    ),
    "add": OpSpec("y = a + b", ("a:T*", "b:T*"), ("y:T*",)),
    "silu": OpSpec("y = x * sigmoid(x)", ("x:T*",), ("y:T*",)),
    "softcap": OpSpec("y = cap * tanh(x / cap)", ("x:T*",), ("y:T*",), ("cap",)),
    "mul": OpSpec("y = a * b", ("a:T*", "b:T*"), ("y:T*",)),
    "take_rows": OpSpec("y = x[rows]", ("x:TD", "rows:R"), ("y:RD",)),
    "sample": OpSpec(
        "draw a token per row: argmax at temperature 0, else softmax after temperature, top-k, top-p, min-p",
        ("logits:RV", "sampling:R*"),
        ("tokens:R",),
    ),
    "layer_norm": OpSpec(
        "y = (x - mean) / std * weight + bias, over the last axis",
        ("x:T*C", "weight:C", "bias?:C"),
        ("y:T*C",),
        ("eps",),
    ),
    "relu": OpSpec("y = x where x > 0, else 0", ("x:T*",), ("y:T*",)),
    "relu_squared": OpSpec("y = x * x where x > 0, else 0", ("x:T*",), ("y:T*",)),
    "xielu": OpSpec(
        "y = a * x * x + beta * x where x > 0, else b * (exp(min(x, eps)) - 1 - x) + beta * x; a = softplus(alpha_p), "
        "b = beta + softplus(alpha_n)",
        ("x:T*", "alpha_p:1", "alpha_n:1", "beta:", "eps:"),
        ("y:T*",),
    ),
    "add_positions": OpSpec(
        "y = x + table[positions + offset]", ("x:TD", "positions:T", "table:ND"), ("y:TD",), ("offset",)
    ),
    "gelu": OpSpec("y = x * Phi(x), Phi by erf, or nearly so by tanh or sigmoid", ("x:T*",), ("y:T*",), ("form",)),
    "alibi_attention": OpSpec(
        "attention over the whole context with slope * position of the key added to each score",
        ("q:THC", "positions:T", "sequence:T", "block_tables:B*", "slopes:H", "kv:state"),
        ("y:THC",),
        ("layer", "scale"),
    ),
    "relative_attention": OpSpec(
        "attention over the whole context with a bias of the head added to each score: the row of table that buckets "
        "has for how far the key stands behind the token, from farthest before on, both ends for all farther ones; "
        "without buckets -table[0] * that distance; with the row input horizon as attention",
        ("q:THC", "positions:T", "sequence:T", "block_tables:B*", "table:NH", "buckets?:", "kv:state"),
        ("y:THC",),
        ("layer", "scale"),
    ),
    "group_attention": OpSpec(
        "softmax(scale * q @ k.T) @ v among each `group` rows, all of them seen",
        ("q:*HC", "k:*HC", "v:*HC"),
        ("y:*HC",),
        ("group", "scale"),
    ),
    "take_heads": OpSpec(
        "of each `of` heads, `count` from `first` on", ("x:THC",), ("y:THC",), ("of", "first", "count"), view=True
    ),
    "add_bias": OpSpec("y = x + bias", ("x:T*", "bias:*"), ("y:T*",)),
    "add_table": OpSpec("y = x + table[row modulo the table's rows]", ("x:*D", "table:ND"), ("y:*D",)),
    "mul_table": OpSpec("y = x * table[row modulo the table's rows]", ("x:*D", "table:ND"), ("y:*D",)),
    "first_row": OpSpec("a learned row before each `group` rows", ("x:*D", "row:D"), ("y:*D",), ("group",)),
    "drop_first": OpSpec("each `group` rows without the first of them", ("x:*D",), ("y:*D",), ("group",), view=True),
    "merge_rows": OpSpec(
        "y = x, but for tokens equal to `token` the next of `rows`",
        ("x:TD", "tokens:T", "rows:*D"),
        ("y:TD",),
        ("token",),
    ),
    "swap": OpSpec(
        "rows seen as [*, outer, middle, inner] become [*, inner, middle, outer]",
        ("x:*D",),
        ("y:*D",),
        ("outer", "middle", "inner"),
        view=True,
    ),
    "sub": OpSpec("y = a - b", ("a:T*", "b:T*"), ("y:T*",)),
    "embed_part": OpSpec(
        "y = scale * table[tokens - first_row], 0 for tokens of other ranks",
        ("tokens:T", "table:VD"),
        ("y:TD",),
        ("first_row", "scale?"),
    ),
    "all_reduce": OpSpec(
        "y = the sum of x over the ranks; with fewer than there are, over as many neighbours",
        ("x:T*",),
        ("y:T*",),
        ("ranks",),
    ),
    "all_gather": OpSpec(
        "y = the x of all ranks in order, joined along the second axis", ("x:T*",), ("y:T*",), ("ranks",)
    ),
    **BRANCH_OPS,
    **DELTA_OPS,
    **LATENT_OPS,
    **LAYER_OPS,
    **SCAN_OPS,
    **EAGER_OPS,
    **BACKWARD_OPS,
}

# Attention over per-head keys and values in KV pages (latent attention is apart: latent/ops.py).
ATTENTION = ("attention", "alibi_attention", "relative_attention")
# The only ops that communicate between ranks.
COLLECTIVES = ("all_reduce", "all_gather")
ROUNDING, INT8, INT16 = "rounding", "int8", "int16"  # of linear with packed weights; without it a CPU uses int16
BF16 = "bf16"  # of ROUNDING: to bfloat16, beside bfloat16 weights or cached keys; without it a CPU keeps float32
INT8_OR_FINER = "int8 or finer"  # of ROUNDING: a CPU rounds to 8 bits; a device that never rounds may run it
OFFSET, CAP = "offset", "cap"  # optional attributes; absent means none
GROWTH, GROWTH_STEP = "growth", "every"  # of attention: both or neither
INTERLEAVED = "interleaved"  # of rope; absent means pairs of halves, not adjacent channels
SCALE = "scale"  # of many ops; where it is optional, absent means 1

HORIZON = "horizon"  # row input: for each token, the last position of its sequence, which is whole in the step
TYPES = "types"  # row input: for each token of a pair of texts, the text it belongs to: 0 or 1

# Row inputs of every decoder graph, which the engine fills and passes in a Binding. MORE_ROWS, declared only by some
# graphs, are derived from these: see graph/rows.py.
MORE_ROWS = (HORIZON, TYPES)
KV_ROWS = ("positions", "sequence", "block_tables")  # together they locate a token's KV state
ROW_INPUTS = ("tokens", "positions", "sequence", "block_tables", "rows", "sampling")

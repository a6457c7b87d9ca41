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
    "DERIVED_ROWS",
    "GROWTH",
    "GROWTH_STEP",
    "HORIZON",
    "INT8",
    "INT8_OR_FINER",
    "INT16",
    "INTERLEAVED",
    "OFFSET",
    "OPS",
    "ROUNDING",
    "ROW_INPUTS",
    "SCALE",
    "TYPES",
    "OpSpec",
]

OPS: dict[str, OpSpec] = {
    "embed": OpSpec(
        "y = scale * table[tokens]; scale is 1 if absent", ("tokens:T", "table:VD"), ("y:T*",), ("scale?",)
    ),
    "rms_norm": OpSpec(
        "y = x / rms(x) * (weight + offset), over the last axis, or over all heads of a token if the weight has that "
        "length; the weight may be a constant",
        ("x:T*C", "weight:C"),
        ("y:T*C",),
        ("eps", "offset?"),
    ),
    "linear": OpSpec(
        "y = scale * (x @ weight.T + bias), trailing axes flattened; rounding int16 or int8 (packed weights): x is "
        "quantised as in core.packed.rounded; bf16 (bfloat16 weights): x is rounded to nearest",
        ("x:T*", "weight:NK", "bias?:N"),
        ("y:T*",),
        ("rounding?", "scale?"),
    ),
    "rope": OpSpec(
        "rotate channel pairs (i, i + n/2) of each head by position * inv_freq, cos and sin times scale; n is twice "
        "the length of inv_freq, and channels from n on are unchanged; interleaved 1: pairs are adjacent channels",
        ("x:THC", "positions:T", "inv_freq:C/2"),
        ("y:THC",),
        ("scale", "interleaved?"),
    ),
    "kv_append": OpSpec(
        "store k and v in the KV page of each token's position, for this layer",
        ("k:TKC", "v:TKC", "positions:T", "sequence:T", "block_tables:B*", "kv:state"),
        ("kv:state",),
        ("layer",),
    ),
    "attention": OpSpec(
        "softmax(scale * q @ k.T, causal, within window if window > 0) @ v over the pages of each token's sequence; "
        "with a cap, each score becomes cap * tanh(score / cap); with growth, q is multiplied by "
        "1 + growth * log(1 + position // every); with sinks, each head's softmax has one more score, without a value; "
        "if positions is the row input horizon, attention is bidirectional (within the window, if any), and nothing "
        "reads the stored keys and values after this op; rounding bf16: queries and softmax weights are rounded",
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
        "sample a token per row: argmax at temperature 0, else from the softmax after temperature, top-k, min-p, top-p",
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
    "gelu": OpSpec("y = x * Phi(x), Phi by erf, or approximated by tanh or sigmoid", ("x:T*",), ("y:T*",), ("form",)),
    "alibi_attention": OpSpec(
        "attention without a window; slope * position of the key is added to each score",
        ("q:THC", "positions:T", "sequence:T", "block_tables:B*", "slopes:H", "kv:state"),
        ("y:THC",),
        ("layer", "scale"),
    ),
    "relative_attention": OpSpec(
        "attention without a window; a bias per head is added to each score: table[buckets[d]], d being the signed "
        "distance from token to key, clamped to the range of buckets; without buckets -table[0] * abs(d); the row "
        "input horizon makes it bidirectional, as in attention",
        ("q:THC", "positions:T", "sequence:T", "block_tables:B*", "table:NH", "buckets?:", "kv:state"),
        ("y:THC",),
        ("layer", "scale"),
    ),
    "group_attention": OpSpec(
        "bidirectional softmax(scale * q @ k.T) @ v within each group of `group` rows",
        ("q:*HC", "k:*HC", "v:*HC"),
        ("y:*HC",),
        ("group", "scale"),
    ),
    "take_heads": OpSpec(
        "heads `first` to `first + count - 1` of each group of `of` heads",
        ("x:THC",),
        ("y:THC",),
        ("of", "first", "count"),
        view=True,
    ),
    "add_bias": OpSpec("y = x + bias", ("x:T*", "bias:*"), ("y:T*",)),
    "add_table": OpSpec("y = x + table[row index modulo N]", ("x:*D", "table:ND"), ("y:*D",)),
    "mul_table": OpSpec("y = x * table[row index modulo N]", ("x:*D", "table:ND"), ("y:*D",)),
    "first_row": OpSpec(
        "insert a learned row before each group of `group` rows", ("x:*D", "row:D"), ("y:*D",), ("group",)
    ),
    "drop_first": OpSpec(
        "drop the first row of each group of `group` rows", ("x:*D",), ("y:*D",), ("group",), view=True
    ),
    "merge_rows": OpSpec(
        "y = x, where tokens equal to `token` are replaced by the `rows`, in order",
        ("x:TD", "tokens:T", "rows:*D"),
        ("y:TD",),
        ("token",),
    ),
    "swap": OpSpec(
        "each row, viewed as [*, outer, middle, inner], is transposed to [*, inner, middle, outer]",
        ("x:*D",),
        ("y:*D",),
        ("outer", "middle", "inner"),
        view=True,
    ),
    "sub": OpSpec("y = a - b", ("a:T*", "b:T*"), ("y:T*",)),
    "embed_part": OpSpec(
        "y = scale * table[tokens - first_row]; 0 for tokens in other ranks' parts of the table",
        ("tokens:T", "table:VD"),
        ("y:TD",),
        ("first_row", "scale?"),
    ),
    "all_reduce": OpSpec(
        "y = the sum of x over the ranks; if `ranks` is less than their number, over groups of adjacent ranks",
        ("x:T*",),
        ("y:T*",),
        ("ranks",),
    ),
    "all_gather": OpSpec(
        "y = x of all ranks, concatenated in order along the second axis", ("x:T*",), ("y:T*",), ("ranks",)
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
BF16 = "bf16"  # of ROUNDING: to bfloat16, with bfloat16 weights or cached keys; without it a CPU keeps float32
INT8_OR_FINER = "int8 or finer"  # of ROUNDING: a CPU rounds to 8 bits; a device that never rounds may run it
OFFSET, CAP = "offset", "cap"  # optional attributes; absent means none
GROWTH, GROWTH_STEP = "growth", "every"  # of attention: both or neither
INTERLEAVED = "interleaved"  # of rope; absent means pairs of halves, not adjacent channels
SCALE = "scale"  # of many ops; where it is optional, absent means 1

HORIZON = "horizon"  # row input: for each token, the last position of its sequence, which is whole in the step
TYPES = "types"  # row input: for each token of a pair of texts, the text it belongs to: 0 or 1

# Row inputs of every decoder graph, which the engine fills and passes in a Binding. DERIVED_ROWS, declared only by some
# graphs, are derived from these: see graph/rows.py.
DERIVED_ROWS = (HORIZON, TYPES)
KV_ROWS = ("positions", "sequence", "block_tables")  # together they locate a token's KV state
ROW_INPUTS = ("tokens", "positions", "sequence", "block_tables", "rows", "sampling")

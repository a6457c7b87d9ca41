"""The kernels that PyTorch launches for a decoder run op by op; eager/rewrite.py rewrites a graph into them.

S counts the positions of all contexts; TS counts one score per token and position of its (padded) context, since eager
kernels skip none.
Knows nothing about which kernels an op becomes (eager/rewrite.py).
"""

from __future__ import annotations

from coterie.graph.opspec import OpSpec


def _unary(meaning: str, *attrs: str, view: bool = False) -> OpSpec:
    return OpSpec(meaning, ("x:T*",), ("y:T*",), attrs, view)


EAGER_OPS: dict[str, OpSpec] = {
    "cast": _unary("y = x in another float type"),
    "copy": _unary("y = x, made contiguous"),
    "square": _unary("y = x * x"),
    "rsqrt": _unary("y = 1 / sqrt(x)"),
    "neg": _unary("y = -x"),
    "cos": _unary("y = cos(x)"),
    "sin": _unary("y = sin(x)"),
    "sigmoid": _unary("y = 1 / (1 + exp(-x))"),
    "tanh": _unary("y = tanh(x)"),
    "softmax": _unary("y = softmax(x), over the last axis"),
    "scale": _unary("y = x * factor", "factor"),
    "shift": _unary("y = x + number", "number"),
    "mean": OpSpec(
        "y = mean(x), over the last axis or all but the first; reduced axes are kept", ("x:T*C",), ("y:T*1",)
    ),
    "mul_last": OpSpec("y = x * r, r broadcast along the axes that a mean reduced", ("x:T*C", "r:T*1"), ("y:T*C",)),
    "mul_weight": OpSpec(
        "y = x * (weight + offset), along the last axis or all but the first",
        ("x:T*C", "weight:C"),
        ("y:T*C",),
        ("offset?",),
    ),
    "mul_heads": OpSpec("y = x * c, c broadcast over heads", ("x:THC", "c:TC"), ("y:THC",)),
    "cat": OpSpec(
        "a and b concatenated along the last axis; in_turn 1: interleaved element by element",
        ("a:T*C", "b:T*C"),
        ("y:T*C",),
        ("in_turn?",),
    ),
    "slice": _unary(
        "`count` elements of the last axis from `first` on, every `step`-th (default 1)",
        "first",
        "count",
        "step?",
        view=True,
    ),
    "heads_first": _unary("transpose: heads before tokens, or channels before positions", view=True),
    "to_float": OpSpec("positions as float32", ("positions:T",), ("y:T1",)),
    "angles": OpSpec("y = x * inv_freq", ("x:T1", "inv_freq:C"), ("y:TC",)),
    "kv_cat": OpSpec(
        "store k (which 0) or v (1), then concatenate the whole context of each sequence",
        ("k:TKC", "positions:T", "sequence:T", "block_tables:B*", "kv:state"),
        ("y:SKC", "kv:state"),
        ("layer", "which"),
    ),
    "repeat_heads": OpSpec(
        "repeat each head `times` times, consecutively", ("x:*KC",), ("y:*HC",), ("times",), view=True
    ),
    "mask": OpSpec(
        "0 where a token sees a position of its context (within window if window > 0), else -infinity",
        ("positions:T", "sequence:T"),
        ("y:TS1",),
        ("window",),
    ),
    "add_mask": OpSpec("y = x + mask, broadcast over heads", ("x:TSH", "mask:TS1"), ("y:TSH",)),
    "alibi": OpSpec("y = slope * position of the key", ("positions:T", "sequence:T", "slopes:H"), ("y:SH",)),
    "scores": OpSpec("y = q @ k.T", ("q:THC", "k:SHC", "positions:T", "sequence:T"), ("y:TSH",)),
    "alibi_scores": OpSpec(
        "y = bias + scale * q @ k.T", ("q:THC", "k:SHC", "bias:SH", "positions:T", "sequence:T"), ("y:TSH",), ("scale",)
    ),
    "context_softmax": OpSpec(
        "softmax over the positions of each token's context", ("x:TSH", "positions:T", "sequence:T"), ("y:TSH",)
    ),
    "mix": OpSpec("y = p @ v", ("p:TSH", "v:SHC", "positions:T", "sequence:T"), ("y:THC",)),
    "group_scores": OpSpec("y = q @ k.T within each group of `group` rows", ("q:*HC", "k:*HC"), ("y:*HN",), ("group",)),
    "group_mix": OpSpec("y = p @ v within each group of `group` rows", ("p:*HN", "v:*HC"), ("y:*HC",), ("group",)),
}

"""The ops of latent attention: one cached row per position, shared by all heads, instead of keys and values.

    row       | R latent numbers, normed | P of a key, rotated |      what is cached per token
    key       a head's N key rows of the weight times the latent numbers, then the rotated numbers
    value     its V value rows of the weight times the latent numbers

Scores are (q W) . row: the weight is absorbed into the query, and keys and values are never materialised. A head's
weighted sum of rows, multiplied by its value rows of the weight, is its weighted sum of values.
Source: DeepSeek-AI 2024, DeepSeek-V2 (arXiv 2405.04434), section 2.1.
Knows nothing about which families use them.
"""

from __future__ import annotations

from coterie.core.shapes import numbers_in
from coterie.graph.ir import Graph, Op
from coterie.graph.opspec import OpSpec

APPEND, QUERIES, ATTEND, VALUES = "latent_append", "latent_queries", "latent_attention", "latent_values"
OF_HEADS = (QUERIES, VALUES)  # ops that read each head's rows of the weight

LATENT_OPS: dict[str, OpSpec] = {
    APPEND: OpSpec(
        "store at (page of position, layer) x / rms(x) * weight of as many first numbers as the weight has, and behind "
        "them the others, rotated as by rope",
        ("x:TN", "weight:R", "positions:T", "sequence:T", "block_tables:B*", "inv_freq:P/2", "kv:state"),
        ("kv:state",),
        ("layer", "eps", "scale", "interleaved?"),
    ),
    QUERIES: OpSpec(
        "per head, the unrotated channels multiplied by its key rows of the weight, followed by the other channels, "
        "rotated as by rope",
        ("x:THC", "weight:NR", "positions:T", "inv_freq:P/2"),
        ("y:THC",),
        ("scale", "interleaved?"),
    ),
    ATTEND: OpSpec(
        "softmax(scale * q @ rows.T, causal) @ rows[:, :R], where rows are the cached rows of each token's sequence",
        ("q:THC", "positions:T", "sequence:T", "block_tables:B*", "kv:state"),
        ("y:THR",),
        ("layer", "scale"),
    ),
    VALUES: OpSpec("per head, x multiplied by its value rows of the weight", ("x:THR", "weight:NR"), ("y:THV",)),
}


def key_rows(graph: Graph, op: Op) -> int:
    """How many of a head's rows of the weight are for its keys, in an op of OF_HEADS; they come first."""
    if op.kind == QUERIES:
        channels, rotated = graph.values[op.inputs[0]].shape[-1:], 2 * len(graph.values[op.inputs[3]].data)
        return numbers_in(channels) - rotated
    return head_rows(graph, op) - numbers_in(graph.values[op.outputs[0]].shape[-1:])


def head_rows(graph: Graph, op: Op) -> int:
    """Rows of the weight per head, for keys and values together; 0 if they do not divide evenly among heads."""
    rows, heads = numbers_in(graph.values[op.inputs[1]].shape[:1]), numbers_in(graph.values[op.inputs[0]].shape[1:2])
    return rows // heads if heads and rows % heads == 0 else 0

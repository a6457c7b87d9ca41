"""Bytes of keys and values that ops store and read, and which ops do.

Knows nothing about machines, or about the costs of other ops (cost.py).
"""

from __future__ import annotations

from coterie.core.shapes import Sizes, trailing
from coterie.graph.ir import Graph, Op, state_of
from coterie.graph.latent.ops import APPEND, ATTEND

KV_READERS = ("attention", "alibi_attention", ATTEND, "kv_cat")
KV_WRITERS = ("kv_append", APPEND)


def kv_bytes(graph: Graph, op: Op, sizes: Sizes) -> int:
    """Bytes of K and V of one layer: of this step's tokens, where they are stored, or of the contexts that are read.

    A cat reads the context before this step, of K or V; what it writes, the whole context anew, is its output.
    """
    kv = state_of(graph, op)
    per_token = trailing(kv.shape) * kv.dtype.size_bytes
    if op.kind in KV_WRITERS:
        return sizes.T * per_token
    if op.kind == "kv_cat":
        return (sizes.context_tokens - sizes.T) * per_token // 2
    # The windows of t new tokens of a sequence cover t + window - 1 positions, and never more than its context.
    window = int(op.attrs.get("window", 0))
    seen = min(sizes.context_tokens, sizes.T + sizes.B * (window - 1)) if window else sizes.context_tokens
    return seen * per_token

"""Bytes of keys and values that ops store and read, and which ops these are.

Knows nothing about machines, or about the costs of other ops (cost.py).
"""

from __future__ import annotations

from coterie.core.shapes import Sizes, fixed
from coterie.graph.ir import Graph, Op, Value, state_of
from coterie.graph.latent.ops import APPEND, ATTEND
from coterie.graph.ops import ATTENTION

KV_READERS = (*ATTENTION, ATTEND, "kv_cat")
KV_WRITERS = ("kv_append", APPEND)


def layer_bytes(kv: Value) -> int:
    """Bytes of one token in one layer of a KV state."""
    return kv.dtype.tensor_bytes(fixed(kv.shape[1:]))


def kv_bytes(graph: Graph, op: Op, sizes: Sizes) -> int:
    """Bytes of K and V of one layer: those stored for this step's tokens, or those read from the contexts.

    A kv_cat reads the context before this step, of K or V; what it writes, a copy of the whole context, is its output.
    """
    per_token = layer_bytes(state_of(graph, op))
    if op.kind in KV_WRITERS:
        return sizes.T * per_token
    if op.kind == "kv_cat":
        return (sizes.context_tokens - sizes.T) * per_token // 2
    # The windows of t new tokens of a sequence cover t + window - 1 positions, and never more than its context.
    window = int(op.attrs.get("window", 0))
    seen = min(sizes.context_tokens, sizes.T + sizes.B * (window - 1)) if window else sizes.context_tokens
    return seen * per_token

"""Analytic cost of a collective among ranks, for machines without measured ones.

    all-reduce of B bytes, n ranks    ring 2 (n - 1) a + 2 (n - 1) / n B / bw      tree 2 log2(n) (a + B / bw)
    all-gather to B bytes             ring   (n - 1) a +   (n - 1) / n B / bw      tree   log2(n) a + (n - 1) / n B / bw

a is the latency of one message, bw the send bandwidth of one rank; the faster algorithm is used. Source: Thakur,
Rabenseifner and Gropp, Optimization of collective communication operations in MPICH, 2005. Knows nothing about graphs.
"""

from __future__ import annotations

from math import ceil, log2

ALL_REDUCE = "all_reduce"


def exchange_s(
    kind: str, size_bytes: float, ranks: int, latency_s: float, bytes_per_s: float, messages: int = 1
) -> tuple[float, float]:
    """(latency, transfer time) in seconds of a collective whose result has `size_bytes`.

    Successive `messages` overlap in latency; the algorithm is chosen that finishes all of them first.
    """
    if ranks <= 1:
        return 0.0, 0.0
    rounds, levels = 2 if kind == ALL_REDUCE else 1, ceil(log2(ranks))
    moved_s = size_bytes / bytes_per_s
    share_s = (ranks - 1) / ranks * moved_s
    ring = rounds * (ranks - 1) * latency_s, rounds * share_s
    tree = rounds * levels * latency_s, rounds * levels * moved_s if kind == ALL_REDUCE else share_s
    return min(ring, tree, key=lambda way: way[0] + messages * way[1])

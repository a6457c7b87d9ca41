"""Releases idle memory: what is kept for later and not pinned goes, until it is needed again.

    pinned experts, bases                               stay
    other experts, their copies below, KV of ended ones go; they come back from files, or are computed again

Knows nothing about when: whoever has a clock says so.
"""

from __future__ import annotations

from coterie.engine.assembly import Parts
from coterie.memory.split import sides_of


def release_idle(parts: Parts) -> int:
    """Give back what nobody uses, while nothing runs or is under way; how many bytes of slabs that leaves unused."""
    pieces = []
    for side, cache in sides_of(parts.all_weights).items():
        if side != "bases":
            for name in sorted({name for ledger in cache.ledgers for name in ledger.copies} - cache.pinned):
                cache.forget(name)
                parts.engine.log.add("unload", name)
            pieces += [hole for ledger in cache.ledgers for hole in ledger.holes]
    if parts.kv.forget_unused():
        pieces.append(parts.kv.buffer)
    for piece in pieces:
        parts.device.give_back(piece)
    return sum(piece.size_bytes for piece in pieces)

"""Releases idle memory: whatever is cached and not pinned goes, until it is needed again.

    pinned experts, bases                                           stay
    other experts, their copies below, KV state of ended sequences  go; reloaded from files, or recomputed

Knows nothing about when: its caller has the clock.
"""

from __future__ import annotations

from coterie.engine.assembly import Parts
from coterie.memory.split import sides_of


def release_idle(parts: Parts) -> int:
    """Give unused memory back to the system, while nothing runs or loads; returns the bytes of slabs now unused."""
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

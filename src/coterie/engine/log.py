"""The decision log: what was decided, in order, without times, so that two runs can be compared line by line.

Knows nothing about why.
"""

from __future__ import annotations

from collections import deque
from itertools import takewhile

from coterie.memory.cache import ExpertCache

MAX_ENTRIES = 1 << 18  # a bound on memory; the oldest entries go first

LOADS = ("miss", "prefetch")  # how the cache's own log names the beginning of a load


class DecisionLog:
    """Entries are tuples: ("submit", request, expert), ("fetch", expert), ("evict", expert, tier), ("admit", request),
    ("run", expert, tokens, sampled rows), ("finish", request, reason), ("fail", expert), ("refuse", expert).
    """

    def __init__(self, cache: ExpertCache) -> None:
        self.entries: deque[tuple[str | int, ...]] = deque(maxlen=MAX_ENTRIES)
        self._cache = cache

    def add(self, *entry: str | int) -> None:
        """Append an entry."""
        self.entries.append(entry)

    def add_fetch(self, expert_id: str) -> None:
        """Append a fetch that was begun just now, with the evictions that made room for it."""
        self.entries.append(("fetch", expert_id))
        since = takewhile(lambda e: e[:2] not in [(why, expert_id) for why in LOADS], reversed(self._cache.decisions))
        evicted = [(what, who, tier) for what, who, tier in since if what == "evict"]
        self.entries.extend(reversed(evicted))

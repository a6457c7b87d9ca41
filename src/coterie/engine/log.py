"""The decision log: what was decided, in order, without times, so that two runs can be compared line by line.

Knows nothing about why.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from coterie.memory.residency import Evicted

Told: TypeAlias = tuple[str | int | float, ...]

MAX_ENTRIES = 1 << 18  # a bound on memory; the oldest entries go first


class DecisionLog:
    """Entries are tuples: ("submit", request, expert), ("fetch", expert), ("evict", expert, tier), ("admit", request),
    ("pause", request) where it gives its KV blocks up and waits again, ("raise", request) to the priority of others,
    ("reuse", request, tokens that it need not compute), ("run", expert, tokens, sampled rows),
    ("draft", expert, tokens, sampled rows) where it drafts for another one,
    ("finish", request, reason), ("fail", expert), ("refuse", expert),
    and what else was asked for: ("load", expert), ("unload", expert), ("pin", expert), ("unpin", expert).

    `follower`, while there is one, is told of each as it is added (not of fetches and evictions, which the cache tells
    of itself, nor of runs), and of what is no decision: ("loaded", expert, seconds), ("failed", expert, why). It must
    return at once and ask for nothing.
    """

    def __init__(self) -> None:
        self.entries: deque[tuple[str | int, ...]] = deque(maxlen=MAX_ENTRIES)
        self.follower: Callable[[Told], None] | None = None

    def add(self, *entry: str | int) -> None:
        """Append an entry."""
        self.entries.append(entry)
        if self.follower is not None:
            self.follower(entry)

    def tell(self, *entry: str | int | float) -> None:
        """Tell who follows of what is no decision: when a load ends depends on the device, so logs go without it."""
        if self.follower is not None:
            self.follower(entry)

    def add_steps(self, count: int, entry: tuple[str | int, ...]) -> None:
        """Append an entry for each of `count` equal steps."""
        self.entries.extend([entry] * count)

    def add_fetch(self, expert_id: str, evicted: Evicted) -> None:
        """Append a fetch, with the evictions that made room for it."""
        self.entries.append(("fetch", expert_id))
        self.entries.extend(("evict", who, tier) for who, tier in evicted)

"""The decision log: decisions in order, without times, so that two runs can be compared line by line.

Knows nothing about the reasons.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from coterie.memory.residency import Evicted

LogEntry: TypeAlias = tuple[str | int | float, ...]

MAX_ENTRIES = 1 << 18  # bounds memory; the oldest entries are dropped


class DecisionLog:
    """The decisions, as tuples.

    Requests:  ("submit", request, expert), ("admit", request), ("reuse", request, tokens found in the prefix cache),
               ("pause", request) when it gives up its KV blocks and waits again, ("raise", request) to a better
               priority, ("finish", request, reason)
    Experts:   ("fetch", expert), ("evict", expert, tier), ("fail", expert), ("refuse", expert)
    Steps:     ("run", expert, tokens, sampled rows, and the names of other experts that share the step),
               ("draft", expert, tokens, sampled rows) when it drafts for another expert
    Commands:  ("load", expert), ("unload", expert), ("pin", expert), ("unpin", expert)

    `follower`, if set, is called with each entry as it is added (except fetches and evictions, which the cache reports
    itself, and runs), and with events that are not decisions: ("loaded", expert, seconds), ("failed", expert, why). It
    must return at once and must not call back.
    """

    def __init__(self) -> None:
        self.entries: deque[tuple[str | int, ...]] = deque(maxlen=MAX_ENTRIES)
        self.follower: Callable[[LogEntry], None] | None = None

    def add(self, *entry: str | int) -> None:
        """Append an entry."""
        self.entries.append(entry)
        if self.follower is not None:
            self.follower(entry)

    def report(self, *entry: str | int | float) -> None:
        """Report an event that is no decision to the follower. Not logged: when a load ends depends on the device."""
        if self.follower is not None:
            self.follower(entry)

    def add_steps(self, count: int, entry: tuple[str | int, ...]) -> None:
        """Append an entry for each of `count` equal steps."""
        self.entries.extend([entry] * count)

    def add_fetch(self, expert_id: str, evicted: Evicted) -> None:
        """Append a fetch, with the evictions that made room for it."""
        self.entries.append(("fetch", expert_id))
        self.entries.extend(("evict", who, tier) for who, tier in evicted)

"""Uses: how often, and how lately, each expert was wanted.

        count   1 .. 0.6 .. 0.4 + 1 .. 0.9 ..        fades with every request of anybody, grows by one's own

Knows nothing about tiers, bytes or the clock: the number of requests so far is its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

# A request fades to 1/e over this many requests for each known expert. So an average one has this count: with less
# memory the counts say little, with more an old favourite stays after its time.
MEMORY_USES = 8


@dataclass(slots=True)
class Use:
    """What is known of one expert. `last_used` is the number of its last want; `faded` its count as of `as_of`."""

    last_used: int = 0
    uses: int = 0
    faded: float = 0.0
    as_of: int = 0


class Uses:
    """Counts for each expert that was ever wanted, resident or not. `wants` and `requests` are those so far, of all."""

    def __init__(self) -> None:
        self.wants = self.requests = 0
        self._of: dict[str, Use] = {}
        self._memory = MEMORY_USES

    def known(self, expert_id: str) -> Use:
        """What is known of an expert, from now on if it is new."""
        found = self._of.get(expert_id)
        if found is None:
            found = self._of[expert_id] = Use()
            self._memory = MEMORY_USES * len(self._of)
        return found

    def forget(self, expert_id: str) -> None:
        """It is no more among those whose requests there may be."""
        if self._of.pop(expert_id, None) is not None:
            self._memory = MEMORY_USES * max(len(self._of), 1)

    def add(self, expert_id: str, count: int) -> None:
        """It was wanted for so many requests, which count as if one came after the other; none: ahead of them."""
        use = self.known(expert_id)
        use.last_used, use.uses = self.wants, use.uses + count
        self.wants += 1
        if count:
            # Each fades what was before it by one request: a geometric series.
            one, all_ = exp(-1 / self._memory), exp(-count / self._memory)
            use.faded = self.recent(use) * all_ + (1 - all_) / (1 - one)
            self.requests += count
            use.as_of = self.requests

    def recent(self, use: Use) -> float:
        """How often it was used lately: every request counts, less the more requests of anybody came after it."""
        return use.faded * exp((use.as_of - self.requests) / self._memory)

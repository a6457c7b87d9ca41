"""Uses: how often, and how recently, each expert was requested.

        count   1 .. 0.6 .. 0.4 + 1 .. 0.9 ..        decays with every request to any expert, +1 for one of its own

Knows nothing about tiers, bytes or the clock: time is the number of requests so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

# The time constant, in requests per known expert: an expert of average popularity has this count. Smaller values make
# the counts noisy; larger ones keep formerly popular experts too long.
MEMORY_USES = 8


@dataclass(slots=True)
class Use:
    """One expert's counts. `last_used`: number of its last want; `decayed`: its decayed count at request `as_of`."""

    last_used: int = 0
    uses: int = 0
    decayed: float = 0.0
    as_of: int = 0


class Uses:
    """Counts per expert ever acquired, resident or not. `wants` and `requests`: totals over all experts so far."""

    def __init__(self) -> None:
        self.wants = self.requests = 0
        self._of: dict[str, Use] = {}
        self._memory = MEMORY_USES

    def known(self, expert_id: str) -> Use:
        """An expert's counts; registers it if it is new."""
        found = self._of.get(expert_id)
        if found is None:
            found = self._of[expert_id] = Use()
            self._memory = MEMORY_USES * len(self._of)
        return found

    def forget(self, expert_id: str) -> None:
        """Remove an expert that can no longer be requested."""
        if self._of.pop(expert_id, None) is not None:
            self._memory = MEMORY_USES * max(len(self._of), 1)

    def add(self, expert_id: str, count: int) -> None:
        """Record a `want` for `count` consecutive requests; 0 is a prefetch, which updates only `last_used`."""
        use = self.known(expert_id)
        use.last_used, use.uses = self.wants, use.uses + count
        self.wants += 1
        if count:
            # Each request decays the ones before it by one step: a geometric series.
            one, all_ = exp(-1 / self._memory), exp(-count / self._memory)
            use.decayed = self.recent(use) * all_ + (1 - all_) / (1 - one)
            self.requests += count
            use.as_of = self.requests

    def recent(self, use: Use) -> float:
        """The decayed count as of now: each of its requests, weighted by how many requests of any expert followed."""
        return use.decayed * exp((use.as_of - self.requests) / self._memory)

"""Uses: how often, and how lately, each expert was wanted.

        count   1 .. 0.6 .. 0.4 + 1 .. 0.9 ..        fades with every use of anybody, grows by one's own

Knows nothing about tiers, bytes or the clock: the number of uses so far is its time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

# A use fades to 1/e over this many uses for each known expert. So an average one has this count: with less memory the
# counts say little, with more an old favourite stays after its time.
MEMORY_USES = 8


@dataclass(slots=True)
class Use:
    """What is known of one expert. `last_used` is a number of `now`; `faded` is its recent count as of then."""

    last_used: int = 0
    uses: int = 0
    faded: float = 0.0


class Uses:
    """Counts for each expert that was ever wanted, resident or not. `now` counts the uses so far."""

    def __init__(self) -> None:
        self.now = 0
        self._of: dict[str, Use] = {}

    def known(self, expert_id: str) -> Use:
        """What is known of an expert, from now on if it is new."""
        return self._of.setdefault(expert_id, Use())

    def add(self, expert_id: str, count: int) -> None:
        """It was used so many times; none: it was brought in ahead of its use, still the latest then."""
        use = self.known(expert_id)
        use.faded = self.recent(use) + count
        use.last_used, use.uses = self.now, use.uses + count
        self.now += max(count, 1)

    def recent(self, use: Use) -> float:
        """How often it was used lately: every use counts, less the more uses of anybody came after it."""
        return use.faded * exp((use.last_used - self.now) / (MEMORY_USES * len(self._of)))

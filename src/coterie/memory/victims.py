"""Chooses victims: builds the input of the eviction policies (evict.py) and interprets their refusals.

    copies in a tier, their uses, pins --entries--> policy --> victims, or Busy (wait), or CapacityError (never)

Knows nothing about transfers, and evicts nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from coterie.checkpoint.layout import Layout
from coterie.core.errors import CapacityError
from coterie.core.units import format_bytes
from coterie.device import Event
from coterie.memory.evict import Entry, HoleError, Policy, Window, overlapping
from coterie.memory.slab import round_up
from coterie.memory.tiers import TierLedger
from coterie.memory.uses import Uses

NO_EXPERTS: frozenset[str] = frozenset()


class Busy(Exception):  # noqa: N818 - not an error: the caller tries again when an event has finished
    """There is no room yet: wait for one of `events`, poll, and try again."""

    def __init__(self, expert_id: str, need_bytes: int, tier: str, events: tuple[Event, ...]) -> None:
        self.expert_id, self.need_bytes, self.tier, self.events = expert_id, need_bytes, tier, events
        super().__init__(
            f"{expert_id} needs {format_bytes(need_bytes)} of {tier}, which {len(events)} pending events keep busy"
        )


class Victims:
    """Chooses victims in the tiers of `ledgers`, nearest first; `weights`: relative costs of the links that fill them.

    `pins`: experts never evicted from the nearest tier, and the offset reserved for each there, or None.
    """

    def __init__(self, ledgers: Sequence[TierLedger], weights: Sequence[int], policy: Policy, uses: Uses) -> None:
        self._ledgers, self._near, self._weights = ledgers, ledgers[0], weights
        self._policy, self._uses = policy, uses
        self.pins: dict[str, int | None] = {}

    def of(self, ledger: TierLedger, expert_id: str, layout: Layout, protected: Set[str]) -> Window:
        """The copies to evict from a tier so that this layout fits. Raises Busy or CapacityError."""
        kept = protected | self.pins.keys() if ledger is self._near else protected
        entries = self._entries(ledger, kept)
        need, offset = round_up(layout.size_bytes), self.offset_of(ledger, expert_id)
        try:
            if offset is not None:
                return overlapping(entries, offset, need)
            return self._policy(entries, ledger.capacity_bytes, need, self._uses.wants)
        except HoleError as hole:
            if hole.waiting_helps:
                busy = tuple(event for copy in ledger.copies.values() for event in copy.pending)
                raise Busy(expert_id, need, ledger.tier, busy) from hole
            in_the_way = sorted(self.pins.keys() & ledger.copies.keys()) if ledger is self._near else []
            budget = "--near" if ledger is self._near else f"the budget of {ledger.tier}"
            raise _never_fits(expert_id, ledger, hole, budget, in_the_way) from hole

    def offset_of(self, ledger: TierLedger, expert_id: str) -> int | None:
        """The offset reserved for an expert in a tier, or None."""
        return self.pins.get(expert_id) if ledger is self._near else None

    def _entries(self, ledger: TierLedger, kept: Set[str]) -> list[Entry]:
        level, entries = self._ledgers.index(ledger), []
        below = self._ledgers[level + 1].copies if level + 1 < len(self._ledgers) else {}
        known, recently, weight = self._uses.known, self._uses.recent, self._weights[level]
        for name, copy in ledger.copies.items():
            use, extent, size_bytes = known(name), copy.extent, copy.extent.size_bytes
            cost = size_bytes * (weight if name in below else self._refetch_weight(name, level))
            kept_here, busy = name in kept and not copy.is_doomed, bool(copy.writers or copy.readers or copy.copied)
            # Positional arguments and an inlined Copy.is_busy, for speed: this loop is half the cost of finding room.
            entries.append(
                Entry(name, extent.offset, size_bytes, use.last_used, use.uses, recently(use), cost, kept_here, busy)
            )
        return entries

    def _refetch_weight(self, expert_id: str, level: int) -> int:
        """Sum of the weights of the links that a reload would cross; a copy in a tier below shortens the way."""
        total = 0
        for below in range(level, len(self._ledgers)):
            total += self._weights[below]
            if below + 1 < len(self._ledgers) and expert_id in self._ledgers[below + 1].copies:
                break
        return total


def _never_fits(
    expert_id: str, ledger: TierLedger, hole: HoleError, budget: str, pinned: Sequence[str]
) -> CapacityError:
    need, room = hole.need_bytes, hole.reachable_bytes
    levers = [f"raise {budget} by {format_bytes(need - room)}"]
    if pinned and need <= ledger.capacity_bytes:
        levers.append(f"unpin {', '.join(pinned)}")
    levers.append("use a smaller expert")
    return CapacityError(f"expert {expert_id}", f"its copy in {ledger.tier}", need, room, levers)

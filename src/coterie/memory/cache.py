"""ExpertCache: loads experts up the tiers within byte budgets, one load per expert at a time; eviction writes nothing.

        want - resident? ---- yes: a hit; if the load is still in flight, the caller joins it (same gates)
                     | no: choose victims in every tier above the nearest copy, before evicting any of them
                     `---> evict -> allocate extents -> fetch from disk, copy upwards -> one gate per stage

Only poll() observes completions, so decisions are a function of what the last poll saw and of the order of calls.

Knows nothing about models, requests or the clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from typing import TypeAlias

from coterie.checkpoint.layout import BLOCK_BYTES, Layout
from coterie.device import Device, Event
from coterie.memory.evict import Policy, Window, policy_of
from coterie.memory.links import fill_links, link_weights, managed_tiers
from coterie.memory.residency import NO_GATES, Evicted, Residency
from coterie.memory.rows import early_rows
from coterie.memory.tiers import Changes, Copy, Ended, TierLedger
from coterie.memory.transfer import Below, copy_layout, early_gate, fetch_layout, stage_gates
from coterie.memory.uses import Uses
from coterie.memory.victims import NO_EXPERTS, Busy, Victims

Decision: TypeAlias = tuple[str, str, str]
"""(what, expert_id, where); `what` is hit, miss, evict, fetch, copy or drop.

Independent of timing: joining a load in flight is logged as a hit.
"""


@dataclass(slots=True)
class Stats:
    """Counters since start. `joins`: hits on a load in flight; `evictions` per tier; `moved_bytes` issued per link."""

    hits: int = 0
    joins: int = 0
    misses: int = 0
    failures: int = 0
    evictions: dict[str, int] = field(default_factory=dict)
    moved_bytes: dict[str, int] = field(default_factory=dict)


class ExpertCache:
    """Owns the weight slabs. `tiers` maps each managed tier (all but the one that holds the files) to its byte budget.

    Raises UsageError for an unknown policy or tier, CapacityError when the memory cannot be reserved.
    """

    def __init__(
        self, device: Device, tiers: Mapping[str, int], evict: str | Policy = "lru", max_decisions: int = 1 << 12
    ) -> None:
        self._device, policy = device, policy_of(evict)
        names = managed_tiers(device.spec, tiers)
        self._changes = Changes()
        self._ledgers = tuple(
            TierLedger(device.reserve(name, tiers[name] // BLOCK_BYTES * BLOCK_BYTES), self._changes) for name in names
        )
        self._near, self._links = self._ledgers[0], fill_links(device.spec, names)
        self.uses = Uses()
        self._victims = Victims(self._ledgers, link_weights(device.spec, self._links), policy, self.uses)
        self.stats = Stats()
        self.decisions: deque[Decision] = deque(maxlen=max_decisions)
        self.follower: Callable[[Decision], None] | None = None  # called on each decision; must return at once

    def want(
        self,
        expert_id: str,
        layout: Layout,
        rows: Collection[int] = (),
        protected: Set[str] = NO_EXPERTS,
        uses: int = 1,
    ) -> Residency:
        """Start loading an expert, unless it is resident or loading; return where its weights are and what to await.

        uses: number of requests that caused this call; 0 for a prefetch or a retry.
        protected: experts that must not be evicted for it.
        rows: embedding rows to load first, where the load crosses a single link (from disk, or from a copy below).
        Raises Busy if work in flight must finish first, CapacityError if there can never be room; both evict nothing.
        """
        evicted = self._load(expert_id, layout, protected, rows)
        copy = self._near.copies[expert_id]
        if evicted is None:
            self._decide("hit", expert_id, self._near.tier)
            self.stats.hits += 1
            self.stats.joins += copy.is_loading
        else:
            self.stats.misses += 1
        self.uses.add(expert_id, uses)
        return _residency(expert_id, copy, evicted)

    def hold(self, expert_id: str, event: Event) -> None:
        """Protect a resident expert from eviction until `event`, which reads its weights, has finished.

        Raises KeyError if it is not resident.
        """
        self._near.copies[expert_id].readers.append(event)
        self._near.watched.add(expert_id)

    def release(self, expert_id: str, event: Event) -> None:
        """Declare the event of a `hold` finished, which saves the next poll from querying it."""
        self._near.release(expert_id, event)

    def pin(self, expert_id: str, offsets: Mapping[str, int] | None = None) -> None:
        """Never evict this expert from the run tier until `unpin`; if it is not resident, from when it becomes so.

        `offsets`: fixed offsets, by expert, at which pinned experts will be loaded.
        """
        pins = self._victims.pins
        self._victims.pins = {**pins, expert_id: pins.get(expert_id), **(offsets or {})}
        self._changes.count += 1

    def unpin(self, expert_id: str) -> None:
        """Undo `pin`. No effect if the expert was not pinned."""
        self._victims.pins.pop(expert_id, None)
        self._changes.count += 1

    def forget(self, expert_id: str) -> None:
        """Drop every copy of an expert, pinned or not; a busy copy is dropped by the first poll that finds it idle."""
        for ledger in self._ledgers:
            if expert_id in ledger.copies:
                copy = ledger.doom(expert_id)
                if not copy.is_busy:
                    ledger.drop(expert_id)
                    self._decide("drop", expert_id, ledger.tier)

    def poll(self) -> tuple[Ended, ...]:
        """Retire finished events and drop experts whose load failed; return the loads into the run tier that ended.

        A load is reported by one poll only: there should be a single poller.
        """
        ended: tuple[Ended, ...] = ()
        for ledger in self._ledgers:
            if ledger.watched:
                found = ledger.poll(self._device, self._dropped)
                ended = found if ledger is self._near else ended
        return ended

    def resident(self) -> tuple[str, ...]:
        """Experts in the run tier, including those still loading, least recently used first."""
        return tuple(sorted(self.residents, key=lambda name: (self.uses.known(name).last_used, name)))

    @property
    def residents(self) -> frozenset[str]:
        """As `resident`, unordered."""
        return frozenset([name for name, copy in self._near.copies.items() if not copy.is_doomed])

    def loading(self) -> tuple[str, ...]:
        """Experts on their way into the run tier, in the order in which their loads began."""
        return tuple(name for name, copy in self._near.copies.items() if copy.is_loading and not copy.is_doomed)

    @property
    def changes(self) -> int:
        """A version number: while it is unchanged, so are `loading` and, but for its order, `resident`.

        While `pending` is unchanged too, a `want` that was refused would be refused again.
        """
        return self._changes.count

    def pending(self) -> tuple[Event, ...]:
        """Events worth a poll when they finish: the last arrival of each load, and the readers of extents."""
        return tuple([event for ledger in self._ledgers if ledger.watched for event in ledger.pending()])

    @property
    def ledgers(self) -> tuple[TierLedger, ...]:
        """One per managed tier, nearest first."""
        return self._ledgers

    @property
    def pinned(self) -> frozenset[str]:
        """Experts that the user pinned, resident or not."""
        return frozenset(self._victims.pins)

    def check_integrity(self) -> None:
        """Raise RuntimeError unless free + used == total in every tier."""
        for ledger in self._ledgers:
            ledger.check_integrity()

    def _usable(self, ledger: TierLedger, expert_id: str, layout: Layout) -> bool:
        """Whether the tier has a copy with this layout. Drops an outdated copy; raises Busy while that is in use."""
        copy = ledger.copies.get(expert_id)
        if copy is None:
            return False
        if not copy.is_doomed and (copy.layout is layout or copy.layout == layout):
            return True
        ledger.doom(expert_id)
        if copy.is_busy:
            raise Busy(expert_id, layout.size_bytes, ledger.tier, copy.pending)
        ledger.drop(expert_id)
        self._decide("drop", expert_id, ledger.tier)
        return False

    def _load(self, expert_id: str, layout: Layout, protected: Set[str], rows: Collection[int]) -> Evicted | None:
        """Evict, allocate an extent in every tier above the nearest copy, and issue the transfers.

        Returns what was evicted, or None if the expert is in the run tier already.
        """
        here = self._near.copies.get(expert_id)
        if here is not None and here.layout is layout and not here.is_doomed:
            return None
        victims = self._choose(expert_id, layout, protected)
        depth = len(victims)
        if depth == 0:
            return None
        evicted: list[tuple[str, str]] = []
        self._decide("miss", expert_id, self._near.tier)
        for ledger, window in zip(self._ledgers, victims, strict=False):
            for entry in window:
                ledger.drop(entry.expert_id)
                evicted.append((entry.expert_id, ledger.tier))
                self.stats.evictions[ledger.tier] = self.stats.evictions.get(ledger.tier, 0) + 1
                self._decide("evict", entry.expert_id, ledger.tier)
        self.uses.known(expert_id)
        offset_of = self._victims.offset_of
        new = [ledger.admit(expert_id, layout, offset_of(ledger, expert_id)) for ledger in self._ledgers[:depth]]
        below = self._ledgers[depth].copies[expert_id] if depth < len(self._ledgers) else None
        if depth == 1 and (below is None or not below.arrivals):
            new[0].early = early_rows(layout, rows)
        try:
            for level in reversed(range(depth)):
                self._fill(level, expert_id, new[level], below)
                below = new[level]
        except Exception:
            # The device refused halfway: the extents are freed once the transfers already issued have finished.
            # Clearing the arrivals keeps poll from reporting the end of a load that was never fully issued.
            for ledger in self._ledgers[:depth]:
                ledger.doom(expert_id).arrivals = []
            raise
        return tuple(evicted)

    def _fill(self, level: int, expert_id: str, copy: Copy, below: Copy | None) -> None:
        """Issue the transfers that fill one copy, from the copy below or else from the files."""
        layout, link = copy.layout, self._links[level]
        try:
            if below is None:
                fetch_layout(self._device, layout, copy.weights, copy.arrivals, copy.early)
            else:
                source = Below(below.weights, below.arrivals)
                copy_layout(self._device, layout, copy.weights, source, copy.arrivals, copy.early)
        finally:
            copy.writers = list(copy.arrivals)
            self._ledgers[level].watched.add(expert_id)
            if below is not None:
                below.copied += [list(copy.arrivals)] if copy.arrivals else []
                self._ledgers[level + 1].watched.add(expert_id)
        moved = sum([placed.source.size_bytes for placed in layout.ranges])
        moved += copy.early.size_bytes if copy.early is not None else 0
        self.stats.moved_bytes[link] = self.stats.moved_bytes.get(link, 0) + moved
        self._decide("fetch" if below is None else "copy", expert_id, link)

    def _choose(self, expert_id: str, layout: Layout, protected: Set[str]) -> list[Window]:
        """Victims in each tier above the nearest copy. Chosen before any is evicted, so a refusal changes nothing.

        CapacityError in any tier takes precedence over Busy in another: never wait only to be refused.
        """
        chosen: list[Window] = []
        busy: list[Busy] = []
        for ledger in self._ledgers:
            try:
                if self._usable(ledger, expert_id, layout):
                    break
            except Busy as wait:
                busy.append(wait)
            try:
                chosen.append(self._victims.of(ledger, expert_id, layout, protected))
            except Busy as wait:
                busy.append(wait)
        if busy:
            raise busy[0]
        return chosen

    def _decide(self, what: str, expert_id: str, where: str) -> None:
        self.decisions.append((what, expert_id, where))
        if self.follower is not None:
            self.follower((what, expert_id, where))

    def _dropped(self, expert_id: str, tier: str, failed: bool) -> None:
        self.stats.failures += failed
        self._decide("drop", expert_id, tier)


def _residency(expert_id: str, copy: Copy, evicted: Evicted | None) -> Residency:
    """The Residency of a copy; `evicted` is the result of `_load`: None for a hit."""
    layout, events, hit = copy.layout, copy.arrivals, evicted is None
    if not events:
        return Residency(expert_id, copy.weights, NO_GATES, None, hit)
    if copy.gates is None:
        copy.gates = stage_gates(layout, events, copy.early), early_gate(layout, events, copy.early)
    gates, early = copy.gates
    return Residency(expert_id, copy.weights, gates, events[-1], hit, early, evicted or ())

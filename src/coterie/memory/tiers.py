r"""The ledger of one tier: its slab, the copies of experts in it, and which of them are loading, in use or doomed.

        admit -> loading -> loaded -> drop           doomed (the load failed, or doom was called): dropped by the first
                    \________/ \--> doomed           poll that finds none of its events pending

Knows nothing about policies, other tiers, or how bytes are moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from coterie.checkpoint.layout import Layout
from coterie.device import Buffer, Device, Event
from coterie.memory.residency import Early
from coterie.memory.rows import EarlyRows
from coterie.memory.slab import Extent, Slab

Ended: TypeAlias = tuple[str, Exception | None]
"""(expert_id, failure) of a load that ended. None: every range arrived, even if the copy has been doomed meanwhile."""


@dataclass(slots=True, eq=False)
class Copy:
    """An expert's bytes in one tier.

    `arrivals`: one event per range (with `early` rows, in the order of fetch_layout), cleared once a poll has seen all
    of them finish. `writers`: those unfinished as of the last poll. `readers`: unfinished runs that read it. `copied`:
    for each copy in flight to the tier above, its chain of events, each waiting for its predecessor. `gates`: the gates
    of these arrivals, computed on first use.
    """

    layout: Layout
    extent: Extent
    weights: Buffer
    early: EarlyRows | None = None
    arrivals: list[Event] = field(default_factory=list)
    writers: list[Event] = field(default_factory=list)
    readers: list[Event] = field(default_factory=list)
    copied: list[list[Event]] = field(default_factory=list)
    gates: tuple[Mapping[str, Event], Early | None] | None = None
    is_doomed: bool = False
    has_failed: bool = False
    number: int = 0

    @property
    def is_loading(self) -> bool:
        """True until a poll has seen every range arrive."""
        return bool(self.writers)

    @property
    def is_busy(self) -> bool:
        """True while something writes or reads the extent, as far as the last poll knows."""
        return bool(self.writers or self.readers or self.copied)

    @property
    def pending(self) -> tuple[Event, ...]:
        """Unfinished events to wait for; of each chain, only the last."""
        return (*self.writers[-1:], *[chain[-1] for chain in self.copied], *self.readers)


@dataclass(slots=True)
class Changes:
    """A version counter shared by the tiers of a cache, so that a check for changes in every step reads one number."""

    count: int = 0


class TierLedger:
    """Owns a tier's slab and the record of its copies, which only admit, drop, doom and poll change.

    `changes`: incremented when a copy comes, goes, is doomed or finishes loading; shared by all tiers of a cache.
    `watched`: experts whose events a poll must check; callers that issue work on a copy add its id.
    """

    def __init__(self, buffer: Buffer, changes: Changes) -> None:
        self.tier = buffer.tier
        self.copies: dict[str, Copy] = {}
        self.changes = changes
        self.watched: set[str] = set()
        self._admitted = 0
        self._buffer = buffer
        self._slab = Slab(buffer.size_bytes)

    @property
    def capacity_bytes(self) -> int:
        """Bytes that can be allocated in all."""
        return self._slab.size_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes allocated now."""
        return self._slab.used_bytes

    @property
    def holes(self) -> tuple[Buffer, ...]:
        """The free extents: neither occupied nor being loaded into."""
        return tuple([self._buffer.view(hole.offset, hole.size_bytes) for hole in self._slab.holes])

    @property
    def largest_hole(self) -> int:
        """Bytes of the largest expert that fits without eviction."""
        return self._slab.largest_hole

    def admit(self, expert_id: str, layout: Layout, at: int | None = None) -> Copy:
        """Allocate an extent for an expert, at offset `at` if given; the caller fills it.

        Raises SlabFullError: capacity is checked again here, whatever the eviction policy promised. ValueError if the
        tier has a copy of it already.
        """
        if expert_id in self.copies:
            raise ValueError(f"{expert_id} is in {self.tier} already")
        extent = self._slab.alloc(layout.size_bytes, at)
        copy = Copy(layout, extent, self._buffer.view(extent.offset, layout.size_bytes))
        self.copies[expert_id] = copy
        self._admitted += 1
        copy.number = self._admitted
        self.changes.count += 1
        return copy

    def release(self, expert_id: str, event: Event) -> None:
        """Declare a reader of a copy finished, which saves a query in the next poll."""
        copy = self.copies.get(expert_id)
        if copy is not None and event in copy.readers:
            copy.readers.remove(event)
            if not (copy.readers or copy.writers or copy.copied or copy.is_doomed):
                self.watched.discard(expert_id)

    def pending(self) -> list[Event]:
        """The pending events of all copies, in order of admission."""
        found = [self.copies[name] for name in self.watched]
        if len(found) > 1:
            found.sort(key=_number)
        return [event for copy in found for event in copy.pending]

    def doom(self, expert_id: str) -> Copy:
        """Mark a copy to be dropped by the first poll that finds it idle, unless it is dropped earlier."""
        copy = self.copies[expert_id]
        copy.is_doomed = True
        self.changes.count += 1
        self.watched.add(expert_id)
        return copy

    def drop(self, expert_id: str) -> None:
        """Free an expert's extent. Raises RuntimeError while it is busy: bytes in use are never reallocated."""
        copy = self.copies[expert_id]
        if copy.is_busy:
            raise RuntimeError(f"{expert_id} in {self.tier} is dropped while {copy.pending} are pending")
        del self.copies[expert_id]
        self.watched.discard(expert_id)
        self.changes.count += 1
        self._slab.free(copy.extent)

    def poll(self, device: Device, on_drop: Callable[[str, str, bool], None]) -> tuple[Ended, ...]:
        """Retire finished events; return the loads that this poll found ended, each exactly once.

        Calls `on_drop(expert_id, tier, load failed)` for each doomed copy that it drops.
        """
        if not self.watched:
            return ()
        ended: list[Ended] = []
        watched = [(name, self.copies[name]) for name in self.watched]
        for expert_id, copy in sorted(watched, key=lambda item: item[1].number) if len(watched) > 1 else watched:
            if copy.writers:
                ready = _retire_arrivals(device, copy)
                self.changes.count += not copy.is_loading or copy.is_doomed
                if ready is not None:
                    ended.append((expert_id, device.failure(ready)))
            if copy.readers:
                copy.readers = [event for event in copy.readers if not device.done(event)]
            if copy.copied:
                copy.copied = [left for chain in copy.copied if (left := _unfinished(device, chain))]
            if not copy.is_busy:
                self.watched.discard(expert_id)
                if copy.is_doomed:
                    self.drop(expert_id)
                    on_drop(expert_id, self.tier, copy.has_failed)
        return tuple(ended)

    def check_integrity(self) -> None:
        """Raise RuntimeError unless free + used == total, each copy owns one extent and busy copies are watched."""
        self._slab.check_integrity()
        unwatched = [name for name, copy in self.copies.items() if copy.is_busy and name not in self.watched]
        if unwatched or not self.watched <= self.copies.keys():
            raise RuntimeError(f"{self.tier} does not watch {unwatched}, or watches who is gone: {self.watched}")
        owned = sum(copy.extent.size_bytes for copy in self.copies.values())
        if owned != self._slab.used_bytes or len({c.extent for c in self.copies.values()}) != len(self.copies):
            raise RuntimeError(f"copies in {self.tier} own {owned} bytes but {self._slab.used_bytes} are taken")


def _number(copy: Copy) -> int:
    return copy.number


def _unfinished(device: Device, chain: list[Event]) -> list[Event]:
    """The unfinished events of a chain, in which each waits for its predecessor."""
    # A failure in the tier below can fail the last event while an earlier one still reads; then check every event.
    if not device.done(chain[-1]):
        return chain
    return [] if device.failure(chain[-1]) is None else [event for event in chain if not device.done(event)]


def _retire_arrivals(device: Device, copy: Copy) -> Event | None:
    """Retire finished arrivals; doom the copy as soon as one is known to have failed.

    Returns the last arrival if this poll is the one that found it finished, which ends the load; else None.
    """
    # Checking the last event first keeps a poll cheap. A failure in the tier below can fail it while an earlier one
    # still writes; then check every event.
    last = copy.writers[-1]
    if not device.done(last):
        return None
    ready = last if copy.arrivals[-1:] == [last] else None
    if device.failure(last) is None:
        copy.arrivals, copy.writers = [], []
        return ready
    copy.writers = [event for event in copy.writers if not device.done(event)]
    finished = [event for event in copy.arrivals if event not in copy.writers]
    if any(device.failure(event) is not None for event in finished):
        copy.has_failed = copy.is_doomed = True
    if not copy.writers:
        copy.arrivals = []
    return ready

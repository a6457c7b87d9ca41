r"""The ledger of one tier: its slab, the copies of experts in it, and which of them are loading, read or doomed.

        admit -> loading -> there -> drop            doomed (its load failed, or it was told to go): dropped by the poll
                    \________/ \--> doomed           that finds none of its events pending

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
"""(expert_id, failure) of a load that is over; None: every range arrived, though the copy may have been told to go."""


@dataclass(slots=True, eq=False)
class Copy:
    """An expert's bytes in one tier.

    `arrivals`: one event per range (with `early` rows in the order of fetch_layout), until a poll has seen all of them
    finish; `writers`: those not finished as of the last poll; `readers`: unfinished events of programs that read it;
    `copied`: of each copy into the tier above that is under way, its events in order, each waiting for the one before.
    `gates`: what these arrivals open, once somebody asked for that.
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
        """Unfinished events to wait for; the last of those that wait for each other stands for all."""
        return (*self.writers[-1:], *[chain[-1] for chain in self.copied], *self.readers)


@dataclass(slots=True)
class Changes:
    """A count that several write, so that who asks every step whether anything changed looks at one number."""

    count: int = 0


class TierLedger:
    """Owns a tier's slab and says who is in it, which changes by admit, drop, doom and poll only.

    `changes` counts what changed who is there or under way, in all tiers of a cache together. `watched`: whose events
    must be looked at, because something reads or writes them; who issues such work adds to it.
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
        """Bytes that extents may take in all."""
        return self._slab.size_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes that extents take now."""
        return self._slab.used_bytes

    @property
    def holes(self) -> tuple[Buffer, ...]:
        """The pieces in which no expert is, nor is about to be."""
        return tuple([self._buffer.view(hole.offset, hole.size_bytes) for hole in self._slab.holes])

    @property
    def largest_hole(self) -> int:
        """Bytes of the largest expert that fits without an eviction."""
        return self._slab.largest_hole

    def admit(self, expert_id: str, layout: Layout, at: int | None = None) -> Copy:
        """Take an extent for an expert, at this offset where one is given; its bytes are the caller's to bring.

        Raises SlabFullError: this is where capacity is checked again, whatever a policy promised.
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
        """Say that a reader of a copy is finished: then there is one event less to be looked at."""
        copy = self.copies.get(expert_id)
        if copy is not None and event in copy.readers:
            copy.readers.remove(event)
            if not (copy.readers or copy.writers or copy.copied or copy.is_doomed):
                self.watched.discard(expert_id)

    def pending(self) -> list[Event]:
        """The pending events of all copies, in the order in which these were admitted."""
        found = [self.copies[name] for name in self.watched]
        if len(found) > 1:
            found.sort(key=_number)
        return [event for copy in found for event in copy.pending]

    def doom(self, expert_id: str) -> Copy:
        """Tell a copy to go: at the poll that finds it idle, unless it is dropped before."""
        copy = self.copies[expert_id]
        copy.is_doomed = True
        self.changes.count += 1
        self.watched.add(expert_id)
        return copy

    def drop(self, expert_id: str) -> None:
        """Give an expert's extent back. Raises RuntimeError while it is busy: bytes in use are never handed on."""
        copy = self.copies[expert_id]
        if copy.is_busy:
            raise RuntimeError(f"{expert_id} in {self.tier} is dropped while {copy.pending} are pending")
        del self.copies[expert_id]
        self.watched.discard(expert_id)
        self.changes.count += 1
        self._slab.free(copy.extent)

    def poll(self, device: Device, on_drop: Callable[[str, str, bool], None]) -> tuple[Ended, ...]:
        """Retire finished events; return the loads that this look saw end, each once.

        Tells `on_drop(expert_id, tier, load failed)` of each doomed copy that went.
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
        """Raise RuntimeError unless free + used == total and every copy has exactly its own extent."""
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
    """What is left of events that wait for each other."""
    # The last one may fail, because something below did, while an earlier one still reads; so then ask them all.
    if not device.done(chain[-1]):
        return chain
    return [] if device.failure(chain[-1]) is None else [event for event in chain if not device.done(event)]


def _retire_arrivals(device: Device, copy: Copy) -> Event | None:
    """Forget arrivals that are finished, and doom the copy as soon as one is known to have failed.

    Returns the last arrival when it is this look that found it finished: then the load is over.
    """
    # Asking the last one first keeps a poll cheap. It may fail, because a range below did, while an earlier one still
    # writes; so then ask them all.
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

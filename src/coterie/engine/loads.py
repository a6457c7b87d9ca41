"""Loads: which experts are loading, how much of them has arrived, and how long they took.

    absent --start--> arriving -> started (first stage there) -> ready           a failed load: absent again

Knows nothing about requests or schedules; the cache decides what is evicted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType

from coterie.core.errors import CapacityError, CoterieError, DeviceError
from coterie.device import Device, Event, wait_for
from coterie.engine.served import ServedExpert
from coterie.engine.view import Residence
from coterie.memory.residency import Residency
from coterie.memory.slab import round_up
from coterie.memory.split import Cache, side_of
from coterie.memory.victims import NO_EXPERTS, Busy

NO_FAILURES: Mapping[str, CoterieError] = MappingProxyType({})


@dataclass(slots=True)
class Load:
    """One expert's load into the run tier: wanted at `want_s`, complete at `ready_s` (None: not yet), device clock."""

    residency: Residency
    want_s: float
    first: Event
    ready: Event
    ready_s: float | None = None

    def completion_s(self, device: Device) -> float | None:
        """When it was complete, or None if it is not."""
        if self.ready_s is None and device.done(self.ready):
            self.ready_s = device.span(self.ready).end_s
        return self.ready_s


class Loads:
    """Requests experts from the cache and follows their loads. Completion is noticed only in `poll`."""

    def __init__(self, device: Device, cache: Cache, experts: Mapping[str, ServedExpert]) -> None:
        self._device, self._cache, self._experts = device, cache, experts
        self._under_way: dict[str, Load] = {}
        self._started: set[str] = set()
        self._resident = cache.residents
        self._changes = -1
        self._refused: tuple[object, ...] | None = None  # the last question, if it was refused
        self.residence_version = 0  # incremented whenever an expert's residence may have changed
        self._changed: set[str] = set()
        self._residencies: dict[str, Residency] = {}
        self._durations_s: list[tuple[str, float]] = []
        self.latest: dict[str, Load] = {}

    def poll(self) -> Mapping[str, CoterieError]:
        """Notice what has finished since the last poll; returns the experts whose load failed, and why."""
        # Only the cache detects completion: if it saw a load as over and we did not, we would start it a second time.
        ended = self._cache.poll()
        if not (ended or self._under_way) and self._cache.changes == self._changes:
            return NO_FAILURES
        failed: dict[str, CoterieError] = {}
        for expert_id, failure in ended:
            if expert_id in self._under_way:
                self._residence_changed(expert_id)
                self._finish(expert_id, failure)
                if failure is not None:
                    failed[expert_id] = as_error(expert_id, failure)
        for expert_id, load in self._under_way.items():
            if expert_id in self._started or not self._device.done(load.first):
                continue
            if self._device.failure(load.first) is None:
                self._started.add(expert_id)
                self._residence_changed(expert_id)
        self._refresh()
        return failed

    def start(self, expert_id: str, keep: Set[str], spare: Set[str], rows: Collection[int] = ()) -> Residency | None:
        """Start a load that evicts none of `keep`, and none of `spare` if that can be avoided. None: no room now.

        `rows` of its embedding are needed first. Raises CapacityError if there will never be room.
        """
        self._refused = None
        try:
            for stay in (keep | spare, keep):
                try:
                    return self._join(expert_id, stay, rows)
                except Busy:
                    continue
                except CapacityError:
                    if not stay:
                        raise
            self._refused = self._question(expert_id, keep, spare)
            return None
        finally:
            self._refresh()

    def would_refuse(self, expert_id: str, keep: Set[str], spare: Set[str]) -> bool:
        """Whether exactly this was refused last and nothing has changed since, so that it would be refused again."""
        return self._refused is not None and self._refused == self._question(expert_id, keep, spare)

    def shortage_error(self, expert_id: str, where: str) -> CapacityError | None:
        """The error if an absent expert does not fit next to what is resident; `where`: what needs it.

        None if room is only a matter of time: an evicted copy of it is still being written.
        """
        ledgers, need = side_of(self._cache, expert_id).ledgers, round_up(self._experts[expert_id].layout.size_bytes)
        option = {ledger.tier: "--pool" if place else "--near" for place, ledger in enumerate(ledgers)}
        lacking = [one for one in ledgers if expert_id not in one.copies and one.largest_hole < need]
        if not lacking:
            return None
        full = min(lacking, key=lambda one: one.largest_hole)
        enough = full.capacity_bytes + need - full.largest_hole
        levers = (f"set {option[full.tier]} to at least {enough} B", "unload an expert", f"load and pin {expert_id}")
        return CapacityError(where, f"{expert_id}, beside whom {full.tier} holds,", need, full.largest_hole, levers)

    def _question(self, expert_id: str, keep: Set[str], spare: Set[str]) -> tuple[object, ...]:
        pending = tuple(event.event_id for event in self._cache.pending())
        return (expert_id, keep, spare, self._cache.changes, pending)

    def residency(self, expert_id: str) -> Residency:
        """Where a resident expert is, and the gates that its run must await."""
        if expert_id not in self._residencies:
            self._join(expert_id)
        return self._residencies[expert_id]

    def forget(self, expert_id: str) -> None:
        """Drop all state of an expert that is in no memory."""
        self._residencies.pop(expert_id, None)
        self.latest.pop(expert_id, None)

    def touch(self, requests: Mapping[str, int]) -> None:
        """Report new requests for these resident experts to the cache."""
        for expert_id, count in requests.items():
            self._join(expert_id, uses=count)

    def residence(self, expert_id: str) -> Residence:
        """How much of the expert is in the run tier, as of the last poll."""
        if expert_id in self._under_way:
            return Residence.STARTED if expert_id in self._started else Residence.ARRIVING
        return Residence.READY if expert_id in self._resident else Residence.ABSENT

    def take_changed(self) -> Collection[str]:
        """The experts whose residence may have changed since the last call."""
        if not self._changed:
            return ()
        taken, self._changed = self._changed, set()
        return taken

    def take_durations(self) -> Sequence[tuple[str, float]]:
        """Loads that ended since the last call: the expert, and seconds from want to ready."""
        if not self._durations_s:
            return ()
        taken, self._durations_s = self._durations_s, []
        return taken

    def wait_out(self, expert_id: str) -> None:
        """Wait until an expert's load, if any, ends: after a failed gate the rest of it fails at once."""
        load = self._under_way.get(expert_id)
        if load is not None:
            wait_for(self._device, load.ready)

    @property
    def resident(self) -> frozenset[str]:
        """The experts resident or loading, as of the last poll."""
        return self._resident

    @property
    def under_way(self) -> int:
        """How many loads are unfinished."""
        return len(self._under_way)

    def awaited_events(self) -> list[Event]:
        """What to wait for when nothing can run: the next event of each load, and those that block the cache."""
        pending = self._cache.pending()
        if not self._under_way:
            return list(pending)
        # A failed first stage counts as done although the load is not: waiting for it again would never block.
        nexts = [load.ready if self._device.done(load.first) else load.first for load in self._under_way.values()]
        return list({event.event_id: event for event in (*nexts, *pending)}.values())

    def _join(
        self, expert_id: str, protected: Set[str] = NO_EXPERTS, rows: Collection[int] = (), uses: int = 0
    ) -> Residency:
        want_s = self._device.now()  # before issuing the transfers, whose time is a part of the wait
        residency = self._cache.want(expert_id, self._experts[expert_id].layout, rows, protected, uses)
        self._residencies[expert_id] = residency
        first, ready = residency.first, residency.ready
        if first is not None and ready is not None and expert_id not in self._under_way:
            load = Load(residency, want_s, first, ready)
            self._under_way[expert_id] = self.latest[expert_id] = load
            self._residence_changed(expert_id)
        return residency

    def _residence_changed(self, expert_id: str) -> None:
        self.residence_version += 1
        self._changed.add(expert_id)

    def _finish(self, expert_id: str, failure: Exception | None) -> None:
        load = self._under_way.pop(expert_id)
        self._started.discard(expert_id)
        self._residencies.pop(expert_id, None)
        if failure is not None:
            del self.latest[expert_id]
            return
        ready_s = load.completion_s(self._device)
        self._durations_s += [] if ready_s is None else [(expert_id, ready_s - load.want_s)]

    def _refresh(self) -> None:
        """Notice evictions, and loads started by others (a preload, say)."""
        if self._cache.changes == self._changes:
            return
        self._changes = self._cache.changes
        self.residence_version += 1
        before, self._resident = self._resident, self._cache.residents
        self._changed |= before ^ self._resident
        for gone in before - self._resident:
            self._residencies.pop(gone, None)
        for expert_id in self._cache.loading():
            if expert_id not in self._under_way and expert_id in self._experts:
                self._join(expert_id)


def as_error(expert_id: str, failure: Exception) -> CoterieError:
    """A device's failure as a presentable error that names the expert it was working for."""
    if type(failure) is DeviceError and failure.where != expert_id:
        return DeviceError(expert_id, f"{failure.fact} ({failure.where})", failure.remedy)
    if isinstance(failure, CoterieError):
        return failure
    return DeviceError(expert_id, f"the device failed: {failure!r}")

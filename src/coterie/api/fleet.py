"""Fleet: a composition on several devices, behind one endpoint.

    query -> ready, once -> place (engine/placement.py) -> a member's thread: its Coterie, engine, cache, KV, device
                              board: state, news <-------'

Configs, tokenizers and the router are opened once; memory and programs exist per device.
Knows nothing about HTTP or the command line.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from coterie.api.assemble import Options, each_device
from coterie.api.board import Board
from coterie.api.coterie import Coterie
from coterie.api.fleet_experts import FleetExperts
from coterie.api.fleet_watch import FleetWatch
from coterie.api.flight import Flight
from coterie.api.member import Member, all_of, known_of, names_of
from coterie.api.opened import MemberSetup, open_all, planned_on_each
from coterie.api.placing import Placing
from coterie.api.ready import Experts, Ready, prepared, route_that_fits
from coterie.api.rescan import Look, Rescan
from coterie.api.routings import begin_routing
from coterie.api.same_files import seen_by, serving
from coterie.api.serving import WAIT_S, Serving, Since
from coterie.api.status import Status
from coterie.api.together import together
from coterie.api.types import Chunk, Query
from coterie.api.watch import Sink
from coterie.composition.composition import Composition, load_composition
from coterie.composition.router import Route
from coterie.composition.routing import Pending
from coterie.core.errors import ClosedError, ContextError, CoterieError, CrowdedError
from coterie.core.trace import Trace
from coterie.engine.admission import check_room_among, places_among


class Fleet(FleetExperts, Serving):
    """Owns several devices, each with a Coterie that is stepped by its own thread. Thread-safe.

    `composition`, `models`, `texts` and `routing` are those of the first working device; a device on which a rescan
    could not renew an expert is not asked for that expert. A device that breaks gets no more requests; its queries are
    retried once on another one, unless part of an answer was returned. If none is left, `step` raises the first one's
    error. It closes when it is garbage collected, and at interpreter exit.
    """

    watch: FleetWatch
    steps_itself = True

    def __init__(self, composition: Composition, options: Options) -> None:
        """Open every expert once and reserve memory on each of `options.devices`. Raises CoterieError."""
        self._options, each = options, each_device(options)
        opened, plans = planned_on_each(open_all(composition, each[0]), each)
        self._board, self._numbers = Board(Placing(options.reuse)), itertools.count()
        names = self.names = names_of(options.devices)
        try:
            for number, (device_options, made) in enumerate(zip(each, plans, strict=True)):
                taught = self._board.members[0].coterie.routing if number else None
                coterie = Coterie(opened.composition, device_options, MemberSetup(opened, made, self._numbers, taught))
                self._board.join(Member(number, names[number], coterie, self._board))
        except BaseException:
            _stop(self._board.members)
            raise
        self._members = self._board.members
        self._close = weakref.finalize(self, _stop, self._members)
        self._follow(self._members[0])
        self._unpinned, self._on_repin = {}, []
        self._board.on_break.append(self._keep_pins)
        self.watch = FleetWatch(self._board)
        for member in self._members:
            member.start()

    @classmethod
    def open(cls, ref: str | Path, options: Options, leave_out: bool = False) -> Fleet:
        """As Coterie.open, on all of `options.devices`."""
        return cls(load_composition(ref, leave_out), options)

    @property
    def members(self) -> tuple[Coterie, ...]:
        """The Coteries, in the order of the devices. Only their own threads may step them."""
        return tuple([member.coterie for member in self._members])

    @property
    def idle(self) -> bool:
        """True if nothing is queued or running, and every chunk has been returned."""
        return self._board.idle

    @property
    def quiet(self) -> bool:
        """True if it is idle and no expert is being loaded; never if no device is left: `step` then raises why."""
        return self._board.quiet and self._board.ended is None

    @property
    def broken(self) -> dict[str, CoterieError]:
        """The devices that have stopped for good, with the errors."""
        return {member.name: member.broken for member in self._members if member.broken is not None}

    @property
    def avoided(self) -> dict[str, CoterieError]:
        """The devices asked only if no other can be, because they hang or fail what others answer, with the errors."""
        with self._board.lock:
            self._board.look()
            return self._board.avoiding.reasons()

    def on_avoid(self, callback: Callable[[str, CoterieError | None], None]) -> None:
        """Register a callback for devices that become avoided, with the reason; or, with None, no longer are."""
        self._board.avoiding.on_change.append(lambda member, error: callback(member.name, error))

    def on_break(self, callback: Callable[[str, CoterieError, BaseException], None]) -> None:
        """Register a callback for a device that breaks. It runs in the device's thread and must return at once."""
        self._board.on_break.append(lambda member, error, cause: callback(member.name, error, cause))

    def route(self, query: Query) -> Route:
        """The router's decision for a query. A model that the router asks runs on the device where that costs least."""
        pending = self._begin(query)
        route = self._asked_for(query, pending) if pending.asks else self.routing.finish(pending)
        if pending.route is not None:
            return route
        return route_that_fits(query, pending.prompt, route, self.routing.others, self._experts)[0]

    def ready(self, query: Query) -> Ready:
        """Prepare a query for the engine, in any thread."""
        try:
            return prepared(query, self._begin(query), self.routing, self._experts)
        except ContextError as error:
            self.watch.refused(f"{next(self._numbers):08x}", error)
            raise

    def submit(self, query: Query | Ready, more: int = 0) -> str:
        """Place a query and return its id. If a device's engine refuses it later, the last chunk has the error."""
        if isinstance(query, Query):
            self._check_room(query, more)  # before any work: it may be refused
            query = self.ready(query)
        ready = query if query.is_current(self.texts, self.composition.names) else self.ready(query.query)
        able = self._able(ready)
        with self._board.lock:
            self._check_room(ready.query, more)
            self._board.look()
            request_id = f"{next(self._numbers):08x}"
            ids = ready.request.prompt_ids if ready.request is not None and ready.request.reuse else ()
            member = self._board.placing.place(ready.expert, ids, able)
            self._board.begin(request_id, Flight(member, ready.expert, ready, able))
        return request_id

    def places(self, client: str = "") -> int | None:
        """How many more queries a client may queue now, over all devices."""
        self._check_open()
        max_waiting = self._options.max_waiting
        with self._board.lock:
            return None if max_waiting is None else places_among(*self._board.waiting(client), client, max_waiting)

    def step(self, within_s: float | None = None) -> list[Chunk]:
        """The new chunks of each query. The devices step themselves; waits for any of them, up to `within_s` seconds.

        Raises ClosedError, and, if no device is left and all chunks were returned, the error they stopped with.
        """
        self._check_open(answers=False)
        return self._left(self._board.take(WAIT_S if within_s is None else within_s))

    def interrupt(self) -> None:
        """Make a waiting `step` return. Any thread may call it."""
        self._board.wake()

    def cancel(self, request_id: str) -> None:
        """Stop a query; the finish reason of its last chunk is `cancelled`."""
        self._board.cancel(request_id)

    def abandon(self, request_ids: Sequence[str]) -> None:
        """Stop these queries and discard their remaining chunks."""
        self._board.abandon(request_ids)

    def resident(self) -> tuple[str, ...]:
        """Experts in the run tier of any device."""
        self._check_open()
        return tuple(dict.fromkeys([name for each in all_of(self._members, Coterie.resident) for name in each]))

    def status(self) -> Status:
        """All devices as one, and each (`devices`), between its own steps; last known during a long one (`late`)."""
        self._check_open()
        return self._together(*known_of(self._members))

    def next_turns(self) -> list[Future[None]]:
        """For each working device a future that is done when it has taken a turn."""
        return [member.post(lambda _: None) for member in self._members if member.broken is None]

    def observe(self, sink: Sink, since: Since) -> tuple[Status, list[dict[str, Any]]]:
        """Report events to `sink` from now on; returns the status, and the residents of each tier of each device."""
        self._check_open()
        found, late, residents = self.watch.observe(sink, since)
        return self._together(found, late), residents

    def look_again(self) -> Look:
        """What has changed in the file or folder, opened once, in any thread."""
        self._check_open()
        return self._lead.coterie.look_again()

    def rescan(self, looked: Look | None = None) -> Rescan:
        """Serve what `look_again` found, on every device.

        First on the one that looked, then on the others, with any differences left by earlier rescans. `kept` includes
        experts that stay as they are on any device.
        """
        self._check_open()
        looked, lead = looked or self.look_again(), self._lead
        found = lead.call(lambda coterie: coterie.rescan(looked))
        others = [member for member in self._members if member is not lead]
        each = all_of(others, lambda coterie: coterie.rescan(seen_by(coterie, looked, lead.coterie)))
        self._follow(lead)
        kept = {name: why for other in each for name, why in (*other.kept.items(), *other.left_out.items())}
        mine = {name: why for name, why in kept.items() if name not in found.left_out}
        return replace(found, kept={**mine, **found.kept})

    def release_idle(self) -> int:
        """On each device, unload all that is not pinned and free its memory; returns the bytes. 0 if not quiet."""
        self._check_open()
        return sum(all_of(self._members, Coterie.release_idle)) if self.quiet else 0

    def trace(self) -> Trace:
        """What ran when, as far as it was recorded; each lane is named with its device."""
        traces = [
            member.coterie.trace() if member.broken is not None else member.call(Coterie.trace)
            for member in self._members  # stopped members have no thread to call
        ]
        named = list(zip(self.names, traces, strict=True))
        slices = [replace(one, lane=f"{name} {one.lane}") for name, trace in named for one in trace.slices]
        asyncs = [replace(one, key=f"{name} {one.key}") for name, trace in named for one in trace.asyncs]
        return Trace(slices, asyncs, traces[0].notes)

    def close(self) -> None:
        """Stop all devices and free their memory. Later calls, and those in progress, raise ClosedError."""
        self._close()
        self._board.wake()

    def _advance_for(self, wanted: set[str]) -> list[Chunk]:
        """News of these queries; those of others are kept."""
        self._check_open(answers=False)
        return self._left(self._board.take(WAIT_S, wanted))

    def _has_more(self, request_id: str) -> bool:
        return self._board.has_more(request_id)

    def _begin(self, query: Query) -> Pending:
        return begin_routing(self.routing, query, self.texts, self._residents)

    def _asked_for(self, query: Query, pending: Pending) -> Route:
        """The route by a model's answer, run on the device where that costs least. Also raises if that device hangs."""
        request_id = f"{next(self._numbers):08x}"
        with self._board.lock:
            member = self._board.placing.cheapest(pending.asks[0].expert)
        member.wait(member.post(lambda coterie: coterie.routings.begin(request_id, pending, query)))
        try:
            while not member.wait(member.post(lambda coterie: coterie.routings.done(request_id))):
                pass  # once per step
            return member.wait(member.post(lambda coterie: coterie.routings.route(request_id)))
        finally:
            member.post(lambda coterie: coterie.routings.drop(request_id))

    def _residents(self) -> frozenset[str]:
        return frozenset().union(*[member.snapshot.residents for member in self._members if member.broken is None])

    def _follow(self, lead: Member) -> None:
        """Adopt this member's models, texts and routing."""
        self._lead, coterie = lead, lead.coterie
        self.models, self.texts = coterie.models, coterie.texts
        self.composition, self.routing = coterie.composition, coterie.routing
        self._experts = Experts(self.texts, self.models, coterie.parts.kv.tokens_held)

    def _together(self, found: Sequence[tuple[Member, Status]], late: Mapping[str, float]) -> Status:
        if not found:  # all have stopped meanwhile
            self._check_open()
        broken, avoided = ({name: str(why) for name, why in each.items()} for each in (self.broken, self.avoided))
        unpinned = {name: str(error) for name, error in tuple(self._unpinned.items())}
        names, each = [member.name for member, _ in found], [status for _, status in found]
        return replace(together(names, each), broken=broken, avoided=avoided, late=late, unpinned=unpinned)

    def _left(self, chunks: list[Chunk]) -> list[Chunk]:
        if not chunks and (ended := self._board.ended) is not None:
            raise ended
        return chunks

    def _able(self, ready: Ready) -> list[Member] | None:
        """The members that can answer; None: any, as the expert is not known yet. Raises an error if none can."""
        self._check_open()
        if ready.request is None:
            return None
        able, refused = [], list[CoterieError]()
        for member in serving(self._members, self._lead.coterie, ready.request.expert_id):
            try:
                member.coterie.check(ready)
            except CoterieError as error:
                refused.append(error)
            else:
                able.append(member)
        if refused and not able:
            self.watch.refused(f"{next(self._numbers):08x}", refused[0], ready.request.expert_id)
            raise refused[0]
        return able

    def _check_room(self, query: Query, more: int) -> None:
        """Raise what `_check_open` does, or CrowdedError if too many wait; the first device's metrics count it."""
        self._check_open()
        if (max_waiting := self._options.max_waiting) is None:
            return
        with self._board.lock:
            try:
                check_room_among(*self._board.waiting(query.client), query.client, max_waiting, 1 + more)
            except CrowdedError:
                self._lead.coterie.parts.engine.metrics.refused += 1 + more  # only changed here
                raise

    def _check_open(self, answers: bool = True) -> None:
        """Raise ClosedError; with `answers`, also the devices' error if none is left."""
        if not self._close.alive:
            fact = "this Fleet is closed"
            raise ClosedError(self.composition.name, fact, "use it inside its with block, or open it again")
        if answers and (ended := self._board.ended) is not None:
            raise ended
        if self._lead.broken is not None:
            self._follow(next((one for one in self._members if one.broken is None), self._lead))


def opened_on(ref: str | Path, options: Options, leave_out: bool = False) -> Serving:
    """A composition on the device, or the several devices, that the options name. Raises CoterieError."""
    return Fleet.open(ref, options, leave_out) if options.beside else Coterie.open(ref, options, leave_out)


def _stop(members: Sequence[Member]) -> None:
    for member in members:  # signal all before waiting for any, so that their last steps end together
        member.end()
    for member in members:
        with suppress(ClosedError):
            member.stop()

"""Board: which member of a fleet has which query, what came of it, and where the next one goes.

    place -> Flight --> member --chunks--> news --take--> the caller        one lock, never held during a step
               ^----------- member breaks, or fails it: retried once, if it has no chunk yet

Each placed query ends exactly once: by its last chunk, by its device's failure, or because its caller has left.
Knows nothing about threads but that there are several.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from coterie.api.avoiding import Avoiding
from coterie.api.coterie import Coterie
from coterie.api.flight import Failure, Flight
from coterie.api.member import Member, ended_with, loading
from coterie.api.placing import Placing
from coterie.api.ready import Ready
from coterie.api.same_files import serving
from coterie.api.types import Chunk
from coterie.core.errors import CoterieError, DeviceError
from coterie.engine.expert_control import LoadCallback

GIVEN_UP = 10  # multiple of the time after which a step counts as hanging: started queries are ended then

BreakCallback: TypeAlias = Callable[[Member, CoterieError, BaseException], None]
"""Called with a member that has stopped for good, the error and its cause; on its thread, under the lock."""
MoveCallback: TypeAlias = Callable[[str, Flight, Member], None]
"""Called with the id of a query that moves to another member, its flight, and the former member; under the lock."""


@dataclass(slots=True)
class Board:
    """The state of a fleet, under `lock`, on which `step` waits for news.

    `placing`: chooses members. `flights`: by id, in order of arrival. `loads`: the member of each load requested and
    not yet reported. `on_break`: callbacks for members that break, `on_move`: for queries that change members.
    """

    placing: Placing = field(default_factory=Placing)
    flights: dict[str, Flight] = field(default_factory=dict)
    loads: dict[LoadCallback, Member] = field(default_factory=dict)
    lock: threading.Condition = field(default_factory=threading.Condition)
    on_break: list[BreakCallback] = field(default_factory=list)
    on_move: list[MoveCallback] = field(default_factory=list)
    _news: list[Chunk] = field(default_factory=list)
    _finished_loads: list[tuple[LoadCallback, CoterieError | None]] = field(default_factory=list)
    _woken: bool = False

    def join(self, member: Member) -> None:
        """Add a member, before any query."""
        self.placing.join(member)
        member.coterie.hand_over = self.hand_over

    @property
    def members(self) -> tuple[Member, ...]:
        """All members."""
        return self.placing.members

    @property
    def avoiding(self) -> Avoiding:
        """Which members are asked last."""
        return self.placing.avoiding

    @property
    def ended(self) -> CoterieError | None:
        """If all members have stopped, the first one's error."""
        return ended_with(self.members)

    # ---- queries

    def begin(self, request_id: str, flight: Flight) -> None:
        """Hand a query to its member. If it is refused there, the error is its last chunk."""
        ready, flight.asked_s = flight.ready, flight.member.now()
        self.flights[request_id] = flight
        self._count(flight, 1)
        self._watch(flight.member.post(lambda coterie: coterie.take(ready, request_id)), flight.member, request_id)

    def hand_over(self, request_id: str, ready: Ready, asked_s: float) -> bool:
        """Place a query again, now that its member has run the router's model; returns whether another takes over.

        `asked_s`: seconds since it was asked. Called on the first member's thread.
        """
        with self.lock:
            flight = self.flights.get(request_id)
            if flight is None or flight.cancelled or flight.retried or ready.request is None:
                return False  # a retry stays: the other member has failed it
            expert, was = ready.request.expert_id, flight.member
            ids = ready.request.prompt_ids if ready.request.reuse else ()
            self._count(flight, -1)
            flight.member = self.placing.place(expert, ids, [was, *serving(self.members, was.coterie, expert)])
            flight.expert = expert
            self._count(flight, 1)
            if flight.member is not was:
                self._pass_on(request_id, flight, lambda _: ready, asked_s)
            return flight.member is not was

    def _ask_again(self, end: Chunk, failure: Failure | None = None) -> None:
        """Retry a query whose member has broken or failed it, if it has no chunk yet and another member can serve it.

        Otherwise it ends with `end`. `failure`: the failed step, of a member that goes on.
        """
        flight = self.flights[end.request_id]
        if flight.blamed is not None:
            flight.blamed.counted = True  # a query that fails twice is at fault itself, or shared the step
        others = self._others(flight)
        if failure is not None:  # its error is more useful than waiting for a hanging step
            others = [one for one in others if not one.hangs()]
        if flight.begun or flight.cancelled or flight.retried:
            self._fail(end)
            return
        try:
            self._place_again(end.request_id, flight, others)
        except CoterieError:  # no member is left that could
            self._fail(end)
            return
        if type(end.error) is DeviceError:  # a TransferError is the fault of a file
            flight.blamed = failure

    def _place_again(self, request_id: str, flight: Flight, others: Collection[Member]) -> None:
        """Retry a query without output on one of the others. Raises what `place` does, and then changes nothing."""
        expert, request, was = flight.ready.expert, flight.ready.request, flight.member
        self._count(flight, -1)
        try:
            flight.member = self.placing.place(expert, request.prompt_ids if request and request.reuse else (), others)
            flight.expert, flight.retried = expert, True
        finally:
            self._count(flight, 1)
        query = flight.ready.query  # prepared again: its detokenizer may have consumed tokens
        for callback in self.on_move:  # before the new one's own events
            callback(request_id, flight, was)
        self._pass_on(request_id, flight, lambda coterie: coterie.ready(query), was.now() - flight.asked_s)

    def _pass_on(self, request_id: str, flight: Flight, ready: Callable[[Coterie], Ready], asked_s: float) -> None:
        """Hand a query, asked `asked_s` ago, to its new member."""
        flight.asked_s = flight.member.now() - asked_s
        posted = flight.member.post(lambda coterie: coterie.take(ready(coterie), request_id, asked_s))
        self._watch(posted, flight.member, request_id)

    def cancel(self, request_id: str) -> None:
        """Stop a query; its last chunk says so."""
        with self.lock:
            flight = self.flights.get(request_id)
            if flight is not None:
                flight.cancelled = True
                flight.member.post(lambda coterie: coterie.cancel(request_id))

    def abandon(self, request_ids: Iterable[str]) -> None:
        """Stop these queries and discard their chunks."""
        gone = set(request_ids)
        with self.lock:
            self._news = [chunk for chunk in self._news if chunk.request_id not in gone]
            for request_id in gone & self.flights.keys():
                self._end(request_id).member.post(partial(_abandon, request_id))

    def deliver(self, member: Member, chunks: Sequence[Chunk]) -> None:
        """Take in the chunks of a member's step, ignoring those of queries it no longer has.

        Queries that it failed are retried on another member, or end.
        """
        with self.lock:
            failure = None
            for chunk in chunks:
                flight = self.flights.get(chunk.request_id)
                if flight is None or flight.member is not member:
                    continue
                if isinstance(chunk.error, DeviceError):
                    failure = failure or Failure(member, chunk.error)
                    self._ask_again(chunk, failure)
                    continue
                if chunk.error is None and (chunk.answer is None or chunk.answer.finish_reason != "cancelled"):
                    self._answered(flight)
                flight.begun = True
                self._news.append(chunk)
                if chunk.last:
                    self._end(chunk.request_id)
            self.lock.notify_all()

    def look(self) -> None:
        """Find members whose step hangs.

        Their queries without output move to a member that does not hang, if one can serve them, and their loads fail.
        Queries with output wait until the member is given up.
        """
        with self.lock:
            for member, error in self.avoiding.look(self.members):
                self._end_loads(member, error)
            for member in self.members:
                if member.broken is not None or not member.hangs():
                    continue
                for request_id in self._with(member):  # including those placed while all others were hanging
                    self._move(request_id)
                if not member.hangs(GIVEN_UP):
                    continue
                for request_id in self._with(member):
                    self._fail(Chunk(request_id, self.flights[request_id].expert, error=member.hung()))
                    member.post(partial(_abandon, request_id))

    def _move(self, request_id: str) -> None:
        """Retry a query of a hanging member on another one."""
        flight = self.flights[request_id]
        if flight.begun or flight.cancelled or flight.retried:
            return
        was, others = flight.member, [one for one in self._others(flight) if not one.hangs()]
        if not others:
            return
        with suppress(CoterieError):  # none can: it keeps waiting
            self._place_again(request_id, flight, others)
            was.post(partial(_abandon, request_id))

    def _others(self, flight: Flight) -> list[Member]:
        return [one for one in flight.able or self.members if one is not flight.member]

    def _with(self, member: Member) -> list[str]:
        return [request_id for request_id, flight in self.flights.items() if flight.member is member]

    def _answered(self, flight: Flight) -> None:
        """A query's member works, so a member that failed the query before was itself at fault."""
        self.avoiding.answered(flight.member)
        failure, flight.blamed = flight.blamed, None
        if failure is not None and not failure.counted:
            failure.counted = True
            self.avoiding.failed(failure.member, failure.error)

    def broke(self, member: Member, error: CoterieError, cause: BaseException) -> None:
        """A member has stopped: its queries without output are retried on another one, others end with the error."""
        with self.lock:
            for request_id in self._with(member):
                self._ask_again(Chunk(request_id, "", error=error))
            self._end_loads(member, error)
            for callback in self.on_break:
                callback(member, error, cause)
            self.lock.notify_all()

    def _watch(self, posted: Future[None], member: Member, request_id: str) -> None:
        """End a query if its member refuses it late; retry it if the member broke before taking it."""

        def look(future: Future[None]) -> None:
            error = future.exception()
            if not isinstance(error, CoterieError):
                return
            with self.lock:
                flight = self.flights.get(request_id)
                if flight is None or flight.member is not member:
                    return
                if error is member.broken and isinstance(error, DeviceError):  # not on a close
                    self._ask_again(Chunk(request_id, "", error=error))
                else:
                    self._fail(Chunk(request_id, "", error=error))
                self.lock.notify_all()

        posted.add_done_callback(look)

    def _fail(self, end: Chunk) -> None:
        self._end(end.request_id)
        self._news.append(end)

    def _end(self, request_id: str) -> Flight:
        flight = self.flights.pop(request_id)
        self._count(flight, -1)
        return flight

    def _count(self, flight: Flight, change: int) -> None:
        self.placing.count(flight.member, flight.expert, change)

    # ---- loads

    def load(self, expert: str, callback: LoadCallback, member: Member) -> None:
        """Have a member load an expert; `callback` is called by the thread that takes the news. Raises if refused."""

        def on_loaded(error: CoterieError | None) -> None:
            with self.lock:
                if self.loads.pop(on_loaded, None) is not None:
                    member.known.renew_soon()
                    self._finished_loads.append((callback, error))
                    self.lock.notify_all()

        with self.lock:
            self.loads[on_loaded] = member
        try:
            member.call(lambda coterie: coterie.load_soon(expert, on_loaded))
        except BaseException:
            with self.lock:
                self.loads.pop(on_loaded, None)
            raise

    def _end_loads(self, member: Member, error: CoterieError) -> None:
        for on_loaded in [on_loaded for on_loaded, its in self.loads.items() if its is member]:
            on_loaded(error)

    # ---- news

    @property
    def idle(self) -> bool:
        """True if no query is unfinished and all news have been taken."""
        with self.lock:
            return not (self.flights or self._news)

    @property
    def quiet(self) -> bool:
        """True if it is idle, no expert is being loaded, and no load is unreported."""
        with self.lock:
            return not (self.flights or self._news or self.loads or self._finished_loads or loading(self.members))

    def wake(self) -> None:
        """Make the present or the next wait for news return without any."""
        with self.lock:
            self._woken = True
            self.lock.notify_all()

    def take(self, within_s: float, wanted: Collection[str] | None = None) -> list[Chunk]:
        """The news of the `wanted` queries, or of all, in order; if there are none, those that arrive within a time.
        Also calls back for finished loads.
        """
        with self.lock:
            self.look()
            if not (self._has(wanted) or self._finished_loads or self._woken):
                self.lock.wait(within_s)
            self._woken = False
            chunks = [chunk for chunk in self._news if wanted is None or chunk.request_id in wanted]
            self._news = [] if wanted is None else [one for one in self._news if one.request_id not in wanted]
            finished, self._finished_loads = self._finished_loads, []
        for callback, error in finished:
            callback(error)
        return chunks

    def has_more(self, request_id: str) -> bool:
        """Whether chunks of a query will come or are kept."""
        with self.lock:
            return request_id in self.flights or self._has({request_id})

    def waiting(self, client: str) -> tuple[int, int]:
        """How many queries wait for their first chunk: of all clients, and of this one."""
        waits = [flight for flight in self.flights.values() if not (flight.begun or flight.cancelled)]
        return len(waits), sum([flight.ready.query.client == client for flight in waits]) if client else 0

    def _has(self, wanted: Collection[str] | None) -> bool:
        return any(wanted is None or chunk.request_id in wanted for chunk in self._news)


def _abandon(request_id: str, coterie: Coterie) -> None:
    coterie.abandon([request_id])

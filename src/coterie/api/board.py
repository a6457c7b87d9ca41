"""Board: who of a fleet has which query, what came of it, and where the next one goes.

    place -> Flight --> member --chunks--> news --take--> who asked         one lock; nobody waits here for a step
               ^----------- it breaks, or fails it: what has no chunk yet, once

Each query that was placed ends once: by its last chunk, by its device's failure, or because who asked has left.
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
from coterie.engine.expert_control import Told

GIVEN_UP = 10  # times as long as makes a step hang: then what has begun there ends too

Broke: TypeAlias = Callable[[Member, CoterieError, BaseException], None]
"""Told of a member that answers nothing any more, by which error and of what cause; on its thread, under the lock."""
Moved: TypeAlias = Callable[[str, Flight, Member], None]
"""Told of a query by its id that another member goes on with now, and which one it was; under the lock."""


@dataclass(slots=True)
class Board:
    """The accounts of a fleet, under `lock`, on which `step` waits for news.

    `placing`: who is asked next. `flights`: by id, in the order of their coming. `loads`: with whom is each that was
    asked for and not told of. `at_break`: who is told of members that break, `at_move`: of queries that change theirs.
    """

    placing: Placing = field(default_factory=Placing)
    flights: dict[str, Flight] = field(default_factory=dict)
    loads: dict[Told, Member] = field(default_factory=dict)
    lock: threading.Condition = field(default_factory=threading.Condition)
    at_break: list[Broke] = field(default_factory=list)
    at_move: list[Moved] = field(default_factory=list)
    _news: list[Chunk] = field(default_factory=list)
    _told: list[tuple[Told, CoterieError | None]] = field(default_factory=list)
    _woken: bool = False

    def join(self, member: Member) -> None:
        """One more, before any is asked."""
        self.placing.join(member)
        member.coterie.hand_over = self.hand_over

    @property
    def members(self) -> tuple[Member, ...]:
        """All that have joined."""
        return self.placing.members

    @property
    def avoiding(self) -> Avoiding:
        """Who is asked last."""
        return self.placing.avoiding

    @property
    def ended(self) -> CoterieError | None:
        """What the first member has ended with, where all have."""
        return ended_with(self.members)

    # ---- queries come, move and end

    def begin(self, request_id: str, flight: Flight) -> None:
        """Hand a query to its member. What refuses it there is its last chunk."""
        ready, flight.asked_s = flight.ready, flight.member.now()
        self.flights[request_id] = flight
        self._count(flight, 1)
        self._watch(flight.member.post(lambda coterie: coterie.take(ready, request_id)), flight.member, request_id)

    def hand_over(self, request_id: str, ready: Ready, asked_s: float) -> bool:
        """A query's router has been asked by one member, so long ago: whether another one goes on with it. On the
        first's thread.
        """
        with self.lock:
            flight = self.flights.get(request_id)
            if flight is None or flight.cancelled or flight.again or ready.request is None:
                return False  # who is asked again stays: the other one has failed it
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
        """The member that has a query has broken, or failed it: another one is asked it, if nothing came yet; else, and
        where nobody else could answer, it ends so. `failure`: that of the step, of a member that goes on.
        """
        flight = self.flights[end.request_id]
        if flight.blamed is not None:
            flight.blamed.counted = True  # who fails two is at fault itself, or was with it in the step
        others = self._others(flight)
        if failure is not None:  # its error says more than to wait for a step that may not come back
            others = [one for one in others if not one.hangs()]
        if flight.begun or flight.cancelled or flight.again:
            self._fail(end)
            return
        try:
            self._place_again(end.request_id, flight, others)
        except CoterieError:  # nobody is left, or nobody who could
            self._fail(end)
            return
        if type(end.error) is DeviceError:  # a TransferError is a file's fault
            flight.blamed = failure

    def _place_again(self, request_id: str, flight: Flight, others: Collection[Member]) -> None:
        """Have one of the others answer a query of which nothing came. Raises as `place`, and changes nothing then."""
        expert, request, was = flight.ready.expert, flight.ready.request, flight.member
        self._count(flight, -1)
        try:
            flight.member = self.placing.place(expert, request.prompt_ids if request and request.reuse else (), others)
            flight.expert, flight.again = expert, True
        finally:
            self._count(flight, 1)
        query = flight.ready.query  # made ready anew: what reads tokens may have read some
        for tell in self.at_move:  # before what the new one tells
            tell(request_id, flight, was)
        self._pass_on(request_id, flight, lambda coterie: coterie.ready(query), was.now() - flight.asked_s)

    def _pass_on(self, request_id: str, flight: Flight, ready: Callable[[Coterie], Ready], asked_s: float) -> None:
        """Hand a query that was asked so long ago to its new member."""
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
        """Stop these, and keep nothing more of them."""
        gone = set(request_ids)
        with self.lock:
            self._news = [chunk for chunk in self._news if chunk.request_id not in gone]
            for request_id in gone & self.flights.keys():
                self._end(request_id).member.post(partial(_abandon, request_id))

    def deliver(self, member: Member, chunks: Sequence[Chunk]) -> None:
        """What a member's step brought; of a query that is not with it any more, nothing. What it could not answer, as
        it failed, another one is asked.
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
        """See whose step does not come back. What such a member has of which nothing came goes on with another one, if
        one can that does not hang, and its loads end so. What has begun waits on, until it is given up.
        """
        with self.lock:
            for member, error in self.avoiding.look(self.members):
                self._end_loads(member, error)
            for member in self.members:
                if member.broken is not None or not member.hangs():
                    continue
                for request_id in self._with(member):  # also of those that found all others hanging, when it came
                    self._move(request_id)
                if not member.hangs(GIVEN_UP):
                    continue
                for request_id in self._with(member):
                    self._fail(Chunk(request_id, self.flights[request_id].expert, error=member.hung()))
                    member.post(partial(_abandon, request_id))

    def _move(self, request_id: str) -> None:
        """Ask another member than the one that has a query and hangs."""
        flight = self.flights[request_id]
        if flight.begun or flight.cancelled or flight.again:
            return
        was, others = flight.member, [one for one in self._others(flight) if not one.hangs()]
        if not others:
            return
        with suppress(CoterieError):  # none of them can: it waits on
            self._place_again(request_id, flight, others)
            was.post(partial(_abandon, request_id))

    def _others(self, flight: Flight) -> list[Member]:
        return [one for one in flight.able or self.members if one is not flight.member]

    def _with(self, member: Member) -> list[str]:
        return [request_id for request_id, flight in self.flights.items() if flight.member is member]

    def _answered(self, flight: Flight) -> None:
        """A query's member works; so whoever failed it before was at fault, and not the query."""
        self.avoiding.answered(flight.member)
        failure, flight.blamed = flight.blamed, None
        if failure is not None and not failure.counted:
            failure.counted = True
            self.avoiding.failed(failure.member, failure.error)

    def broke(self, member: Member, error: CoterieError, cause: BaseException) -> None:
        """What a member had goes on with another one, if nothing came of it yet, or else ends with this error."""
        with self.lock:
            for request_id in self._with(member):
                self._ask_again(Chunk(request_id, "", error=error))
            self._end_loads(member, error)
            for tell in self.at_break:
                tell(member, error, cause)
            self.lock.notify_all()

    def _watch(self, posted: Future[None], member: Member, request_id: str) -> None:
        """End a query whose member refuses it late, or has broken before it came."""

        def look(future: Future[None]) -> None:
            error = future.exception()
            if not isinstance(error, CoterieError):
                return
            with self.lock:
                flight = self.flights.get(request_id)
                if flight is None or flight.member is not member:
                    return
                if error is member.broken and isinstance(error, DeviceError):  # and not that it was closed
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

    def load(self, expert: str, tell: Told, member: Member) -> None:
        """Have an expert brought in by one; `tell` is called by who takes the news. Raises what refuses it."""

        def told(error: CoterieError | None) -> None:
            with self.lock:
                if self.loads.pop(told, None) is not None:
                    member.known.renew_soon()
                    self._told.append((tell, error))
                    self.lock.notify_all()

        with self.lock:
            self.loads[told] = member
        try:
            member.call(lambda coterie: coterie.load_soon(expert, told))
        except BaseException:
            with self.lock:
                self.loads.pop(told, None)
            raise

    def _end_loads(self, member: Member, error: CoterieError) -> None:
        for told in [told for told, its in self.loads.items() if its is member]:
            told(error)

    # ---- news

    @property
    def idle(self) -> bool:
        """True when nobody waits for anything, and all news were taken."""
        with self.lock:
            return not (self.flights or self._news)

    @property
    def quiet(self) -> bool:
        """True when it is idle and no expert is being loaded, or is there and not told of."""
        with self.lock:
            return not (self.flights or self._news or self.loads or self._told or loading(self.members))

    def wake(self) -> None:
        """Let who waits for news, or who comes next, go on without."""
        with self.lock:
            self._woken = True
            self.lock.notify_all()

    def take(self, within_s: float, wanted: Collection[str] | None = None) -> list[Chunk]:
        """The news, of the `wanted` or of all, in order; where there are none yet, those that come within a time. Tells
        who asked for loads."""
        with self.lock:
            self.look()
            if not (self._has(wanted) or self._told or self._woken):
                self.lock.wait(within_s)
            self._woken = False
            chunks = [chunk for chunk in self._news if wanted is None or chunk.request_id in wanted]
            self._news = [] if wanted is None else [one for one in self._news if one.request_id not in wanted]
            told, self._told = self._told, []
        for tell, error in told:
            tell(error)
        return chunks

    def has_more(self, request_id: str) -> bool:
        """Whether chunks of a query will come, or are kept."""
        with self.lock:
            return request_id in self.flights or self._has({request_id})

    def waiting(self, client: str) -> tuple[int, int]:
        """How many queries have no chunk yet and wait for one, of all clients and of one."""
        waits = [flight for flight in self.flights.values() if not (flight.begun or flight.cancelled)]
        return len(waits), sum([flight.ready.query.client == client for flight in waits]) if client else 0

    def _has(self, wanted: Collection[str] | None) -> bool:
        return any(wanted is None or chunk.request_id in wanted for chunk in self._news)


def _abandon(request_id: str, coterie: Coterie) -> None:
    coterie.abandon([request_id])

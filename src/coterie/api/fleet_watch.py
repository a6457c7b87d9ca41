"""FleetWatch: events of several devices, reported to one listener, each with its device's name.

Knows nothing about who listens, or how.
"""

from __future__ import annotations

import threading
from concurrent.futures import TimeoutError as LateError
from dataclasses import replace
from typing import Any

from coterie.api.board import Board
from coterie.api.coterie import Coterie
from coterie.api.flight import Flight
from coterie.api.member import Member, all_of, each_of
from coterie.api.serving import WAIT_S, Since
from coterie.api.status import Status
from coterie.api.watch import ON, EngineEvent, Sink, Waiting
from coterie.core.errors import CoterieError


class FleetWatch:
    """As Watch, for all members of a fleet; callable from any thread."""

    def __init__(self, board: Board) -> None:
        self._board, self._lock = board, threading.Lock()
        self._sink: Sink | None = None
        board.on_break.append(self._stopped)
        board.on_move.append(self._moved)

    def follow(self, sink: Sink | None) -> None:
        """Report events to `sink` from now on; None: stop. One call at a time."""
        self._sink = sink
        all_of(self._board.members, lambda coterie: coterie.watch.follow(self._tagged(coterie)))

    def observe(
        self, sink: Sink, since: Since
    ) -> tuple[list[tuple[Member, Status]], dict[str, float], list[dict[str, Any]]]:
        """As Serving.observe, but with the status of each member and, as in `known_of`, the age of outdated ones.

        A member that hangs reports events only from when it responds again.
        """

        def begin(coterie: Coterie) -> tuple[Status, list[dict[str, Any]]]:
            coterie.watch.follow(self._tagged(coterie))
            found = coterie.status(), coterie.watch.residents()
            with self._lock:
                since(self._name_of(coterie))
            return found

        self._sink = sink
        each, late = each_of(self._board.members, begin), dict[str, float]()
        residents = [{**tier, ON: member.name} for member, (_, tiers) in each for tier in tiers]
        found = {member: status for member, (status, _) in each}
        for member in self._board.members:
            if member.broken is None and member not in found:
                member.post(begin)
                found[member], late[member.name] = member.known.status, member.known.age_s
        return list(found.items()), late, residents

    def waiting(self, request_id: str) -> Waiting | None:
        """What a query waits for; without bytes if its device is in a step too long to wait for."""
        with self._board.lock:
            flight = self._board.flights.get(request_id)
            count = sum([not one.begun for one in self._board.flights.values()])
        if flight is None or flight.begun:
            return None
        member = flight.member
        try:
            return member.post(lambda coterie: coterie.watch.waiting(request_id)).result(WAIT_S)
        except LateError:
            asked = flight.ready.route is None and flight.expert == flight.ready.expert  # the router's model
            return Waiting(
                "" if asked else flight.expert,
                False,
                flight.expert not in member.snapshot.residents,
                False,
                0,
                0,
                count,
            )
        except CoterieError:
            return None

    def refused(self, request_id: str, error: CoterieError, expert: str = "") -> None:
        """A request was routed and its expert refuses it; reported by the first working device."""

        def tell(coterie: Coterie) -> None:
            coterie.watch.refused(request_id, expert or error.where, error)

        next((member for member in self._board.members if member.broken is None), self._board.members[0]).post(tell)

    def _stopped(self, member: Member, error: CoterieError, cause: BaseException) -> None:
        if (sink := self._sink) is not None:
            with self._lock:
                sink(EngineEvent("stopped", member.now(), {ON: member.name, "error": str(error)}))

    def _moved(self, request_id: str, flight: Flight, was: Member) -> None:
        if (sink := self._sink) is not None:
            now = flight.member
            with self._lock:
                sink(EngineEvent("moved", now.now(), {"request": request_id, "from": was.name, ON: now.name}))

    def _name_of(self, coterie: Coterie) -> str:
        return next(member.name for member in self._board.members if member.coterie is coterie)

    def _tagged(self, coterie: Coterie) -> Sink | None:
        sink, name = self._sink, self._name_of(coterie)
        if sink is None:
            return None

        def told(happening: EngineEvent) -> None:
            with self._lock:
                sink(replace(happening, facts={**happening.facts, ON: name}))

        return told

"""FleetWatch: what happens on several devices, told to one listener, each happening with its device.

Knows nothing about who looks on, or how.
"""

from __future__ import annotations

import threading
from concurrent.futures import TimeoutError as LateError
from dataclasses import replace
from functools import partial
from typing import Any

from coterie.api.board import Board
from coterie.api.coterie import Coterie
from coterie.api.member import Member, all_of
from coterie.api.serving import WAIT_S
from coterie.api.watch import EngineEvent, Sink, Waiting
from coterie.core.errors import CoterieError

ON = "on"  # the fact that names a device


class FleetWatch:
    """As Watch, of all members of a fleet; any thread may ask it."""

    def __init__(self, board: Board) -> None:
        self._board, self._lock = board, threading.Lock()

    def follow(self, sink: Sink | None) -> None:
        """Tell `sink` from now on, or nobody; one call at a time."""
        for member in self._board.members:
            if member.broken is None:
                member.call(partial(_follow, None if sink is None else self._tagged(member.name, sink)))

    def residents(self) -> list[dict[str, Any]]:
        """Who lies in each tier of each device."""
        members = [member for member in self._board.members if member.broken is None]
        each = all_of(members, lambda coterie: coterie.watch.residents())
        return [{**tier, ON: member.name} for member, tiers in zip(members, each, strict=True) for tier in tiers]

    def waiting(self, request_id: str) -> Waiting | None:
        """What a query waits for; None also where its device is in a step that takes longer than anybody may wait."""
        with self._board.lock:
            flight = self._board.flights.get(request_id)
        if flight is None:
            return None
        try:
            return flight.member.post(lambda coterie: coterie.watch.waiting(request_id)).result(WAIT_S)
        except (LateError, CoterieError):
            return None

    def refused(self, request_id: str, error: CoterieError, expert: str = "") -> None:
        """It is known where a request goes, and there it is not taken: told by the first device."""
        first: Member = self._board.members[0]

        def tell(coterie: Coterie) -> None:
            coterie.watch.refused(request_id, expert or error.where, error)

        first.post(tell)

    def _tagged(self, name: str, sink: Sink) -> Sink:
        def told(happening: EngineEvent) -> None:
            with self._lock:
                sink(replace(happening, facts={**happening.facts, ON: name}))

        return told


def _follow(sink: Sink | None, coterie: Coterie) -> None:
    coterie.watch.follow(sink)

"""FleetExperts: experts that come, go and stay on several devices.

    load    one: where it is, or where it costs least        pin           all that have it, else where it would come in
    unload  all                                              unpin         all

Knows nothing about queries.
"""

from __future__ import annotations

from abc import abstractmethod

from coterie.api.board import Board
from coterie.api.coterie import Coterie
from coterie.api.expert_commands import ExpertCommands
from coterie.api.member import Member, serving
from coterie.composition.composition import Composition
from coterie.core.errors import ConflictError, CoterieError
from coterie.engine.expert_control import Told
from coterie.memory.split import side_of


class FleetExperts(ExpertCommands):
    """The part of a Fleet that loads, unloads and pins. `_lead`: the member whose files count."""

    composition: Composition
    _board: Board
    _lead: Member

    @abstractmethod
    def _check_open(self) -> None:
        """Raise ClosedError, or what the devices have ended with, where none is left."""

    def load_soon(self, expert: str, tell: Told) -> None:
        """As load, on the device where it is or where it costs least, but do not wait: a later `step` calls `tell`."""
        self._check_open()
        name = self.composition.expert(expert).name
        with self._board.lock:
            member = self._board.place(name, able=serving(self._board.members, self._lead.coterie, name))
        self._board.load(name, tell, member)

    def unload(self, expert: str) -> None:
        """Forget every copy of an expert on every device. Where some refuse, the others have forgotten theirs."""
        self._check_open()
        name, refused = self.composition.expert(expert).name, list[ConflictError]()
        for member in self._having(name):
            try:
                member.call(lambda coterie: coterie.unload(name))
            except ConflictError as error:
                refused.append(ConflictError(f"{error.where} on {member.name}", error.fact, error.remedy))
        if refused:
            raise refused[0]

    def pin(self, expert: str) -> None:
        """Never evict an expert from the devices that have it, or, where none has, from where it would come in. Where
        one refuses, no pin is set.
        """
        self._check_open()
        name = self.composition.expert(expert).name
        able = serving(self._board.members, self._lead.coterie, name)
        there = [member for member in able if name in member.seen.there]
        with self._board.lock:
            chosen = there or [self._board.place(name, able=able)]
        pinned = list[Member]()
        try:
            for member in chosen:
                if not member.call(lambda coterie: _is_pinned(coterie, name)):
                    member.call(lambda coterie: coterie.pin(name))
                    pinned.append(member)
        except CoterieError:
            for member in pinned:
                member.call(lambda coterie: coterie.unpin(name))
            raise

    def unpin(self, expert: str) -> None:
        """Let an expert be evicted again, on every device."""
        self._check_open()
        name = self.composition.expert(expert).name
        for member in self._having(name):
            member.call(lambda coterie: coterie.unpin(name))

    def _having(self, name: str) -> list[Member]:
        """Those that answer, and have an expert, by whatever files."""
        return [one for one in self._board.members if one.broken is None and name in one.coterie.composition.names]


def _is_pinned(coterie: Coterie, name: str) -> bool:
    return name in side_of(coterie.parts.all_weights, name).pinned

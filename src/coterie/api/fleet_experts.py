"""FleetExperts: loading, unloading and pinning experts on several devices.

    load           one: where it is, or where it costs least    pin            all that have it, else where it would go
    unload         all                                          unpin          all
    draft experts  load and pin on all                          device breaks  its pins that no other has move elsewhere

Knows nothing about queries.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeAlias

from coterie.api.board import Board
from coterie.api.coterie import Coterie
from coterie.api.expert_commands import ExpertCommands
from coterie.api.member import Member
from coterie.api.same_files import serving
from coterie.composition.composition import Composition
from coterie.core.errors import ConflictError, CoterieError
from coterie.engine.expert_control import LoadCallback
from coterie.memory.split import side_of

RepinCallback: TypeAlias = Callable[[str, str, CoterieError | None], None]
"""Called when a device has broken, for an expert that only it had pinned: with the name of the device where it is
pinned now, or of the broken one, and the error if it is pinned nowhere.
"""


class FleetExperts(ExpertCommands):
    """The part of a Fleet that loads, unloads and pins. `_lead`: the member whose files are authoritative. `_unpinned`:
    experts whose pin was lost, with the error; `_on_repin`: callbacks for pins that move.
    """

    composition: Composition
    _board: Board
    _lead: Member
    _unpinned: dict[str, CoterieError]
    _on_repin: list[RepinCallback]

    @abstractmethod
    def _check_open(self) -> None:
        """Raise ClosedError, or the devices' error if none is left."""

    def load_soon(self, expert: str, callback: LoadCallback) -> None:
        """As load, on the device where it is or where it costs least, without waiting: a later `step` calls `callback`.
        Draft experts are loaded on all devices, and `callback` is called once, with the first error of any.
        """
        self._check_open()
        name = self.composition.expert(expert).name
        able = [one for one in serving(self._board.members, self._lead.coterie, name) if not one.hangs()]
        if not (able and self._guesses(name)):
            with self._board.lock:
                able = [self._board.placing.cheapest(name, able=able)]
        new_callback = _once(callback, len(able))
        for member in able:
            self._board.load(name, new_callback(), member)

    def unload(self, expert: str) -> None:
        """Drop every copy of an expert on every device. If some refuse, the others have dropped theirs."""
        self._check_open()
        name = self.composition.expert(expert).name
        self._of_all(name, lambda coterie: coterie.unload(name))

    def pin(self, expert: str) -> None:
        """Never evict an expert from the devices that have it, or, if none has, from the one that would load it.

        Draft experts are pinned on all devices. If one device refuses, no pin is set.
        """
        self._check_open()
        name = self.composition.expert(expert).name
        able = serving(self._board.members, self._lead.coterie, name)
        holders = able if self._guesses(name) else [member for member in able if name in member.snapshot.residents]
        with self._board.lock:
            chosen = holders or [self._board.placing.cheapest(name, able=able)]
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
        self._unpinned.pop(name, None)

    def unpin(self, expert: str) -> None:
        """Let an expert be evicted again, on every device, even if one of them hangs; then that is raised."""
        self._check_open()
        name = self.composition.expert(expert).name
        self._unpinned.pop(name, None)
        self._of_all(name, lambda coterie: coterie.unpin(name))

    def on_repin(self, callback: RepinCallback) -> None:
        """Register a callback for each expert that only a broken device had pinned."""
        self._on_repin.append(callback)

    def _keep_pins(self, member: Member, error: CoterieError, cause: BaseException) -> None:
        """Move pins that only a broken member had to another. Called on its thread, under the board's lock."""
        others = [one for one in self._board.members if one.broken is None]
        if not others:
            return
        lead = self._lead if self._lead in others else others[0]
        for name in member.coterie.composition.names:
            if not _is_pinned(member.coterie, name) or any(_is_pinned(one.coterie, name) for one in self._having(name)):
                continue
            able = serving(others, lead.coterie, name)
            with suppress(CoterieError):  # no other device is able, or those that were have broken too
                first = self._board.placing.cheapest(name, able=able)
                able.sort(key=lambda one: one is not first)
            fact = f"was pinned on {member.name}, which has stopped, and no other device serves it"
            self._pin_on_one_of(able, name, member, ConflictError(name, fact, "pin it again after a rescan"))

    def _pin_on_one_of(self, able: Sequence[Member], name: str, was: Member, error: CoterieError) -> None:
        """Pin an expert on the first member that accepts it, and load it there if it was; else record the error."""
        if not able:
            self._unpinned[name] = error
            self._tell_repinned(name, was.name, error)
            return
        now = able[0]

        def pin(coterie: Coterie) -> None:
            coterie.pin(name)
            if name in was.snapshot.residents:
                coterie.load_soon(name, _ignore)

        def look(future: Future[None]) -> None:
            refused = future.exception()
            if refused is None:
                self._tell_repinned(name, now.name, None)
            elif isinstance(refused, CoterieError):
                fact = f"was pinned on {was.name}, which has stopped, and no other device takes it: {refused.fact}"
                self._pin_on_one_of(able[1:], name, was, ConflictError(name, fact, refused.remedy))

        now.change(pin).add_done_callback(look)

    def _tell_repinned(self, name: str, where: str, error: CoterieError | None) -> None:
        for callback in self._on_repin:
            callback(name, where, error)

    def _of_all(self, name: str, function: Callable[[Coterie], None]) -> None:
        """Run a function on all members that have an expert. Raises the first error, once all were asked."""
        refused = list[CoterieError]()
        for member in self._having(name):
            try:
                member.call(function)
            except ConflictError as error:
                refused.append(ConflictError(f"{error.where} on {member.name}", error.fact, error.remedy))
            except CoterieError as error:
                refused.append(error)
        if refused:
            raise refused[0]

    def _guesses(self, name: str) -> bool:
        """Whether an expert drafts for others: then it is wanted wherever these are."""
        return any(model.draft == name for model in self._lead.coterie.models.values())

    def _having(self, name: str) -> list[Member]:
        """The working members that have an expert, whatever its files."""
        return [one for one in self._board.members if one.broken is None and name in one.coterie.composition.names]


def _once(callback: LoadCallback, count: int) -> Callable[[], LoadCallback]:
    """Makes `count` callbacks in all; the last one called calls `callback`, with the first error of any."""
    errors, numbers = list[CoterieError | None](), itertools.count(1)

    def made() -> LoadCallback:
        def told(error: CoterieError | None) -> None:
            errors.append(error)
            if next(numbers) == count:  # callbacks run in one thread
                callback(next((one for one in errors if one is not None), None))

        return told

    return made


def _ignore(error: CoterieError | None) -> None:
    """For a load that no caller waits for: a request for the expert starts it again, or gets the error."""


def _is_pinned(coterie: Coterie, name: str) -> bool:
    return name in side_of(coterie.parts.all_weights, name).pinned

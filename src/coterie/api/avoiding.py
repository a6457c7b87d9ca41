"""Avoiding: which members of a fleet are asked last, and why: they fail what others answer, or hang in a step.

    failed, answered --> engine/health.py --.
    how long a step has lasted --look-------+--> avoids        changes are reported, once

Knows nothing about queries, or what becomes of those that a member has. Under its owner's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TypeAlias

from coterie.api.member import Member
from coterie.core.errors import CoterieError, DeviceError
from coterie.engine.health import Health

AvoidCallback: TypeAlias = Callable[[Member, CoterieError | None], None]
"""Called when a member becomes avoided, with the reason; or, with None, no longer is. On any thread, under the lock."""


class Avoiding:
    """The health of each member. `on_change`: callbacks for changes."""

    def __init__(self) -> None:
        self.on_change: list[AvoidCallback] = []
        self._health: dict[Member, Health] = {}
        self._failing: dict[Member, CoterieError] = {}
        self._hanging: dict[Member, CoterieError] = {}

    def join(self, member: Member) -> None:
        """Add a member."""
        self._health[member] = Health()

    def avoids(self, member: Member) -> bool:
        """Whether others should be asked if possible."""
        return member in self._hanging or self._health[member].avoided

    def is_due(self, member: Member) -> bool:
        """Whether the next request that it could serve should be its trial."""
        return member not in self._hanging and self._health[member].due

    def reasons(self) -> dict[str, CoterieError]:
        """Why members are avoided, by name; without those that have stopped."""
        return {member.name: why for member, why in {**self._failing, **self._hanging}.items() if member.broken is None}

    def placed(self, member: Member, others: Iterable[Member]) -> None:
        """A request went to a member; `others` could have served it."""
        self._health[member].asked()
        for other in others:
            self._health[other].passed_over()

    def answered(self, member: Member) -> None:
        """A member has returned part of an answer."""
        self._health[member].answered()
        if self._failing.pop(member, None) is not None:
            self._tell(member, None)

    def failed(self, member: Member, error: CoterieError) -> None:
        """A member failed, with `error`, a request that another one has answered."""
        health = self._health[member]
        health.failed()
        if not health.failing:
            return
        new, fact = member not in self._failing, f"fails what others answer: {error}"
        self._failing[member] = DeviceError(member.name, fact, "look at the device; it is tried again now and then")
        if new:
            self._tell(member, self._failing[member])

    def look(self, members: Collection[Member]) -> list[tuple[Member, CoterieError]]:
        """The members that have begun to hang since the last look, each with an error that says so."""
        found = []
        for member in members:
            hangs = member.broken is None and member.hangs()
            if hangs and member not in self._hanging:
                self._hanging[member] = member.hung()
                self._tell(member, self._hanging[member])
                found.append((member, self._hanging[member]))
            elif not hangs and self._hanging.pop(member, None) is not None and member.broken is None:
                self._tell(member, self._failing.get(member))
        return found

    def _tell(self, member: Member, why: CoterieError | None) -> None:
        for callback in self.on_change:
            callback(member, why)

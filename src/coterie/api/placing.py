"""Placing: which member of a fleet gets the next request, given what each has to do and has done.

    unfinished requests, residency (seen), prefixes, avoiding --> engine/placement.py --> a member

Knows nothing about queries beyond their expert and tokens, or what becomes of them. Under its owner's lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from coterie.api.avoiding import Avoiding
from coterie.api.member import Member, ended_with
from coterie.core.errors import DeviceError
from coterie.engine.placement import Candidate, SeenPrefixes, candidate_for, mean_switch_cost, place


class Placing:
    """Counts each member's `unfinished` requests by expert. `reuse`: prefer members that have a prompt's prefix.

    `avoiding`: which members are asked last.
    """

    def __init__(self, reuse: bool = True) -> None:
        self.members: tuple[Member, ...] = ()
        self.unfinished: list[Counter[str]] = []
        self.avoiding = Avoiding()
        self._reuse, self._prefixes = reuse, SeenPrefixes()

    def join(self, member: Member) -> None:
        """Add a member."""
        self.members = (*self.members, member)
        self.unfinished.append(Counter())
        self.avoiding.join(member)

    def place(self, expert: str, prompt_ids: Sequence[int] = (), able: Collection[Member] | None = None) -> Member:
        """The member to answer a request; `able`: choose among these.

        A member that is due for a trial is chosen whatever the cost: otherwise one that offers nothing the others lack
        would never be tried. Raises DeviceError, or the error that all members have stopped with.
        """
        due = next((one for one in self.members if _serves(one, able) and self.avoiding.is_due(one)), None)
        found = due or self.cheapest(expert, prompt_ids, able)
        if prompt_ids and self._reuse:
            self._prefixes.learn(expert, prompt_ids, found.number)
        others = [one for one in self.members if one is not found and _serves(one, able)]
        self.avoiding.placed(found, others)
        return found

    def cheapest(self, expert: str, prompt_ids: Sequence[int] = (), able: Collection[Member] | None = None) -> Member:
        """As `place`, for a load or a pin: these are no trial, as they do not show whether a member answers."""
        known = self._prefixes.known(expert, prompt_ids, len(self.members)) if prompt_ids and self._reuse else ()
        each = [self._candidate(member, expert, known, able) for member in self.members]
        found = place(each, mean_switch_cost([member.snapshot for member in self.members]))
        if found is None:
            fact = f"no working device serves {expert}"
            raise ended_with(self.members) or DeviceError("devices", fact, "restart the server")
        return self.members[found]

    def count(self, member: Member, expert: str, change: int) -> None:
        """Change the number of a member's requests for an expert."""
        asked = self.unfinished[member.number]
        asked[expert] += change
        if not asked[expert]:
            del asked[expert]

    def _candidate(
        self, member: Member, expert: str, known: Sequence[int], able: Collection[Member] | None
    ) -> Candidate:
        models = member.coterie.models
        asked = self.unfinished[member.number]
        sizes = {name: models[name].layout.size_bytes for name in {expert, *asked} if name in models}
        known_tokens, serves = known[member.number] if known else 0, _serves(member, able)
        return candidate_for(member.snapshot, expert, sizes, asked, known_tokens, serves, self.avoiding.avoids(member))


def _serves(member: Member, able: Collection[Member] | None) -> bool:
    return member.broken is None and (able is None or member in able)

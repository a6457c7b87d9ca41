"""Placing: which member of a fleet is asked next, by what each has to do and has done.

    what it was asked and has not ended, what it holds (seen), prefixes, avoiding --> engine/placement.py --> a member

Knows nothing about queries beyond their expert and tokens, or what becomes of them. Under its owner's lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from coterie.api.avoiding import Avoiding
from coterie.api.member import Member, ended_with
from coterie.core.errors import DeviceError
from coterie.engine.placement import Prefixes, Standing, cost_of, place, standing


class Placing:
    """The accounts of what `members` were `asked`, each by expert. `reuse`: prompts are worth most where their
    beginnings are. `avoiding`: who is asked last.
    """

    def __init__(self, reuse: bool = True) -> None:
        self.members: tuple[Member, ...] = ()
        self.asked: list[Counter[str]] = []
        self.avoiding = Avoiding()
        self._reuse, self._prefixes = reuse, Prefixes()

    def join(self, member: Member) -> None:
        """One more."""
        self.members = (*self.members, member)
        self.asked.append(Counter())
        self.avoiding.join(member)

    def place(self, expert: str, prompt_ids: Sequence[int] = (), able: Collection[Member] | None = None) -> Member:
        """Who is to answer; `able`: one of these. Raises DeviceError, or the error that all members have ended with."""
        known = self._prefixes.known(expert, prompt_ids, len(self.members)) if prompt_ids and self._reuse else ()
        each = [self._standing(member, expert, known, able) for member in self.members]
        found = place(each, cost_of([member.seen for member in self.members]))
        if found is None:
            fact = f"no working device serves {expert}"
            raise ended_with(self.members) or DeviceError("devices", fact, "restart the server")
        if prompt_ids and self._reuse:
            self._prefixes.learn(expert, prompt_ids, found)
        others = [member for member, one in zip(self.members, each, strict=True) if one.serves]
        others.remove(self.members[found])
        self.avoiding.placed(self.members[found], others)
        return self.members[found]

    def count(self, member: Member, expert: str, change: int) -> None:
        """A member has so many more requests for an expert."""
        asked = self.asked[member.number]
        asked[expert] += change
        if not asked[expert]:
            del asked[expert]

    def _standing(self, member: Member, expert: str, known: Sequence[int], able: Collection[Member] | None) -> Standing:
        models = member.coterie.models
        asked = self.asked[member.number]
        sizes = {name: models[name].layout.size_bytes for name in {expert, *asked} if name in models}
        serves = member.broken is None and (able is None or member in able)
        known_tokens = known[member.number] if known else 0
        return standing(member.seen, expert, sizes, asked, known_tokens, serves, self.avoiding.avoids(member))

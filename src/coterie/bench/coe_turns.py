"""How a peer takes turns among models: whose requests run next, and which of them join who runs.

    one at a time   a request from its prompt to its end, then the next
    in order        requests in a row for one model run in one batch; the next model when none of them is left
    grouped         all that wait for the model that runs join it; then who is open and most waited for, then who is
                    waited for most. Nobody is overtaken by more than `age_bound` that came later

Knows nothing about engines or time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turns:
    """A way to take turns; `slots`: sequences of a batch, 0: one request at a time. `shared`: of one cache."""

    slots: int = 0
    grouped: bool = False
    shared: bool = False

    def __str__(self) -> str:
        if not self.slots:
            return "one at a time"
        order = "grouped" if self.grouped else "in order"
        return f"{order} in batches of up to {self.slots}, {'one cache' if self.shared else 'a cache each'}"


@dataclass(slots=True)
class Waiting:
    """A request that waits: its number, whose it is, and how many that came later were admitted before it."""

    number: int
    name: str
    overtaken: int = 0


class WaitQueue:
    """The requests that wait, in the order in which they came."""

    def __init__(self, grouped: bool, age_bound: int) -> None:
        self._grouped, self._age_bound = grouped, age_bound
        self._waiting: list[Waiting] = []
        self.most_overtaken = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, number: int, name: str) -> None:
        """One more, behind all others."""
        self._waiting.append(Waiting(number, name))

    def next(self, resident: Collection[str]) -> str:
        """Whose turn it is when nothing runs. Raises IndexError where nobody waits."""
        oldest = self._waiting[0]
        if not self._grouped or oldest.overtaken >= self._age_bound:
            return oldest.name
        asked = Counter(one.name for one in self._waiting)  # equal counts stay in the order in which they came
        among = [name for name in asked if name in resident] or list(asked)
        return max(among, key=lambda name: asked[name])

    def join(self, name: str, room: int) -> Sequence[int]:
        """Take out those that run now with a model that runs, at most `room` of them: their numbers."""
        joined: list[int] = []
        passed: list[Waiting] = []  # who is overtaken by each that joins from here on
        for one in list(self._waiting):
            if len(joined) == room or any(self._holds(earlier) for earlier in passed):
                break
            if one.name != name:
                passed.append(one)
                continue
            for earlier in passed:
                earlier.overtaken += 1
            self._waiting.remove(one)
            joined.append(one.number)
        self.most_overtaken = max([self.most_overtaken, *(one.overtaken for one in passed)])
        return joined

    def _holds(self, one: Waiting) -> bool:
        """Whether nobody behind it may come before it."""
        return not self._grouped or one.overtaken >= self._age_bound

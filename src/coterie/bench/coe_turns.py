"""How a peer alternates between models: which model runs next, and which waiting requests join its batch.

    one at a time   each request from prompt to end, then the next
    in order        consecutive requests for the same model run in one batch; then the next model
    grouped         all requests for the running model join its batch; then comes the open model with the most waiting
                    requests or, if none is open, any with the most. At most `age_bound` later ones overtake a request

Knows nothing about engines or time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turns:
    """A way to alternate. `slots`: sequences per batch; 0: one request at a time. `shared`: they share one KV cache."""

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
    """A waiting request: its number, its model, and how many later requests were admitted before it."""

    number: int
    name: str
    overtaken: int = 0


class WaitQueue:
    """Waiting requests, in order of arrival."""

    def __init__(self, grouped: bool, age_bound: int) -> None:
        self._grouped, self._age_bound = grouped, age_bound
        self._waiting: list[Waiting] = []
        self.max_overtaken = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, number: int, name: str) -> None:
        """Append a request."""
        self._waiting.append(Waiting(number, name))

    def next(self, resident: Collection[str]) -> str:
        """The model to run when nothing is running. Raises IndexError if no request is waiting."""
        oldest = self._waiting[0]
        if not self._grouped or oldest.overtaken >= self._age_bound:
            return oldest.name
        asked = Counter(one.name for one in self._waiting)  # ties stay in order of arrival
        among = [name for name in asked if name in resident] or list(asked)
        return max(among, key=lambda name: asked[name])

    def join(self, name: str, room: int) -> Sequence[int]:
        """Remove at most `room` requests that join the running model's batch; returns their numbers."""
        joined: list[int] = []
        passed: list[Waiting] = []  # requests that every further one to join overtakes
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
        self.max_overtaken = max([self.max_overtaken, *(one.overtaken for one in passed)])
        return joined

    def _holds(self, one: Waiting) -> bool:
        """Whether no later request may overtake this one."""
        return not self._grouped or one.overtaken >= self._age_bound

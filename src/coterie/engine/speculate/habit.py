"""Habit: how an answer goes on where its form leaves few tokens, by what it did where the same few could come.

    {"first_name": "ann", "last_name": ?     behind a name came `":`, where just that or a blank could come; then ` "`

So the first values of a form tell how the others are punctuated, though each name is new. Each token costs two looks at
tables. Knows nothing about what a form is, or about devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.engine.request import Mask

KEPT = 1024  # places of one answer: each has a bit for every token
EXPECTED, COUNTED = 0.7, 2.0  # how often it does so again: at first, as if it had been counted in so many


@dataclass(slots=True)
class _Done:
    """The token that came last, how often it could have been guessed, and how often that would have been right."""

    token: int
    tries: float = COUNTED
    right: float = COUNTED * EXPECTED

    def add(self, token: int) -> None:
        self.tries += 1
        self.right += token == self.token
        self.token = token


class Habit:
    """What one answer did, by what could come (a mask's `few`), and by the token before."""

    def __init__(self) -> None:
        self._done: dict[bytes | int, _Done] = {}

    def learn(self, few: bytes | None, before: int, token: int) -> None:
        """This token came behind `before`, where it was a choice."""
        for key in () if few is None else (few, before):
            done = self._done.get(key)
            if done is not None:
                done.add(token)
            elif len(self._done) < KEPT:
                self._done[key] = _Done(token)

    def next(self, mask: Mask, before: int) -> list[tuple[int, float]]:
        """The token that may come next, and how likely; none where nothing is known. The mask may not allow it."""
        few = mask.few()
        found = [] if few is None else [self._done[key] for key in (few, before) if key in self._done]
        best = max(found, key=lambda done: done.right / done.tries, default=None)
        return [] if best is None else [(best.token, best.right / best.tries)]

"""LastChoices: guesses what an answer held to a form (a grammar) does next from what it did in the same place before.

    {"first_name": "ann", "last_name": ?     after the last name came `":`, out of the same few tokens; so guess `":`

A place is the set of tokens that the form allows there, where these are few, or the token before. So from the second
property on the punctuation is known, though each name is new. Each token costs two look-ups. Knows nothing about what
a form is, or about devices.
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


class LastChoices:
    """An answer's last choice in each place: by the few tokens that could come (`Mask.few`), and by the one before."""

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

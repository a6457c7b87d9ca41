"""LastChoices: in an answer constrained by a grammar, guesses the token chosen the last time in the same place.

    {"first_name": "ann", "last_name": ?     after the last name came `":`, out of the same few tokens; so guess `":`

A place is identified by the set of tokens that the grammar allows, if they are few, and by the token before. So from
the second property on the punctuation is known, though each name is new. Each token costs two look-ups. Knows nothing
about what a grammar is, or about devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.engine.request import Mask

KEPT = 1024  # places per answer; a key has one bit per token of the vocabulary
EXPECTED, COUNTED = 0.7, 2.0  # prior rate of repetition, and its weight in observations


@dataclass(slots=True)
class _Done:
    """The latest token in a place, how often a guess could be made there, and how often it would have been right."""

    token: int
    tries: float = COUNTED
    right: float = COUNTED * EXPECTED

    def add(self, token: int) -> None:
        self.tries += 1
        self.right += token == self.token
        self.token = token


class LastChoices:
    """The latest choice in each place of an answer: by `Mask.choice_key`, and by the token before."""

    def __init__(self) -> None:
        self._done: dict[bytes | int, _Done] = {}

    def learn(self, choice_key: bytes | None, before: int, token: int) -> None:
        """Record that `token` was chosen after `before`, where there was a choice."""
        for key in () if choice_key is None else (choice_key, before):
            done = self._done.get(key)
            if done is not None:
                done.add(token)
            elif len(self._done) < KEPT:
                self._done[key] = _Done(token)

    def next(self, mask: Mask, before: int) -> list[tuple[int, float]]:
        """The likely next token and its chance; empty if nothing is known. The mask may not allow it."""
        choice_key = mask.choice_key()
        found = [] if choice_key is None else [self._done[key] for key in (choice_key, before) if key in self._done]
        best = max(found, key=lambda done: done.right / done.tries, default=None)
        return [] if best is None else [(best.token, best.right / best.tries)]

"""Prediction: a text that its caller expects an answer to repeat, with changes; followed as the answer grows.

    prediction   a b c d e f g h       a b: as expected; x is not; after d e it is found again, ahead of where it was
    answer       a b x d e ?   the guess is f g h

Each token costs one look, however long the text is. Knows nothing about devices, prices or who draws.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from coterie.engine.speculate.lookup import MIN_MATCH, Tally

BEGUN = 7  # at first it is expected as much as what stands behind a match of so many tokens


class Prediction:
    """Follows a list of tokens as it grows, from number `begins` on, by a prediction, which has a token or more."""

    def __init__(self, prediction: Sequence[int], tokens: Sequence[int], begins: int) -> None:
        self._source, self._tokens, self._seen, self._begins = prediction, tokens, begins, begins
        self._at, self._match = 0, BEGUN  # -1: nowhere
        self._last = 0  # where it was last
        self._behind: dict[int, list[int]] = {}  # two tokens, as one number -> the positions after where they stand
        self._came = bytearray(len(prediction))
        self._tally = Tally()

    def catch_up(self) -> None:
        """Take in what the sequence has drawn since, and count what was predicted right."""
        for end in range(max(self._seen, 1), len(self._tokens)):
            at, (before, token) = self._at, self._tokens[end - 1 : end + 1]
            right = self._expects(at, token)
            if at in range(len(self._source)):
                self._tally.count(self._match, right)
            self._at, self._match = self._step(at, self._match, before, token)
            if self._at >= 0:
                self._came[self._at - 1] = 1
                if not right and end > self._begins:
                    self._came[self._at - 2] = 1
                self._last = self._at
        self._seen = len(self._tokens)

    @property
    def found(self) -> bool:
        """True when there is anything to guess."""
        return self._at >= 0

    def after(self, most: int, tail: Sequence[int] = ()) -> list[tuple[int, float]]:
        """Up to so many tokens that may come next, each with how likely it is right if those before it are.

        `tail`: tokens taken to come before them.
        """
        at, match, before = self._at, self._match, self._tokens[-1]
        for token in tail:
            at, match = self._step(at, match, before, token)
            before = token
        found = self._source[at : at + most] if at >= 0 else ()
        return [(token, self._tally.share(match + place)) for place, token in enumerate(found)]

    @property
    def counts(self) -> tuple[int, int]:
        """How many of the prediction's tokens came, where it was followed, and how many did not."""
        came = sum(self._came)
        return came, len(self._came) - came

    def _expects(self, at: int, token: int) -> bool:
        return 0 <= at < len(self._source) and self._source[at] == token

    def _step(self, at: int, match: int, before: int, token: int) -> tuple[int, int]:
        """Where it is behind `token`, which came behind `before`, if it was at `at` before; and the match there."""
        if self._expects(at, token):
            return at + 1, match + 1
        return self._find(before, token), MIN_MATCH

    def _find(self, before: int, token: int) -> int:
        """Behind where these two stand, next after where it was last; else where they stand last."""
        if not self._behind:
            for place, pair in enumerate(pairwise(self._source), start=2):
                self._behind.setdefault(pair[0] << 32 | pair[1], []).append(place)
        places = self._behind.get(before << 32 | token)
        return -1 if places is None else places[min(bisect_right(places, self._last), len(places) - 1)]

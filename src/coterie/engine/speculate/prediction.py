"""Prediction: a text that the caller expects the answer to repeat, with changes; followed as the answer grows.

    prediction   a b c d e f g h       a b: as expected; x is not; d e occurs again further on and is picked up there
    answer       a b x d e ?   the guess is f g h

Each token costs one look-up, however long the text is. Knows nothing about devices, prices or sampling.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from coterie.engine.speculate.lookup import MIN_MATCH, Tally

BEGUN = 7  # initial confidence: that of a match of this many tokens


class Prediction:
    """Follows a growing list of tokens, from index `begins` on, along a non-empty prediction."""

    def __init__(self, prediction: Sequence[int], tokens: Sequence[int], begins: int) -> None:
        self._source, self._tokens, self._seen, self._begins = prediction, tokens, begins, begins
        self._at, self._match = 0, BEGUN  # -1: lost
        self._last = 0  # last known position
        self._position_after: dict[int, list[int]] = {}  # two tokens, packed -> the positions after their occurrences
        self._came = bytearray(len(prediction))
        self._tally = Tally()

    def catch_up(self) -> None:
        """Process tokens drawn since the last call, and count which predictions were right."""
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
        """True if there is anything to guess."""
        return self._at >= 0

    def after(self, max_tokens: int, tail: Sequence[int] = ()) -> list[tuple[int, float]]:
        """Up to `max_tokens` tokens that may come next, each with the chance that it is right if all before it are.

        `tail`: tokens assumed to come before them.
        """
        at, match, before = self._at, self._match, self._tokens[-1]
        for token in tail:
            at, match = self._step(at, match, before, token)
            before = token
        found = self._source[at : at + max_tokens] if at >= 0 else ()
        return [(token, self._tally.rate(match + place)) for place, token in enumerate(found)]

    @property
    def counts(self) -> tuple[int, int]:
        """How many of the prediction's tokens the answer repeated where it followed it, and how many it did not."""
        came = sum(self._came)
        return came, len(self._came) - came

    def _expects(self, at: int, token: int) -> bool:
        return 0 <= at < len(self._source) and self._source[at] == token

    def _step(self, at: int, match: int, before: int, token: int) -> tuple[int, int]:
        """The position and match length after `token`, which followed `before`, given those before it."""
        if self._expects(at, token):
            return at + 1, match + 1
        return self._find(before, token), MIN_MATCH

    def _find(self, before: int, token: int) -> int:
        """The position after this pair's next occurrence beyond the last known position, else after its last one."""
        if not self._position_after:
            for place, pair in enumerate(pairwise(self._source), start=2):
                self._position_after.setdefault(pair[0] << 32 | pair[1], []).append(place)
        places = self._position_after.get(before << 32 | token)
        return -1 if places is None else places[min(bisect_right(places, self._last), len(places) - 1)]

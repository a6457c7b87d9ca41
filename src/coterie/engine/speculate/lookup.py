"""Lookup: what followed the last time that a sequence's newest tokens came, in its prompt or its answer.

    tokens   .. 7 3 9 4 1 .. | .. 3 9 ?        at: what followed [3 9] before, 4; match: so many tokens before it and
                    ^ at            ^ end      before the end are the same. The guess is [4 1 ..], and on through itself

Each token costs one look at a table, however long the sequence. Knows nothing about devices, prices or who draws.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

MIN_MATCH = 2  # tokens: after one that came before, one of five is right, and no step gains by that
MAX_MATCH = 32  # as far back as a match is measured; longer ones are as good
MATCHES = (2, 3, 4, 5, 7, 9, 13, 17, 25)  # matches from each of these up to the next are counted together
# How often the token behind such a match is right: measured in 100 000 tokens of manuals, prose, source code, edited
# source code and JSON. What is known before counts as so many guesses.
RIGHT, COUNTED = (0.45, 0.55, 0.6, 0.75, 0.8, 0.85, 0.87, 0.9, 0.92), 8
REMEMBERED = 256  # guesses; of more, those long ago count less and less


class Tally:
    """How often guesses were right, by the match before them; at first, as `shares` say."""

    def __init__(self, shares: Sequence[float] = RIGHT) -> None:
        self._tries, self._right = [float(COUNTED)] * len(RIGHT), [COUNTED * share for share in shares]

    def count(self, match: int, right: bool) -> None:
        """One guess more, behind a match of so many tokens."""
        kind = bisect_right(MATCHES, match) - 1
        self._tries[kind] += 1
        self._right[kind] += right
        if self._tries[kind] > REMEMBERED:
            self._tries[kind] /= 2
            self._right[kind] /= 2

    def share(self, match: int) -> float:
        """How likely a guess behind such a match is right."""
        kind = bisect_right(MATCHES, match) - 1
        return self._right[kind] / self._tries[kind]

    def shares(self) -> list[float]:
        """The same for each of MATCHES."""
        return [right / tries for right, tries in zip(self._right, self._tries, strict=True)]


class Lookup:
    """Follows a list of tokens as it grows. The first `prompt` of them are not counted as guesses that were right.

    `known`: what others like it have counted. It begins with that, and adds what it counts.
    """

    def __init__(self, tokens: Sequence[int], prompt: int, known: Tally) -> None:
        self._tokens = tokens
        self._behind: dict[int, int] = {}  # two tokens, as one number -> the position after where they came last
        self._at, self._match = -1, 0
        self._tally, self._known = Tally(known.shares()), known
        self._seen = min(prompt, len(tokens))
        self._read_prompt()

    def catch_up(self) -> None:
        """Take in what the sequence has drawn since, and count what would have been guessed right."""
        tokens, behind = self._tokens, self._behind
        for end in range(self._seen, len(tokens)):
            token = tokens[end]
            if self._at >= 0:
                right = tokens[self._at] == token
                self._tally.count(self._match, right)
                self._known.count(self._match, right)
                if right:
                    self._at += 1
                    self._match += 1
                else:
                    self._at = -1
            if end:
                pair = tokens[end - 1] << 32 | token
                if self._at < 0:
                    self._find(behind.get(pair, -1), end)
                behind[pair] = end + 1
        self._seen = len(tokens)

    @property
    def found(self) -> bool:
        """True when there is anything to guess."""
        return self._at >= 0

    def after(self, most: int, tail: Sequence[int] = ()) -> list[tuple[int, float]]:
        """Up to so many tokens that may come next, each with how likely it is right if those before it are.

        `tail`: tokens taken to come before them.
        """
        at, match = self._follow(tail) if tail else (self._at, self._match)
        if at < 0:
            return []
        tokens, known, found = self._tokens, len(self._tokens), list[tuple[int, float]]()
        behind = list(tail)  # what repeats may be shorter than what is asked for
        for place in range(at, at + most):
            token = tokens[place] if place < known else behind[place - known]
            behind.append(token)
            found.append((token, self._tally.share(match + place - at)))
        return found

    def _follow(self, tail: Sequence[int]) -> tuple[int, int]:
        """Where it would be behind these tokens, and the match before that."""
        tokens, at, match = self._tokens, self._at, self._match
        known, before = len(tokens), tokens[-1]
        for token in tail:
            if at >= 0 and token == (tokens[at] if at < known else tail[at - known]):
                at, match = at + 1, match + 1
            else:
                at, match = self._behind.get(before << 32 | token, -1), MIN_MATCH
            before = token
        return at, match

    def _read_prompt(self) -> None:
        tokens, last = self._tokens, self._seen - 1
        if last < 1:
            return
        pairs = [before << 32 | token for before, token in pairwise(tokens[: last + 1])]
        newest = pairs.pop()
        self._behind = dict(zip(pairs, range(2, last + 1), strict=True))
        self._find(self._behind.get(newest, -1), last)
        self._behind[newest] = last + 1

    def _find(self, at: int, end: int) -> None:
        """Begin to follow what came behind position `at`, before which the same stands as up to `end`."""
        self._at = at
        if at < 0:
            return
        tokens, match = self._tokens, MIN_MATCH
        while match < min(MAX_MATCH, at) and tokens[at - match - 1] == tokens[end - match]:
            match += 1
        self._match = match

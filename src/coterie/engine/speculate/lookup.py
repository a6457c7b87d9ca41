"""Prompt lookup: guesses what followed the latest earlier occurrence of a sequence's newest tokens.

    tokens   .. 7 3 9 4 1 .. | .. 3 9 ?        at: what followed [3 9] before, here 4; match: how many tokens before
                      ^ at          ^ end      `at` equal those up to `end`. The guess is [4 1 ..], and may go on
                                               into itself

Each token costs one table look-up, however long the sequence. Knows nothing about devices, prices or sampling.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

MIN_MATCH = 2  # tokens; after a match of one token a fifth of the guesses are right, too few to pay
MAX_MATCH = 32  # cap on the measured match length; longer ones predict no better
MATCHES = (2, 3, 4, 5, 7, 9, 13, 17, 25)  # lower bounds of the match lengths that are counted together
# Prior acceptance rate per class of match length: measured on 100 000 tokens of manuals, prose, source code, edited
# source code and JSON. It has the weight of COUNTED guesses.
RIGHT, COUNTED = (0.45, 0.55, 0.6, 0.75, 0.8, 0.85, 0.87, 0.9, 0.92), 8
REMEMBERED = 256  # guesses; beyond this number old ones are decayed


class Tally:
    """Acceptance rates by match length, starting from `shares`."""

    def __init__(self, shares: Sequence[float] = RIGHT) -> None:
        self._tries, self._right = [float(COUNTED)] * len(RIGHT), [COUNTED * share for share in shares]

    def count(self, match: int, right: bool) -> None:
        """Count a guess made after a match of this length."""
        kind = bisect_right(MATCHES, match) - 1
        self._tries[kind] += 1
        self._right[kind] += right
        if self._tries[kind] > REMEMBERED:
            self._tries[kind] /= 2
            self._right[kind] /= 2

    def rate(self, match: int) -> float:
        """The acceptance rate after a match of this length."""
        kind = bisect_right(MATCHES, match) - 1
        return self._right[kind] / self._tries[kind]

    def rates(self) -> list[float]:
        """The acceptance rate of each class in MATCHES."""
        return [right / tries for right, tries in zip(self._right, self._tries, strict=True)]


class Lookup:
    """Follows a growing list of tokens. Its first `prompt` tokens do not count towards acceptance rates.

    `known`: rates of the expert's sequences so far: the starting point here, and updated with what is counted here.
    """

    def __init__(self, tokens: Sequence[int], prompt: int, known: Tally) -> None:
        self._tokens = tokens
        self._position_after: dict[int, int] = {}  # two tokens, packed -> the position after their latest occurrence
        self._at, self._match = -1, 0
        self._tally, self._known = Tally(known.rates()), known
        self._seen = min(prompt, len(tokens))
        self._read_prompt()

    def catch_up(self) -> None:
        """Process tokens drawn since the last call, and count which guesses would have been right."""
        tokens, position_after = self._tokens, self._position_after
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
                    self._find(position_after.get(pair, -1), end)
                position_after[pair] = end + 1
        self._seen = len(tokens)

    @property
    def found(self) -> bool:
        """True if there is anything to guess."""
        return self._at >= 0

    def after(self, max_tokens: int, tail: Sequence[int] = ()) -> list[tuple[int, float]]:
        """Up to `max_tokens` tokens that may come next, each with the chance that it is right if all before it are.

        `tail`: tokens assumed to come before them.
        """
        at, match = self._follow(tail) if tail else (self._at, self._match)
        if at < 0:
            return []
        tokens, known, found = self._tokens, len(self._tokens), list[tuple[int, float]]()
        assumed = list(tail)  # the repeating part may be shorter than `max_tokens`
        for place in range(at, at + max_tokens):
            token = tokens[place] if place < known else assumed[place - known]
            assumed.append(token)
            found.append((token, self._tally.rate(match + place - at)))
        return found

    def _follow(self, tail: Sequence[int]) -> tuple[int, int]:
        """The position and match length after `tail`."""
        tokens, at, match = self._tokens, self._at, self._match
        known, before = len(tokens), tokens[-1]
        for token in tail:
            if at >= 0 and token == (tokens[at] if at < known else tail[at - known]):
                at, match = at + 1, match + 1
            else:
                at, match = self._position_after.get(before << 32 | token, -1), MIN_MATCH
            before = token
        return at, match

    def _read_prompt(self) -> None:
        tokens, last = self._tokens, self._seen - 1
        if last < 1:
            return
        pairs = [before << 32 | token for before, token in pairwise(tokens[: last + 1])]
        newest = pairs.pop()
        self._position_after = dict(zip(pairs, range(2, last + 1), strict=True))
        self._find(self._position_after.get(newest, -1), last)
        self._position_after[newest] = last + 1

    def _find(self, at: int, end: int) -> None:
        """Start following position `at`, the continuation of an earlier occurrence of the tokens up to `end`."""
        self._at = at
        if at < 0:
            return
        tokens, match = self._tokens, MIN_MATCH
        while match < min(MAX_MATCH, at) and tokens[at - match - 1] == tokens[end - match]:
            match += 1
        self._match = match

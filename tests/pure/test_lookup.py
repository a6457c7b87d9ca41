"""Lookup: what it finds is what a search of the whole sequence finds, and what it counts is what came of it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coterie.engine.speculate.lookup import COUNTED, MATCHES, MAX_MATCH, REMEMBERED, RIGHT, Lookup, Tally


def guess(lookup, count):
    return tuple(token for token, _ in lookup.after(count))


def chances(lookup, count):
    return np.cumprod([share for _, share in lookup.after(count)]).tolist()


class Slow:
    """The same by searching: where two tokens came last, and then on as long as it goes."""

    def __init__(self, tokens, prompt):
        self.tokens, self.at, self.match = tokens, -1, 0
        self.tries, self.right = [COUNTED] * len(RIGHT), [COUNTED * share for share in RIGHT]
        self.look(prompt)
        for end in range(prompt + 1, len(tokens) + 1):
            self.take(end)

    def take(self, end):
        if self.at >= 0:
            kind = sum(self.match >= least for least in MATCHES) - 1
            self.tries[kind] += 1
            if self.tokens[self.at] == self.tokens[end - 1]:
                self.right[kind] += 1
                self.at, self.match = self.at + 1, self.match + 1
                return
        self.look(end)

    def look(self, end):
        """From the newest two of `end` tokens."""
        known, self.at, self.match = self.tokens[:end], -1, 0
        for at in range(end - 1, 1, -1):
            if known[at - 2 : at] == known[-2:]:
                self.at = at
                while self.match_is(at, known, self.match + 1) or self.match < 2:
                    self.match += 1
                return

    def match_is(self, at, known, match):
        return match <= min(MAX_MATCH, at) and known[at - match : at] == known[-match:]

    def chances(self, most):
        chances, chance = [], 1.0
        for match in range(self.match, self.match + most):
            kind = sum(match >= least for least in MATCHES) - 1
            chance *= self.right[kind] / self.tries[kind]
            chances.append(chance)
        return chances if self.at >= 0 else []

    def guess(self, count):
        tokens = list(self.tokens)
        for number in range(count):
            tokens.append(tokens[self.at + number])
        return tuple(tokens[len(self.tokens) :])


@settings(max_examples=80, deadline=None)
@example([1, 2, 3, 1, 2], 2, 1, 3)  # what the prompt ends with comes again
@given(st.lists(st.integers(0, 3), min_size=1, max_size=90), st.integers(1, 90), st.integers(1, 7), st.integers(1, 20))
def test_it_finds_and_counts_what_searching_does(tokens, prompt, at_once, count):
    prompt = min(prompt, len(tokens))
    grown = tokens[:prompt]
    lookup = Lookup(grown, prompt, Tally())
    for end in range(prompt, len(tokens) + at_once, at_once):
        grown += tokens[len(grown) : end]
        lookup.catch_up()
        slow = Slow(list(grown), prompt)
        assert lookup.found == (slow.at >= 0)
        assert chances(lookup, count) == pytest.approx(slow.chances(count))
        if lookup.found:
            assert guess(lookup, count) == slow.guess(count)


def test_what_was_said_before_is_guessed_on_and_longer_matches_are_surer():
    tokens = [*range(100, 140), 5, *range(100, 103)]
    lookup = Lookup(tokens, 40, Tally())
    assert not lookup.found
    lookup.catch_up()
    assert guess(lookup, 4) == (103, 104, 105, 106)
    first = chances(lookup, 30)
    assert all(a > b for a, b in pairwise(first))
    tokens += range(103, 130)
    lookup.catch_up()
    assert guess(lookup, 16) == (*range(130, 140), 5, *range(100, 105))  # on through the answer itself
    assert first[0] < chances(lookup, 1)[0] < 1


def test_it_learns_where_guesses_are_wrong():
    rng = np.random.default_rng(0)
    tokens, known = [1, 2, 3], Tally()
    lookup = Lookup(tokens, 3, known)
    assert chances(Lookup([1, 2, 9, 1, 2], 5, known), 1) == pytest.approx(RIGHT[:1])
    for _ in range(60):
        tokens += (1, 2, int(rng.integers(10, 1000)))
        lookup.catch_up()
    tokens += (1, 2)
    lookup.catch_up()
    assert chances(lookup, 1)[0] < 0.1
    assert chances(Lookup([1, 2, 9, 1, 2], 5, known), 1) == chances(lookup, 1)  # others of its expert begin with that
    assert known.rates()[5:] == pytest.approx(RIGHT[5:])
    for right, times in ((False, 4), (True, 1)):
        for _ in range(times * REMEMBERED):
            known.count(2, right)
    assert known.rate(2) > 0.7  # and what was long ago counts less

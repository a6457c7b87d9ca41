"""Foresight: tokens that may come next of a sequence, by its form and by what came before, and how likely each is.

    newest ..  F F F  s s  F F  s       F: the form leaves no other; s: what a source says, and the form allows
               chance 1  falls with each s

Knows nothing about devices or prices, or about what a form is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from coterie.core.values import value
from coterie.engine.request import Mask

LEAST_CHANCE = 0.1  # of a guess that no step is likely to pay for: what would come behind it is not looked for


class Source(Protocol):
    """Says what may come next."""

    def after(self, most: int, tail: Sequence[int] = ()) -> list[tuple[int, float]]:
        """Up to so many tokens, behind `tail`, each with how likely it is right if those before it are."""


@value
class Foreseen:
    """Tokens that may come next, and the chance that each, and all before it, do."""

    tokens: list[int]
    chances: list[float]


def foresee(sources: Sequence[Source], mask: Mask | None, most: int) -> Foreseen:
    """At most so many tokens. Of several sources the one that is surest of its first token is followed.

    The mask is left as it is.
    """
    seen, chance, ahead = Foreseen([], []), 1.0, None
    while len(seen.tokens) < most and chance >= LEAST_CHANCE:
        room, at = most - len(seen.tokens), mask if ahead is None else ahead
        forced = () if at is None else at.forced()[:room]
        run = [(token, 1.0) for token in forced] or _surest(sources, room, seen.tokens)
        if at is not None and (not forced or (sources and len(forced) < room)):
            ahead = at.copy() if ahead is None else ahead
            run = run[: ahead.take([token for token, _ in run])]
        for token, share in run:
            chance *= share
            seen.tokens.append(token)
            seen.chances.append(chance)
        if ahead is None or not run:
            break
    return seen


def _surest(sources: Sequence[Source], room: int, tail: Sequence[int]) -> list[tuple[int, float]]:
    found = [run for run in [source.after(room, tail) for source in sources] if run]
    return max(found, key=lambda run: run[0][1], default=[])

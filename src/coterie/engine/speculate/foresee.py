"""Foresight: tokens that may come next of a sequence, by its form and by what came before, and how likely each is.

    newest ..  F F F  s s  F F  s       F: the form leaves no other; s: what a source says, and the form allows
               chance 1  falls with each s

Knows nothing about devices or prices, or about what a form is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from coterie.core.values import value
from coterie.engine.request import Mask
from coterie.engine.speculate.habit import Habit

Run: TypeAlias = list[tuple[int, float]]  # tokens, each with how likely it is right if those before it are

LEAST_CHANCE = 0.1  # of a guess that no step is likely to pay for: what would come behind it is not looked for


class Source(Protocol):
    """Says what may come next."""

    def after(self, most: int, tail: Sequence[int] = ()) -> Run:
        """Up to so many tokens, behind `tail`, each with how likely it is right if those before it are."""


@value
class Foreseen:
    """Tokens that may come next, and the chance that each, and all before it, do."""

    tokens: list[int]
    chances: list[float]


def foresee(
    sources: Sequence[Source], mask: Mask | None, most: int, habit: Habit | None = None, newest: int = -1
) -> Foreseen:
    """At most so many tokens. Of several sources the one that is surest of its first token is followed.

    `habit`: that of the answer, whose newest token that is; where it is surest, it says one token. The mask is left as
    it is.
    """
    seen, chance, ahead = Foreseen([], []), 1.0, None
    while len(seen.tokens) < most and chance >= LEAST_CHANCE:
        room, at = most - len(seen.tokens), mask if ahead is None else ahead
        forced = () if at is None else at.forced()[:room]
        run = [(token, 1.0) for token in forced]
        if not forced:
            before = seen.tokens[-1] if seen.tokens else newest
            usual = habit.next(at, before) if habit is not None and at is not None else []
            run = _surest([source.after(room, seen.tokens) for source in sources], usual)
        if at is not None and len(forced) < room:
            ahead = at.copy() if ahead is None else ahead
            run = run[: ahead.take([token for token, _ in run])]
        for token, share in run:
            chance *= share
            seen.tokens.append(token)
            seen.chances.append(chance)
        if ahead is None or not run:
            break
    return seen


def _surest(said: Sequence[Run], usual: Run) -> Run:
    return max((run for run in (*said, usual) if run), key=lambda run: run[0][1], default=[])

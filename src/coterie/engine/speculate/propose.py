"""Proposes the next tokens of a sequence, from its grammar and from what came before, each with its chance.

    newest ..  F F F  s s  F F  s       F: forced by the grammar; s: from a source, and allowed by the grammar
               chance 1  falls with each s

Knows nothing about devices or prices, or about what a grammar is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from coterie.core.values import value
from coterie.engine.request import Mask
from coterie.engine.speculate.last_choices import LastChoices

Guesses: TypeAlias = list[tuple[int, float]]  # tokens, each with the chance that it is right if all before it are

MIN_CHANCE = 0.1  # guesses below this chance hardly ever pay, so the search stops there


class Source(Protocol):
    """Predicts the next tokens."""

    def after(self, max_tokens: int, tail: Sequence[int] = ()) -> Guesses:
        """Up to `max_tokens` that may follow `tail`, each with the chance that it is right if all before it are."""


@value
class Proposal:
    """Tokens that may come next, each with the chance that it and all before it are right."""

    tokens: list[int]
    chances: list[float]


def propose(
    sources: Sequence[Source],
    mask: Mask | None,
    max_tokens: int,
    last_choices: LastChoices | None = None,
    newest: int = -1,
) -> Proposal:
    """Propose at most `max_tokens`: those that the mask forces, else those of the source surest of its next token.

    `last_choices`: of an answer whose newest token is `newest`; if surest, it contributes one token.
    The mask is copied, never changed.
    """
    seen, chance, ahead = Proposal([], []), 1.0, None
    while len(seen.tokens) < max_tokens and chance >= MIN_CHANCE:
        room, at = max_tokens - len(seen.tokens), mask if ahead is None else ahead
        forced = () if at is None else at.forced()[:room]
        run = [(token, 1.0) for token in forced]
        if not forced:
            before = seen.tokens[-1] if seen.tokens else newest
            repeated = last_choices.next(at, before) if last_choices is not None and at is not None else []
            run = _surest([source.after(room, seen.tokens) for source in sources], repeated)
        if at is not None and len(forced) < room:
            ahead = at.copy() if ahead is None else ahead
            run = run[: ahead.accept_prefix([token for token, _ in run])]
        for token, share in run:
            chance *= share
            seen.tokens.append(token)
            seen.chances.append(chance)
        if ahead is None or not run:
            break
    return seen


def _surest(runs: Sequence[Guesses], repeated: Guesses) -> Guesses:
    return max((run for run in (*runs, repeated) if run), key=lambda run: run[0][1], default=[])

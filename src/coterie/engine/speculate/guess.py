"""Speculative decoding: how many tokens are drafted (guessed) for each sequence of a step, and which are accepted.

    last token, g1, g2, g3   one step computes them as a piece of a prompt, and draws after each:
    d1          d2  d3  d4   d1 is the next token. If it is g1, so is d2, and so on: here g1 = d1, g2 <> d2 keeps d1 d2

What is drawn after a token depends on those before it, the seed and the position alone, so with and without guesses
the tokens are the same; what is chosen on the host is chosen in this order too (choice.py). Knows nothing about what
the tokens mean, or about clocks: prices are in bytes read.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from coterie.device import Device
from coterie.engine.batch import Batch
from coterie.engine.policy import Policy
from coterie.engine.sequence import Sequence
from coterie.engine.served import ServedExpert
from coterie.engine.speculate.last_choices import LastChoices
from coterie.engine.speculate.lookup import Lookup, Tally
from coterie.engine.speculate.prediction import Prediction
from coterie.engine.speculate.price import BETWEEN_RUNS_BYTES, MIN_GAIN, Price
from coterie.engine.speculate.propose import Proposal, propose

TOGETHER = 4  # rows; steps have one guess, or all that are certain, or fill so many: a device keeps few sizes ready
NOTHING = Proposal([], [])
MAX_SLOWER = 1.5  # how much longer a step may take for those that gain nothing by it


@dataclass(frozen=True, slots=True)
class _Known:
    """Of an expert: what guesses take, and how often they were right."""

    price: Price
    tally: Tally


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of an expert: how many guesses a sequence may have, and how many one whose answer has a form (a grammar)."""

    free: int
    formed: int


class Guesser:
    """Guesses by looking up, by predictions and by forms, where that is worth what it takes.

    Of small experts only what a form leaves few tokens for is guessed. Where tokens are made up there is nothing to
    guess, and a state of all tokens together cannot be taken back.
    """

    def __init__(self, policy: Policy, device: Device) -> None:
        self._policy, self._spec, self._made_up = policy, device.spec, device.synthetic()
        self._max_rows = min(policy.max_batch, policy.max_step_tokens)
        self._experts: dict[str, _Known] = {}
        self._limits: dict[str, _Limits] = {}

    def guess(self, expert: ServedExpert, sequences: Seq[Sequence], steps: int) -> list[tuple[int, ...]] | None:
        """What is guessed of each of these, all of which decode; None where `steps` steps without are better."""
        limits = self._limits.get(expert.expert_id) or self._limits_of(expert)
        if not limits.formed or len(sequences) >= self._max_rows:
            return None
        if not limits.free and not any(sequence.mask is not None for sequence in sequences):
            return None
        known = self._known(expert)
        seen = [_propose(sequence, known.tally, limits) for sequence in sequences]
        chances: list[tuple[float, int, int]] = []
        for number, its in enumerate(seen):
            chances += [(chance, -place, number) for place, chance in enumerate(its.chances)]
        if not chances:
            return None
        chances.sort(reverse=True)
        counts = self._counts(known.price, sequences, chances, steps)
        return [tuple(its.tokens[:count]) for its, count in zip(seen, counts, strict=True)] if any(counts) else None

    def renewed(self, expert_id: str) -> None:
        """What is served under this name is another expert."""
        self._experts.pop(expert_id, None)
        self._limits.pop(expert_id, None)

    def _limits_of(self, expert: ServedExpert) -> _Limits:
        found = _Limits(0, 0)
        if not (self._made_up or expert.kv.recurrent):
            policy, spec = self._policy, self._spec
            found = _Limits(policy.guesses_of(expert.weight_bytes, spec), policy.guesses_by_form_of(spec))
        self._limits[expert.expert_id] = found
        return found

    def _known(self, expert: ServedExpert) -> _Known:
        known = self._experts.get(expert.expert_id)
        if known is None:
            known = _Known(Price.of(expert, self._policy.balance_of(self._spec)), Tally())
            self._experts[expert.expert_id] = known
        return known

    def _counts(
        self, price: Price, sequences: Seq[Sequence], chances: Seq[tuple[float, int, int]], steps: int
    ) -> list[int]:
        """How many guesses for each sequence give the most tokens for their price; all 0 where none are better.

        Guesses are added one by one, the likeliest first; what counts is the best number on that way.
        `chances`: of each guess (chance, -place in its sequence, sequence), sorted so that a sequence's are in order.
        """
        tokens, taken = float(len(sequences)), price.step(sequences) + BETWEEN_RUNS_BYTES
        plain = taken - BETWEEN_RUNS_BYTES * (1 - 1 / steps)
        best = MIN_GAIN * tokens / plain
        counts, found = [0] * len(sequences), [0] * len(sequences)
        room = self._max_rows - len(sequences)
        certain = min(sum(chance == 1 for chance, _, _ in chances), room)
        for count, (chance, _, number) in enumerate(chances[:room], start=1):
            tokens += chance
            taken += price.guess(sequences[number], len(sequences) + count)
            counts[number] += 1
            fits = count in (1, certain) or (count + 1) % TOGETHER == 0
            if fits and tokens / taken >= best and (taken <= MAX_SLOWER * plain or all(counts)):
                best, found = tokens / taken, counts.copy()
        return found


def _propose(sequence: Sequence, tally: Tally, limits: _Limits) -> Proposal:
    count = min(limits.free if sequence.mask is None else limits.formed, sequence.tokens_left - 1)
    if count < 1:
        return NOTHING
    sources = _sources(sequence, tally) if limits.free else ()
    for source in sources:
        source.catch_up()
    chooser = sequence.chooser
    if sequence.mask is None or chooser is None:
        return propose(sources, None, count) if any(source.found for source in sources) else NOTHING
    if chooser.last_choices is None:
        chooser.last_choices = LastChoices()
    return propose(sources, sequence.mask, count, chooser.last_choices, sequence.tokens[-1])


def _sources(sequence: Sequence, tally: Tally) -> Seq[Lookup | Prediction]:
    """What says what may come next; what is equally sure of it is asked in this order."""
    tokens, request = sequence.tokens, sequence.request
    if sequence.lookup is None:
        sequence.lookup = Lookup(tokens, len(request.prompt_ids), tally)
    if not request.prediction:
        return (sequence.lookup,)
    if sequence.prediction is None:
        sequence.prediction = Prediction(request.prediction, tokens, len(request.prompt_ids))
    return sequence.prediction, sequence.lookup


def keep_guesses(batch: Batch, by_row: list[list[int]]) -> tuple[int, int]:
    """Give each sequence that was guessed for the tokens that were drawn behind right guesses; how many were guessed,
    and how many of these were right.
    """
    guessed = right = 0
    for guess in batch.guessed:
        drawn, sequence = by_row[guess.row], guess.sequence
        # Of those chosen on the host this has been done, row by row.
        for row, token in enumerate(guess.tokens if sequence.chooser is None else (), start=guess.first_row):
            if drawn[-1] != token or token in sequence.end_ids:
                break
            drawn += by_row[row]
        accepted = len(drawn) - 1
        sequence.computed += accepted
        sequence.guessed += len(guess.tokens)
        sequence.accepted += accepted
        guessed += len(guess.tokens)
        right += accepted
    return guessed, right

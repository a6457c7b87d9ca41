"""Speculative decoding: how many tokens are drafted (guessed) for each sequence of a step, and which are accepted.

    last token, g1, g2, g3   one step computes them like a piece of a prompt, and draws after each:
    d1          d2  d3  d4   d1 is the next token. If it is g1, so is d2, and so on: here g1 = d1, g2 <> d2 keeps d1 d2

A drawn token depends only on the tokens before it, the seed and the position, so the output is the same with and
without guesses; tokens chosen on the host are chosen in this order too (choice.py). Knows nothing about what the tokens
mean, or about clocks: prices are in bytes read.
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

# A step of one sequence has a multiple of this many rows, unless it has one guess or exactly the certain ones: devices
# keep few sizes ready.
TOGETHER = 4
NOTHING = Proposal([], [])
MAX_SLOWER = 1.5  # bound on how much longer a step may take while some sequences gain nothing from it


@dataclass(frozen=True, slots=True)
class _Known:
    """Of an expert: the price of its steps and guesses, and its acceptance rates."""

    price: Price
    tally: Tally


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of an expert: the most guesses for an unconstrained sequence, and for one constrained by a grammar."""

    free: int
    constrained: int


class Guesser:
    """Guesses by prompt lookup, predictions and grammars, where that pays.

    For small experts it guesses only from grammars. It guesses nothing for synthetic tokens, nor for recurrent models,
    whose state cannot be rolled back.
    """

    def __init__(self, policy: Policy, device: Device) -> None:
        self._policy, self._spec, self._made_up = policy, device.spec, device.synthetic()
        self._max_rows = min(policy.max_batch, policy.max_step_tokens)
        self._experts: dict[str, _Known] = {}
        self._limits: dict[str, _Limits] = {}

    def guess(self, expert: ServedExpert, sequences: Seq[Sequence], steps: int) -> list[tuple[int, ...]] | None:
        """Guesses for each of these sequences, which all decode; None if `steps` steps without guesses are better."""
        limits = self._limits.get(expert.expert_id) or self._limits_of(expert)
        if not limits.constrained or len(sequences) >= self._max_rows:
            return None
        if not limits.free and not any(sequence.mask is not None for sequence in sequences):
            return None
        known = self._known(expert)
        proposals = [_propose(sequence, known.tally, limits) for sequence in sequences]
        chances: list[tuple[float, int, int]] = []
        for number, proposal in enumerate(proposals):
            chances += [(chance, -place, number) for place, chance in enumerate(proposal.chances)]
        if not chances:
            return None
        chances.sort(reverse=True)
        counts = self._counts(known.price, sequences, chances, steps)
        if not any(counts):
            return None
        return [tuple(proposal.tokens[:count]) for proposal, count in zip(proposals, counts, strict=True)]

    def renewed(self, expert_id: str) -> None:
        """An expert was replaced: forget what is known about it."""
        self._experts.pop(expert_id, None)
        self._limits.pop(expert_id, None)

    def _limits_of(self, expert: ServedExpert) -> _Limits:
        found = _Limits(0, 0)
        if not (self._made_up or expert.kv.recurrent):
            policy, spec = self._policy, self._spec
            found = _Limits(policy.guesses_of(expert.weight_bytes, spec), policy.constrained_guesses_of(spec))
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
        """The number of guesses for each sequence that gives the most tokens for their price; all 0 if none pay.

        Greedy: guesses are added one by one, likeliest first, and the best count on the way is kept.
        `chances`: for each guess (chance, -place in its sequence, sequence), sorted so that a sequence's are in order.
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
    count = min(limits.free if sequence.mask is None else limits.constrained, sequence.tokens_left - 1)
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
    """The sources of guesses; ties in confidence go to the first."""
    tokens, request = sequence.tokens, sequence.request
    if sequence.lookup is None:
        sequence.lookup = Lookup(tokens, len(request.prompt_ids), tally)
    if not request.prediction:
        return (sequence.lookup,)
    if sequence.prediction is None:
        sequence.prediction = Prediction(request.prediction, tokens, len(request.prompt_ids))
    return sequence.prediction, sequence.lookup


def keep_guesses(batch: Batch, by_row: list[list[int]]) -> tuple[int, int]:
    """Append to each sequence's drawn token those drawn after correct guesses.

    Returns how many tokens were guessed, and how many of them accepted.
    """
    guessed = right = 0
    for guess in batch.guessed:
        drawn, sequence = by_row[guess.row], guess.sequence
        # For sequences with a chooser, choose_rows has done this already.
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

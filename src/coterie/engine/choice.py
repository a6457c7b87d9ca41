"""Choice: chooses tokens on the host, from a sequence's row of logits, where a request asks for more than sampling.

    logits -> penalties -> bias -> mask -> draw -> token            (graph/sampling.py defines all but masks)
       `----> log-softmax -> logprobs of the token and of the likeliest

A device that applies penalties and biases itself draws from the changed logits; only masks and logprobs then remain.

Such a sequence's batch runs one step at a time, as with stop strings; other sequences keep the device's tokens.
Speculated tokens are walked through one by one, as far as they match what is chosen, so masks, penalties and logprobs
come out as without speculation.
Knows nothing about clocks, requests' texts or what a mask stands for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np

from coterie.core.errors import CoterieError, RequestError, UnsupportedError
from coterie.device import F32, Device, Event, Sampling
from coterie.engine.history import History
from coterie.engine.request import ChoiceParams, Mask, TokenLogprobs
from coterie.engine.speculate.last_choices import LastChoices
from coterie.graph.sampling import changed, draw

if TYPE_CHECKING:
    from coterie.engine.batch import Batch, Guessed
    from coterie.engine.sequence import Sequence


class Chooser:
    """Chooses the tokens of one answer, in order. `logprobs`: those not yet taken for reporting."""

    def __init__(self, params: ChoiceParams, sampling: Sampling, prompt_ids: Seq[int], end_ids: Seq[int]) -> None:
        self._params, self._sampling, self._end_ids = params, sampling, end_ids
        self._history = History(params, prompt_ids)
        self._before = prompt_ids[-1]
        self.last_choices: LastChoices | None = None  # set by the guesser, to learn this answer's choices
        self.logprobs: tuple[TokenLogprobs, ...] = ()

    def anew(self, prompt_ids: Seq[int]) -> Chooser:
        """A chooser for the same answer from its beginning. Not for one with a mask, whose state has advanced."""
        return Chooser(self._params, self._sampling, prompt_ids, self._end_ids)

    @property
    def complete(self) -> bool:
        """True if the answer must end after the last token."""
        mask = self._params.mask
        return mask is not None and mask.complete

    def take_logprobs(self) -> tuple[TokenLogprobs, ...]:
        """The logprobs to report; each is returned once."""
        taken, self.logprobs = self.logprobs, ()
        return taken

    def drop_logprobs(self, count: int) -> None:
        """Discard those of the last `count` tokens: the answer ended before them."""
        self.logprobs = self.logprobs[: len(self.logprobs) - count]

    @property
    def needs_logits(self) -> bool:
        """True if the next token depends on the logits, or logprobs are reported."""
        mask = self._params.mask
        return mask is None or self._params.top_logprobs is not None or not mask.forced()

    def choose(self, logits_V: F32 | None, drawn: int, position: int) -> int:
        """The token after `position`, given the logits there; `drawn` is what the device drew from them.

        `logits_V` may be None if `needs_logits` is False. Raises CoterieError if the mask allows no token.
        """
        params, token = self._params, drawn
        if params.changes_logits:
            mask = params.mask
            forced = () if mask is None else mask.forced()
            token = forced[0] if forced else self._drawn(_known(logits_V), position)
            if mask is not None and not forced and self.last_choices is not None:
                self.last_choices.learn(mask.choice_key(), self._before, token)
            self._before = token
            self._history.note(token)
            if mask is not None and token not in self._end_ids:
                mask.accept(token)
        if params.top_logprobs is not None:
            self.logprobs += (logprobs_of(_known(logits_V), token, params.top_logprobs),)
        return token

    def _drawn(self, logits_V: F32, position: int) -> int:
        """A draw from `changed`, restricted to allowed tokens beforehand: a fifth of the work, or far less."""
        z, mask = changed(logits_V, self._history.changes()), self._params.mask
        if mask is None:
            return draw(z, self._sampling, position)
        ids = np.flatnonzero(mask.allowed()[: len(z)])
        place = draw(z[ids], self._sampling, position)
        return place if place < 0 else int(ids[place])

    def score(self, logits_RV: F32, tokens: Seq[int]) -> None:
        """Report the logprobs of prompt tokens; row i holds the logits that precede token i."""
        top = self._params.top_logprobs or 0
        self.logprobs += tuple([logprobs_of(row, token, top) for row, token in zip(logits_RV, tokens, strict=True)])

    def changed(self, logits_V: F32) -> F32:
        """The logits that the next token is drawn from; -inf for tokens that the mask forbids."""
        z, mask = changed(logits_V, self._history.changes()), self._params.mask
        return z if mask is None else masked(z, mask)


def masked(z_V: F32, mask: Mask) -> F32:
    """The logits of allowed tokens, and -inf for all others."""
    allowed = mask.allowed()[: len(z_V)]
    found = np.full_like(z_V, -np.inf)
    found[: len(allowed)][allowed] = z_V[: len(allowed)][allowed]
    return found


def logprobs_of(logits_V: F32, token: int, count: int) -> TokenLogprobs:
    """log softmax, in float64, of a token and of the `count` likeliest ones: best first, ties by lower id."""
    max_logit = float(logits_V.max())
    z = logits_V.astype(np.float64)
    z -= max_logit
    log_sum = max_logit + math.log(np.exp(z, out=z).sum())
    best: Iterable[int] = ()
    if count == 1:
        best = [int(logits_V.argmax())]
    elif count:
        count = min(count, len(logits_V))
        threshold = np.partition(logits_V, len(logits_V) - count)[len(logits_V) - count]
        candidates = np.flatnonzero(logits_V >= threshold)
        best = candidates[np.argsort(-logits_V[candidates], kind="stable")][:count].tolist()
    return TokenLogprobs(
        token, float(logits_V[token]) - log_sum, tuple([(int(i), float(logits_V[i]) - log_sum) for i in best])
    )


def check_choice(params: ChoiceParams, vocab_size: int, synthetic: bool) -> None:
    """Raise RequestError for a token outside the vocabulary, UnsupportedError if the device has no logits."""
    if params.needs_logits and synthetic:
        asked = "logprobs, penalties, logit_bias, response_format and constrained tool calls"
        fact = f"{asked} need logits, and this device's tokens are synthetic"
        raise UnsupportedError("request", fact, "ask a real device, or leave them out")
    for token, _ in params.logit_bias:
        if token >= vocab_size:
            fact = f"names token {token} but the vocabulary has {vocab_size}"
            raise RequestError("logit_bias", fact, f"give ids up to {vocab_size - 1}")


def choose_rows(device: Device, event: Event, batch: Batch, by_row: list[list[int]]) -> dict[int, CoterieError]:
    """Replace the device's draws by chosen tokens, where sequences ask for it; returns errors by row.

    Also scores the prompts in the batch.
    """
    failed: dict[int, CoterieError] = {}
    for scored in batch.scored:
        rows, first = range(scored.first_row, scored.first_row + scored.count), scored.position + 1
        tokens = scored.sequence.tokens[first : first + scored.count]
        _chooser(scored.sequence).score(device.logits(event, rows), tokens)
    if not batch.chosen:  # only prompts were scored
        return failed
    reading = [row for row in batch.chosen if _chooser(batch.sampled[row]).needs_logits]
    logits = dict(zip(reading, device.logits(event, reading), strict=True)) if reading else {}
    guesses = {guess.row: guess for guess in batch.guessed}
    for row in batch.chosen:
        sequence = batch.sampled[row]
        try:
            first = _chooser(sequence).choose(logits.get(row), by_row[row][0], len(sequence.tokens) - 1)
        except CoterieError as error:
            failed[row] = error
            continue
        by_row[row] = (
            [first, *_choose_after_guesses(device, event, guesses[row], first, by_row)] if row in guesses else [first]
        )
    return failed


def _choose_after_guesses(device: Device, event: Event, guess: Guessed, token: int, by_row: Seq[Seq[int]]) -> list[int]:
    """The tokens that follow correct guesses; `token` is the one that the first guess must match.

    Stops at the first token that cannot be chosen: the next step begins there, and reports the error.
    """
    sequence, chooser, found = guess.sequence, _chooser(guess.sequence), list[int]()
    for place, guessed in enumerate(guess.tokens):
        if token != guessed or token in sequence.end_ids or chooser.complete:
            break
        row = guess.first_row + place
        logits_V = device.logits(event, [row])[0] if chooser.needs_logits else None
        try:
            token = chooser.choose(logits_V, by_row[row][0], len(sequence.tokens) + place)
        except CoterieError:
            break
        found.append(token)
    return found


def _known(logits_V: F32 | None) -> F32:
    if logits_V is None:
        raise RuntimeError("a token is to be chosen by logits that nobody read")
    return logits_V


def _chooser(sequence: Sequence) -> Chooser:
    if sequence.chooser is None:
        raise RuntimeError(f"sequence {sequence.number} is to be chosen for and asks for nothing")
    return sequence.chooser

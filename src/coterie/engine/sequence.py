"""Sequence: a request in progress, from submission to its last token.

    tokens     | prompt ............ | generated ... |
               | cached | computed (in KV) ->         next step takes tokens[computed:...]

Knows nothing about scheduling or devices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from coterie.core.errors import CoterieError, TransferError
from coterie.device import Sampling
from coterie.engine.choice import Chooser
from coterie.engine.history import History
from coterie.engine.loads import Load
from coterie.engine.request import FinishReason, Output, Request, Timings
from coterie.engine.speculate.lookup import Lookup
from coterie.engine.speculate.prediction import Prediction
from coterie.engine.stop_text import StopText
from coterie.engine.vectors import Pool


class Sequence:
    """A request with its tokens so far, its place in the KV cache and what chooses its tokens.

    number: its place in the order of arrival, assigned by the queue.
    priority: the request's, or a better one that it was raised to. paused: it gave up its KV state to a sequence of
        better priority.
    computed: how many of its tokens are in the KV cache; cached_tokens: how many of these were there when it began.
    begun: its KV blocks have been chosen.
    scored: how many leading prompt tokens need their logits (or vectors) read. pool: collects the vector, if one is
        wanted.
    end_ids: the tokens that end it.
    guessed, accepted: speculated tokens, and how many of them were accepted.
    owed: tokens drawn with weights that may have changed since; they must be drawn again, and come out the same.
    history: turns penalties and biases into changes of the logits, if requested and if the device applies them
        (`changes_logits`). Not used together with a mask, which only the host can apply.
    chooser: chooses its tokens on the host, if the request asks for more than sampling.
    """

    def __init__(self, request: Request, max_context: int, arrival_s: float, changes_logits: bool = False) -> None:
        self.request, self.number, self.arrival_s = request, -1, arrival_s
        self.priority, self.paused = request.priority, False
        self.tokens = list(request.prompt_ids)
        self.computed = self.cached_tokens = 0
        self.begun = False
        self.lookup: Lookup | None = None  # created on first use
        self.prediction: Prediction | None = None  # likewise, if the request has one
        self.guessed = self.accepted = 0
        self.owed: list[int] = []
        self.max_length = min(len(self.tokens) + request.max_tokens, max_context)
        self.blocks = 0
        self.load: Load | None = None
        self.scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.overtaken = 0
        self.queue_admissions = 0
        self.admissions_at_arrival = 0
        s = request.sampling
        own = Sampling(s.temperature, s.top_k, s.top_p, s.min_p, s.seed)
        self.end_ids = () if request.ignore_end else request.end_ids
        choice = request.choice
        self.mask = choice.mask
        self.history: History | None = None
        if changes_logits and choice.changes_logits and choice.mask is None:
            self.history, choice = History(choice, request.prompt_ids), choice.host_part
        # The host changes these logits, so the device's draw is discarded: draw greedily, which is cheapest.
        self._sampling = Sampling() if choice.changes_logits else own
        self.chooser = Chooser(choice, own, request.prompt_ids, self.end_ids) if choice.needs_logits else None
        scores_all = request.choice.score_prompt or request.pooling == "mean"
        self.scored = min(len(self.tokens) - 1, len(self.tokens) if scores_all else int(request.pooling == "first"))
        self.pool = None if request.pooling is None else Pool(request.pooling)
        self._text = StopText(request.stop)
        # Without text or end tokens, only the length can end it. (Stop strings need a detokenizer.)
        self._only_length = request.detokenizer is None and not self.end_ids and self.chooser is None

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: the lesser goes first."""
        return self.priority, self.number

    @property
    def sampling(self) -> Sampling:
        """How the next token is drawn. With a history, valid for one token only."""
        return self.sampling_after(())

    def sampling_after(self, guesses: tuple[int, ...]) -> Sampling:
        """How the token after these guesses is drawn."""
        return (
            self._sampling if self.history is None else replace(self._sampling, changes=self.history.changes(guesses))
        )

    def draw_as(self, other: Sequence) -> None:
        """Use the sampling of another sequence that has the same tokens."""
        self._sampling = other.sampling

    @property
    def kv_tokens(self) -> int:
        """Upper bound on tokens with KV state: all but the last drawn one, which is never fed back."""
        return self.max_length - 1

    @property
    def decoding(self) -> bool:
        """True if all but the newest token are in the KV cache, so that a step takes one token."""
        return len(self.tokens) - self.computed == 1

    @property
    def tokens_left(self) -> int:
        """How many more tokens may be drawn."""
        return self.max_length - len(self.tokens)

    @property
    def steps_alone(self) -> bool:
        """True if the host decides something after each of its steps."""
        return bool(self.request.stop) or self.chooser is not None

    def pause(self) -> None:
        """Give up the KV state, to continue later in other blocks. A cache miss is recomputed; no token is redrawn."""
        self.paused |= self.computed > 0
        self.computed, self.begun = 0, False

    def begin_again(self) -> bool:
        """Drop the KV state and the drawn tokens: everything is recomputed and drawn again, without showing it again.

        Returns False and changes nothing if a mask has advanced or the prompt is scored: neither can be undone.
        """
        request, drawn = self.request, self.tokens[len(self.request.prompt_ids) :] + self.owed
        if request.choice.score_prompt or (self.mask is not None and drawn):
            return False
        if self.chooser is not None and drawn:
            self.chooser = self.chooser.anew(request.prompt_ids)
        self.tokens, self.owed = list(request.prompt_ids), drawn
        self.computed = self.cached_tokens = 0
        self.begun = False
        self.lookup = self.prediction = None
        self.history = None if self.history is None else History(request.choice, request.prompt_ids)
        self.pool = None if request.pooling is None else Pool(request.pooling)
        return True

    def draw_again(self, tokens: list[int]) -> bool:
        """Take owed tokens from the front of `tokens`; False if they differ."""
        count = min(len(tokens), len(self.owed))
        if tokens[:count] != self.owed[:count]:
            return False
        for token in tokens[:count]:
            self.tokens.append(token)
            self._note(token)
        del tokens[:count], self.owed[:count]
        if self.chooser is not None:
            self.chooser.logprobs = self.chooser.logprobs[count:]
        return True

    def output(
        self,
        tokens: tuple[int, ...],
        text: str,
        reason: FinishReason | None = None,
        error: CoterieError | None = None,
        timings: Timings | None = None,
    ) -> Output:
        """The output of a step. Takes pending logprobs, if requested, and pending reasoning."""
        request, detokenizer = self.request, self.request.detokenizer
        logprobs = () if self.chooser is None else self.chooser.take_logprobs()
        reasoning = "" if detokenizer is None else detokenizer.take_reasoning()
        fields = tokens, text, reason, error, timings, logprobs, reasoning
        return Output(request.request_id, request.expert_id, *fields, () if self.pool is None else self.pool.vector)

    def accept_all(self, tokens: list[int]) -> tuple[int, str, FinishReason | None]:
        """Append drawn tokens up to one that ends it; returns their number, the text to show, the finish reason."""
        if self._only_length:
            left = self.tokens_left
            for token in tokens[:left] if self.history is not None else ():
                self._note(token)
            if len(tokens) < left:
                self.tokens += tokens
                return len(tokens), "", None
            self.tokens += tokens[:left]
            return left, "", "length"
        shown = []
        for count, token in enumerate(tokens, start=1):
            later = len(tokens) - count
            text, reason = self.accept(token, not later)
            shown.append(text)
            if reason is not None:
                if self.chooser is not None and later:
                    self.chooser.drop_logprobs(later)
                return count, "".join(shown), reason
        return len(tokens), "".join(shown), None

    def accept(self, token: int, is_newest: bool = True) -> tuple[str, FinishReason | None]:
        """Append a drawn token; returns the text that can be shown now, and the finish reason if it ends the sequence.

        `is_newest`: no later token was drawn, so that the chooser's state applies to this one.
        """
        self.tokens.append(token)
        self._note(token)
        ended = token in self.end_ids
        text = "" if ended else self._show(token)
        complete = is_newest and self.chooser is not None and self.chooser.complete
        if self._text.stopped or ended or complete:
            return text + self.flush(), "stop"
        if self.tokens_left == 0:
            rest = self.flush()
            return text + rest, "stop" if self._text.stopped else "length"
        return text, None

    def timings(self, end_s: float, ready_s: float | None) -> Timings:
        """Timings of an ended sequence; `ready_s`: when its expert's load, if any, was over."""
        load, predicted = self.load, (0, 0)
        if self.prediction is not None:
            self.prediction.catch_up()
            predicted = self.prediction.counts
        waited = load is not None and (ready_s is None or ready_s > self.arrival_s)
        return Timings(
            arrival_s=self.arrival_s,
            scheduled_s=self.scheduled_s,
            first_token_s=self.first_token_s,
            end_s=end_s,
            hit=not waited,
            switch_s=(end_s if ready_s is None else ready_s) - load.want_s if waited and load is not None else 0.0,
            queue_admissions=self.queue_admissions,
            overtaken=self.overtaken,
            cached_tokens=self.cached_tokens,
            guessed_tokens=self.guessed,
            accepted_tokens=self.accepted,
            reasoning_tokens=0 if self.request.detokenizer is None else self.request.detokenizer.reasoning_tokens,
            predicted_tokens=predicted[0],
            unpredicted_tokens=predicted[1],
        )

    def flush(self) -> str:
        """The text still held back, once no more tokens will come."""
        detokenizer = self.request.detokenizer
        tail = self._text.push(detokenizer.flush()) if detokenizer is not None else ""
        return tail + self._text.flush()

    def _note(self, token: int) -> None:
        if self.history is not None:
            self.history.note(token)

    def _show(self, token: int) -> str:
        detokenizer = self.request.detokenizer
        return "" if detokenizer is None else self._text.push(detokenizer.push(token))


def drawn_again(sampled: Iterable[Sequence], by_row: list[list[int]]) -> dict[int, CoterieError]:
    """Settle what sequences owe with the tokens drawn in their rows; returns, by row, errors that end a sequence."""
    failed: dict[int, CoterieError] = {}
    for row, sequence in enumerate(sampled):
        if sequence.owed and not sequence.draw_again(by_row[row]):
            fact = "its files changed while it answered, and by what they hold now it would have answered otherwise"
            failed[row] = TransferError(sequence.request.expert_id, fact, "ask again")
    return failed

"""What goes into the engine and what comes out: requests, sampling settings, outputs and their timings.

Knows nothing about devices, experts' weights or how requests are scheduled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from coterie.core.errors import CoterieError, RequestError
from coterie.core.sampling import check_seed, check_setting, check_within
from coterie.core.values import value
from coterie.engine.vectors import Pooling

if TYPE_CHECKING:
    from coterie.checkpoint.tokenizer import Detokenizer

FinishReason = Literal["stop", "length", "error", "cancelled"]

MAX_TOP_LOGPROBS = 20
MAX_BIAS = 100.0  # either way: enough to forbid a token, or to leave no other


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 mean no limit.

    Raises RequestError naming the field and its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_k", "top_p", "min_p"):
            check_setting(name, getattr(self, name))
        check_seed(self.seed)


class Mask(Protocol):
    """Which tokens may come next in one answer. It is told of each token that did; it has the state of that answer.

    Once it has raised an error it raises one whenever it is asked again.
    """

    def allowed(self) -> npt.NDArray[np.bool_]:
        """For each token whether it may come next [V or fewer: those beyond may not]. Raises CoterieError for none."""

    def accept(self, token: int) -> None:
        """This token has come. Raises CoterieError when it might not."""

    def forced(self) -> tuple[int, ...]:
        """Tokens known to come next, in this order: `allowed` leaves no other than the first, and so on behind it."""

    def few(self) -> bytes | None:
        """Which tokens may come next, to be compared; None where so many may that what came before tells nothing."""

    def copy(self) -> Mask:
        """One of the same state, by which to see what may come later."""

    def take(self, tokens: Sequence[int]) -> int:
        """Accept these tokens, in order, up to the first one that may not come; how many."""

    @property
    def complete(self) -> bool:
        """True when nothing may follow."""


@dataclass(frozen=True, slots=True)
class ChoiceParams:
    """What is asked of the choice of tokens beyond how they are drawn; by default nothing.

    `top_logprobs`: report the logprob of each token, and those of so many likeliest ones (0 to 20; None: report none).
    Penalties lower the logits of tokens that came before: `presence_penalty` once and `frequency_penalty` for each time
    in the answer so far; `repetition_penalty` divides those above 0, and multiplies those below, of the prompt too.
    `logit_bias`: (token id, number) pairs, each added to that token's logit. `mask`: which tokens may come at all.
    `score_prompt`: report the logprobs of the prompt's tokens too, but for its first; then all of it is computed.
    Raises RequestError naming the field and its range.
    """

    top_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    mask: Mask | None = None
    score_prompt: bool = False

    def __post_init__(self) -> None:
        top = self.top_logprobs or 0
        if self.score_prompt and self.top_logprobs is None:
            raise RequestError(
                "score_prompt", "is set, but no logprobs are asked for", "set top_logprobs, to 0 or more"
            )
        check_within("top_logprobs", top, 0 <= top <= MAX_TOP_LOGPROBS, f"0 to {MAX_TOP_LOGPROBS}")
        for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
            check_setting(name, getattr(self, name))
        for token, bias in self.logit_bias:
            fits = token >= 0 and abs(bias) <= MAX_BIAS
            check_within(f"logit_bias of {token}", bias, fits, f"{-MAX_BIAS:g} to {MAX_BIAS:g} for token ids from 0")

    @property
    def changes_logits(self) -> bool:
        """True when tokens are drawn from other logits than the model's."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty
        return penalties != (0, 0, 1) or bool(self.logit_bias) or self.mask is not None

    @property
    def unchanged(self) -> ChoiceParams:
        """What is left to ask where a device changes logits by the penalties and biases."""
        return replace(self, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, logit_bias=())

    @property
    def asks(self) -> bool:
        """True when tokens must be chosen by the logits of each step, or these are reported."""
        return self.top_logprobs is not None or self.changes_logits


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token of an answer, the natural logarithm of its probability, and the same of the likeliest, best first.

    The model's own: the softmax of its logits, before bias, penalties, mask and temperature.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for one expert. Generation ends at an id of `end_ids`, at a `stop` string, or after `max_tokens`.

    `ignore_end` draws exactly `max_tokens` (for workloads of fixed length). Without a `detokenizer` there is no text,
    and then no stop strings either. `reuse` False: its tokens are made up and stand for others, so that it shares no KV
    state, neither what is there nor its own. `client`: who asks, for a share of the queue (admission.py);
    "" has none. `priority`: the lower, the sooner; of equal ones the first comes first. `prediction`: tokens that the
    answer is expected to repeat, with changes; none of it changes by them.
    `pooling`: no tokens are drawn, but the prompt's vector is given: of its first or last token, or the mean of all.
    `types`: which text of a pair each token of the prompt is of, for who tells them apart; empty: there is one text.
    Raises RequestError naming the field.
    """

    request_id: str
    expert_id: str
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    end_ids: tuple[int, ...] = ()
    ignore_end: bool = False
    detokenizer: Detokenizer | None = None
    reuse: bool = True
    client: str = ""
    choice: ChoiceParams = ChoiceParams()
    prediction: tuple[int, ...] = ()
    pooling: Pooling | None = None
    types: tuple[int, ...] = ()
    priority: int = 0

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError("prompt", "the prompt is empty", "give at least one token")
        check_within("max_tokens", self.max_tokens, self.max_tokens >= 1, "1 or more")
        if not isinstance(self.max_tokens, int):
            raise RequestError("max_tokens", f"max_tokens is {self.max_tokens!r}", "give a whole number")
        if type(self.priority) is not int:
            raise RequestError("priority", f"is {self.priority!r}", "give a whole number: the lower, the sooner")
        if "" in self.stop:
            raise RequestError("stop", "a stop string is empty", "leave it out")
        if self.stop and self.detokenizer is None:
            raise RequestError("stop", "stop strings were given for token ids without text", "give a detokenizer too")
        if (self.choice.score_prompt or self.pooling in ("first", "mean")) and self.reuse:
            why = "scored" if self.choice.score_prompt else f"pooled by its {self.pooling}"
            fact = f"is set though the prompt is {why}, for which all of it is computed"
            raise RequestError("reuse", fact, "unset it")
        if self.types and len(self.types) != len(self.prompt_ids):
            fact = f"has {len(self.types)} numbers for {len(self.prompt_ids)} tokens"
            raise RequestError("types", fact, "give one for each token")
        if self.choice.mask is not None and self.ignore_end:
            raise RequestError(
                "ignore_end",
                "is set, but the answer is constrained, and the constraint says where it ends",
                "leave it out",
            )


@value
class Timings:
    """When things happened, in seconds on the device's clock.

    `hit`: the expert was resident when the request arrived; else `switch_s` is the time from wanting it to all of it
    being there, or to the end of the answer where that came first. `queue_admissions`: requests admitted while this one
    waited; `overtaken`: those of them that came later. `cached_tokens`: of the prompt, those whose KV state was there.
    `guessed_tokens`: drafted by speculative decoding; `accepted_tokens`: those of them that were drawn.
    `reasoning_tokens`: of the answer's, those of what was thought before it.
    `predicted_tokens`: of a prediction's, those that came where it was followed; `unpredicted_tokens`: its others. Both
    are 0 where nothing is guessed.
    """

    arrival_s: float
    scheduled_s: float | None
    first_token_s: float | None
    end_s: float
    hit: bool = True
    switch_s: float = 0.0
    queue_admissions: int = 0
    overtaken: int = 0
    cached_tokens: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    reasoning_tokens: int = 0
    predicted_tokens: int = 0
    unpredicted_tokens: int = 0

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token, from arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s


@value
class Output:
    """What one step made for one request. The last one has a `finish_reason` and the timings.

    `token_ids` are the new tokens, an end token included; `text` is the new text, without end tokens and stop strings.
    `reasoning` is new text that was thought before the answer, and is no part of it.
    `logprobs`, where they were asked for: one for each of `token_ids`; before the first one, those of the prompt, if
    it is scored. `vector`: of the last one, where a vector was asked for in place of tokens.
    """

    request_id: str
    expert_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    error: CoterieError | None = None
    timings: Timings | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    reasoning: str = ""
    vector: tuple[float, ...] = ()

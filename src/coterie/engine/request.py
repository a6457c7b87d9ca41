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
MAX_BIAS = 100.0  # in both directions: enough to forbid a token, or to exclude all others


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are sampled. Temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 mean no limit.

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
    """The constraint on one answer's tokens. It is stateful: it must be told of each token that was chosen.

    Once it has raised an error, every later call raises one.
    """

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens may come next [V, or shorter: further ones may not]. Raises CoterieError if none may."""

    def accept(self, token: int) -> None:
        """Advance past this token. Raises CoterieError if it was not allowed."""

    def forced(self) -> tuple[int, ...]:
        """The next tokens, as far as they are determined: at each of them `allowed` leaves no alternative."""

    def choice_key(self) -> bytes | None:
        """A key that identifies the set of allowed tokens; None if the set is too large to be predictive."""

    def copy(self) -> Mask:
        """An independent copy in the same state, for looking ahead."""

    def accept_prefix(self, tokens: Sequence[int]) -> int:
        """Accept these tokens in order, up to the first one not allowed; return how many were accepted."""

    @property
    def complete(self) -> bool:
        """True when the answer must end here."""


@dataclass(frozen=True, slots=True)
class ChoiceParams:
    """What a request asks of the choice of tokens beyond sampling; by default nothing.

    top_logprobs: report each token's logprob and those of this many likeliest tokens (0 to 20; None: report none).
    presence_penalty, frequency_penalty: lower the logits of tokens in the answer so far, once and per occurrence.
    repetition_penalty: divides positive and multiplies negative logits of tokens in the prompt or the answer so far.
    logit_bias: (token id, bias) pairs, added to the logits.
    mask: which tokens are allowed at all.
    score_prompt: also report the logprobs of the prompt's tokens except the first; the whole prompt is then computed.

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
        """True if tokens are not drawn from the model's unmodified logits."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty
        return penalties != (0, 0, 1) or bool(self.logit_bias) or self.mask is not None

    @property
    def host_part(self) -> ChoiceParams:
        """What remains to be done by the host where the device applies penalties and biases."""
        return replace(self, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, logit_bias=())

    @property
    def needs_logits(self) -> bool:
        """True if the host needs each step's logits, to choose tokens or to report logprobs."""
        return self.top_logprobs is not None or self.changes_logits


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token of an answer, its natural-log probability, and those of the likeliest tokens, best first.

    These are the model's own: the softmax of its logits, before bias, penalties, mask and temperature.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for one expert. Generation ends at a token in `end_ids`, at a `stop` string, or after `max_tokens`.

    ignore_end: generate exactly `max_tokens` (for workloads of fixed length).
    detokenizer: without one there is no text, and so no stop strings.
    reuse: False: share no KV state in either direction, as for made-up tokens that stand for others.
    client: the requester, for its share of the queue (admission.py); "" is exempt.
    prediction: tokens that the answer is expected to repeat, with changes; affects speed only, never the answer.
    pooling: generate nothing, and return a vector of the prompt: of its first or last token, or the mean of all.
    types: token type ids, for models that distinguish the two texts of a pair; empty: a single text.
    priority: lower goes first; ties in order of arrival.

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

    hit: the expert was resident when the request arrived; else `switch_s` is the time from wanting the expert to its
        full arrival, or to the end of the answer if that came first.
    queue_admissions: requests admitted while this one waited; overtaken: how many of them arrived later.
    cached_tokens: prompt tokens found in the prefix cache.
    guessed_tokens: drafted by speculative decoding; accepted_tokens: how many of them were accepted.
    reasoning_tokens: tokens of the reasoning that precedes the answer.
    predicted_tokens: tokens of the prediction that the answer repeated; unpredicted_tokens: its other ones. Both are 0
        if nothing is guessed.
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
        """Time to first token, from arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s


@value
class Output:
    """What one step produced for one request. The last output has a `finish_reason` and the timings.

    `token_ids` are the new tokens, including an end token; `text` is the new text, without end tokens and stop strings.
    `reasoning` is new text of the reasoning that precedes the answer; it is not part of the answer.
    `logprobs`, if requested: one for each of `token_ids`, preceded in the first output by the prompt's if it is scored.
    `vector`: set on the last output if a vector was requested instead of tokens.
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

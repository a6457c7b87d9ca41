"""InFlight: a query being answered, and how the engine's outputs become chunks, the last one with the answer.

Knows nothing about engines or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import nan

from coterie.api.logprobs import TokenLogprob, spell
from coterie.api.types import Answer, Chunk, Query
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.composition.router import Prompt, Route
from coterie.engine.request import Output, Request, TokenLogprobs

DEFAULT_MAX_TOKENS = 2048  # enough for a whole program or letter, and stops one that repeats itself
MAX_TOKENS_OF_TEXT = 256  # without a chat template a text may never end
SHARE_OF_KV = 8  # by default an answer may use at most this fraction (1 in 8) of the KV cache, leaving room for others


@dataclass(slots=True)
class InFlight:
    """A query in flight and its answer so far. `route` is None while a model is asked for it.

    `asked_s`: when it was submitted, on the device's clock, if its request may arrive at the engine later: because a
    model is asked for the route, or because another device had it first. Else None.
    """

    query: Query
    prompt: Prompt
    route: Route | None = None
    asked_s: float | None = None
    cancelled: bool = False
    prompt_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    end_ids: tuple[int, ...] = ()

    def begin(
        self, route: Route, prompt_ids: Sequence[int], tokenizer: Tokenizer | None, end_ids: tuple[int, ...]
    ) -> None:
        """Its expert is known, and these are its tokens there."""
        self.route, self.prompt_tokens, self.tokenizer, self.end_ids = route, len(prompt_ids), tokenizer, end_ids
        if self.query.choice.score_prompt:
            self.prompt_logprobs.append(spell(tokenizer, TokenLogprobs(prompt_ids[0], nan)))

    def chunk(self, output: Output, synthetic: bool) -> Chunk:
        """An output as the caller's chunk. `synthetic`: the device's tokens are made up."""
        scored = self._scored(output) if output.logprobs else ()
        if self.query.max_tokens == 0:
            output = _undrawn(output)
        self.token_ids += output.token_ids
        self.text.append(output.text)
        self.reasoning.append(output.reasoning)
        found = self._found(output) if output.logprobs else ()
        self.logprobs += found
        answer = None
        if output.finish_reason is not None and output.error is None:
            answer = self._answer(output, synthetic)
        new = output.text, output.token_ids
        return Chunk(output.request_id, output.expert_id, *new, answer, output.error, found, scored, output.reasoning)

    def _scored(self, output: Output) -> tuple[TokenLogprob, ...]:
        """The prompt's logprobs, once those of all its tokens are known."""
        count = len(output.logprobs) - len(output.token_ids)
        if not self.query.choice.score_prompt or self.token_ids or not output.token_ids:
            return ()
        self.prompt_logprobs += [spell(self.tokenizer, one) for one in output.logprobs[:count]]
        return tuple(self.prompt_logprobs)

    def _found(self, output: Output) -> tuple[TokenLogprob, ...]:
        """The logprobs of the new tokens, without end tokens, which are not part of the text."""
        shown = output.logprobs[len(output.logprobs) - len(output.token_ids) :]
        if not self.query.choice.score_prompt:
            shown = tuple([one for one in shown if one.token not in self.end_ids])
        return tuple([spell(self.tokenizer, one) for one in shown])

    def _answer(self, output: Output, synthetic: bool) -> Answer:
        timings, route = output.timings, self.route
        if timings is None or output.finish_reason is None or route is None:
            raise RuntimeError(f"the last output of {output.request_id} has no timings or no route")
        begun_s = timings.arrival_s if self.asked_s is None else self.asked_s
        first = timings.end_s if timings.first_token_s is None else timings.first_token_s
        count, decode_s = len(self.token_ids), timings.end_s - first
        return Answer(
            request_id=output.request_id,
            text="".join(self.text),
            token_ids=tuple(self.token_ids),
            expert=output.expert_id,
            route=route,
            finish_reason=output.finish_reason,
            seed=self.query.sampling.seed or 0,
            prompt_tokens=self.prompt_tokens,
            hit=timings.hit,
            switch_s=timings.switch_s,
            ttft_s=first - begun_s,
            routed_s=timings.arrival_s - begun_s,
            total_s=timings.end_s - begun_s,
            tokens_per_s=(count - 1) / decode_s if count > 1 and decode_s > 0 else 0.0,
            synthetic=synthetic,
            cached_tokens=timings.cached_tokens,
            guessed_tokens=timings.guessed_tokens,
            accepted_tokens=timings.accepted_tokens,
            logprobs=tuple(self.logprobs),
            prompt_logprobs=tuple(self.prompt_logprobs),
            reasoning="".join(self.reasoning),
            reasoning_tokens=timings.reasoning_tokens,
            predicted_tokens=timings.predicted_tokens,
            unpredicted_tokens=timings.unpredicted_tokens,
            vector=output.vector,
            queued_s=(timings.end_s if timings.scheduled_s is None else timings.scheduled_s) - timings.arrival_s,
        )


def tokens_to_draw(query: Query, room: int, chats: bool = True) -> int:
    """The limit on tokens to generate, given `room` in the context; `chats`: the expert has a chat template.

    One, to be dropped, if the prompt is scored and no token is wanted. The default is reduced to fit the context; a
    limit set by the user is not, and may be refused.
    """
    if query.max_tokens == 0 and query.choice.score_prompt:
        return 1
    default = DEFAULT_MAX_TOKENS if chats else MAX_TOKENS_OF_TEXT
    return max(1, min(default, room)) if query.max_tokens is None else query.max_tokens


def capped_by_kv(request: Request, query: Query, holds: int) -> Request:
    """The request, with a limit that the user did not set reduced to a share of the KV cache, and to what fits.

    `holds`: how many of the expert's tokens the KV cache holds. The last token is never fed back and needs no place.
    """
    if query.max_tokens is not None:
        return request
    share = max(holds // SHARE_OF_KV, MAX_TOKENS_OF_TEXT)
    room = max(1, holds + 1 - len(request.prompt_ids))
    return replace(request, max_tokens=min(request.max_tokens, share, room))


def _undrawn(output: Output) -> Output:
    reason = "length" if output.finish_reason == "stop" else output.finish_reason
    return replace(output, token_ids=(), text="", reasoning="", finish_reason=reason, logprobs=())

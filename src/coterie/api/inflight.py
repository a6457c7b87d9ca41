"""InFlight: a query on its way, and what the engine's outputs of it become: chunks, the last one with the answer.

Knows nothing about engines or threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coterie.api.logprobs import TokenLogprob, spell
from coterie.api.types import Answer, Chunk, Query
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.composition.router import Prompt, Route
from coterie.engine.request import Output


@dataclass(slots=True)
class InFlight:
    """A query in flight: what is known of its answer so far. `route` is None as long as a model is asked for it.

    `asked_s`: when it was asked; None where the router reads the text alone.
    """

    query: Query
    prompt: Prompt
    route: Route | None = None
    asked_s: float | None = None
    cancelled: bool = False
    prompt_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tokenizer: Tokenizer | None = None
    end_ids: tuple[int, ...] = ()

    def begin(self, route: Route, prompt_tokens: int, tokenizer: Tokenizer | None, end_ids: tuple[int, ...]) -> None:
        """An expert has it now, whose tokens these are."""
        self.route, self.prompt_tokens, self.tokenizer, self.end_ids = route, prompt_tokens, tokenizer, end_ids

    def chunk(self, output: Output, synthetic: bool) -> Chunk:
        """What an output says to who asked. `synthetic`: tokens are made up on this device."""
        self.token_ids += output.token_ids
        self.text.append(output.text)
        # An end token is no part of the text, nor what it was worth.
        found = tuple([spell(self.tokenizer, one) for one in output.logprobs if one.token not in self.end_ids])
        self.logprobs += found
        answer = None
        if output.finish_reason is not None and output.error is None:
            answer = self._answer(output, synthetic)
        return Chunk(output.request_id, output.expert_id, output.text, output.token_ids, answer, output.error, found)

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
            seed=self.query.sampling.seed,
            prompt_tokens=self.prompt_tokens,
            hit=timings.hit,
            switch_s=timings.switch_s,
            ttft_s=first - begun_s,
            routed_s=timings.arrival_s - begun_s,
            total_s=timings.end_s - begun_s,
            tokens_per_s=(count - 1) / decode_s if count > 1 and decode_s > 0 else 0.0,
            synthetic=synthetic,
            cached_tokens=timings.cached_tokens,
            logprobs=tuple(self.logprobs),
        )

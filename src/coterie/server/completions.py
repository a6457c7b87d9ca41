"""POST /v1/completions: raw text or tokens in, text out, without a chat template.

Knows nothing about HTTP, threads or the engine. Source: the OpenAI API reference, "Create completion".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coterie.api import Answer, Chunk, Message, Query, Serving
from coterie.api.texts import speaker
from coterie.core.errors import RequestError
from coterie.server import fields
from coterie.server.choosing import PENALTIES, biased
from coterie.server.openai import MARK, Frame, Streamed, details, own_details, usage
from coterie.server.structured import STRUCTURING, form_of
from coterie.server.text_logprobs import TextLogprobs, likeliest

DEFAULT_MAX_TOKENS = 16  # OpenAI's default, on which clients of this endpoint rely
MAX_ANSWERS = 1024  # per request, over all prompts and choices
SUPPORTED = (
    *(*fields.SHARED, fields.IGNORE_END, *PENALTIES, *STRUCTURING),
    *("logprobs", "prompt", "echo", "best_of", "suffix"),
)
_WORDS = "give a string, a list of strings, a list of token ids or a list of such lists"


@dataclass(frozen=True, slots=True)
class CompletionBody:
    """A validated request body: a Query for each prompt, n choices of each. `seeded`: the caller gave the seed."""

    prompts: tuple[Query, ...]
    stream: bool
    include_usage: bool
    n: int
    seeded: bool
    echo: bool


def parse_completion(body: object, coterie: Serving) -> CompletionBody:
    """Turn a decoded JSON body into queries. Raises RequestError naming the field and what to change."""
    given = fields.without_synonyms(fields.as_object(body, "model and prompt"))
    fields.check_names(given, SUPPORTED, {})
    limit, n, best_of = fields.integer(given, "max_tokens"), fields.choices(given), fields.integer(given, "best_of")
    if best_of is not None and best_of != n:
        raise RequestError("best_of", f"is {best_of}, while n is {n}", "leave it out: all choices are returned")
    limit = DEFAULT_MAX_TOKENS if limit is None else limit
    model, sampling, stop = fields.model(given), fields.sampling(given), fields.stops(given)
    echo, top = fields.flag(given, "echo"), likeliest(given)
    form, ignore_end = form_of(given), fields.flag(given, fields.IGNORE_END)
    choice = replace(biased(given), top_logprobs=top, score_prompt=echo and top is not None)
    if form and (ignore_end or choice.score_prompt):
        name = fields.IGNORE_END if ignore_end else "echo"
        fact = "is set, but the answer is constrained, and the constraint says where it ends"
        raise RequestError(
            name, fact if ignore_end else "scores a prompt, but the answer is constrained", "leave it out"
        )
    prompts, suffix = _prompts(given.get("prompt"), n), fields.get(given, "suffix", str, "a text") or ""
    if suffix and not all(isinstance(prompt, str) for prompt in prompts):
        raise RequestError("suffix", "is given with a prompt of tokens", "give the prompt as text")
    if suffix and choice.score_prompt:
        raise RequestError("suffix", "is given with echo and logprobs", "leave one of them out")

    def text_of(ids: Sequence[int]) -> str:
        """The text of a prompt given in tokens, for the router and for echo."""
        return speaker(coterie.texts, coterie.composition, model).decode(ids)

    queries = tuple(
        Query(
            messages=(Message("user", prompt if isinstance(prompt, str) else text_of(prompt)),),
            model=model,
            sampling=sampling,
            max_tokens=None if limit == fields.NO_LIMIT else limit,
            stop=stop,
            raw=True,
            choice=choice,
            prompt_ids=() if isinstance(prompt, str) else prompt,
            ignore_end=ignore_end,
            suffix=suffix,
            form=form,
        )
        for prompt in prompts
    )
    stream, include_usage = fields.streaming(given)
    return CompletionBody(queries, stream, include_usage, n, given.get("seed") is not None, echo)


def _prompts(prompt: object, n: int) -> list[str | tuple[int, ...]]:
    """Each prompt as text or tokens."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise RequestError("prompt", "is missing, empty or no text", _WORDS)
    if fields.are_tokens(prompt):
        return [tuple(prompt)]
    if len(prompt) * n > MAX_ANSWERS:
        fact = f"there are {len(prompt)} of them, with {n} choices each"
        raise RequestError("prompt", fact, f"ask for at most {MAX_ANSWERS} answers at once")
    for place, item in enumerate(prompt):
        if not isinstance(item, str) and not fields.are_tokens(item):
            raise RequestError(f"prompt[{place}]", "is neither a text nor a list of token ids", _WORDS)
    return [item if isinstance(item, str) else tuple(item) for item in prompt]


class TextAnswers(Streamed):
    """A completion request's queries, and its answers as text completions.

    The choices of prompt p have the numbers p x n to (p + 1) x n - 1.
    """

    prompt_field = "prompt"

    def __init__(self, body: CompletionBody, created: int) -> None:
        self.queries = tuple(
            query for prompt in body.prompts for query in fields.choices_of(prompt, body.n, body.seeded)
        )
        self.stream, self.include_usage = body.stream, body.include_usage
        self._n, self._echo, self._created = body.n, body.echo, created
        self._id, self._begun = "", set[int]()
        asked = any(query.choice.top_logprobs is not None for query in self.queries)
        self._frames: dict[int, Frame] = {}
        self._logprobs = [TextLogprobs(self._echoed(index)) for index in range(len(self.queries))] if asked else []

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        choices = [
            {
                **self._choice(index, self._echoed(index) + answer.text, answer.finish_reason, answer),
                **own_details(answer, len(answers)),
            }
            for index, answer in enumerate(answers)
        ]
        head = self._head(answers[0].request_id, answers[0].expert)
        return {**head, "choices": choices, "usage": usage(answers, self._n), "coterie": details(answers[0])}

    def encode_text(self, index: int, chunk: Chunk) -> Sequence[bytes] | None:
        """Text in the middle of a choice, without logprobs."""
        if index not in self._begun or self._logprobs or chunk.answer is not None:
            return None
        if index not in self._frames:
            head = self._head(chunk.request_id, chunk.expert)
            self._frames[index] = Frame(self.encode({**head, "choices": [self._choice(index, MARK)]}))
        return self._frames[index].around(chunk.text)

    def events(self, index: int, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """A choice's first event includes the prompt, if it is echoed; its last one has the finish reason."""
        head = self._head(chunk.request_id, chunk.expert)
        text = chunk.text if index in self._begun else self._echoed(index) + chunk.text
        self._begun.add(index)
        if text or chunk.prompt_logprobs or chunk.logprobs:
            yield {**head, "choices": [self._choice(index, text, said=chunk)]}
        if chunk.answer is not None:
            choices = [self._choice(index, "", chunk.answer.finish_reason)]
            yield {**head, "choices": choices, "coterie": details(chunk.answer)}

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The stream's last event, with token counts."""
        head = self._head(answers[0].request_id, answers[0].expert)
        return {**head, "choices": [], "usage": usage(answers, self._n)}

    def _echoed(self, index: int) -> str:
        return self.queries[index].messages[-1].content if self._echo else ""

    def _head(self, request_id: str, model: str) -> dict[str, Any]:
        self._id = self._id or f"cmpl-{request_id}"  # one id for all choices: that of the first to answer
        head = {"id": self._id, "object": "text_completion", "created": self._created, "model": model}
        return {**head, **self.unused}

    def _choice(
        self, index: int, text: str, finish_reason: str | None = None, said: Answer | Chunk | None = None
    ) -> dict[str, Any]:
        logprobs = None
        if self._logprobs and said is not None:
            logprobs = self._logprobs[index].write(said.prompt_logprobs, said.logprobs)
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason}

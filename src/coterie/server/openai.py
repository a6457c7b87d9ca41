"""The OpenAI chat-completions wire format: request bodies in, response bodies out.

Knows nothing about HTTP, threads or the engine. Source: the OpenAI API reference, "Create chat completion".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring  # the string encoder used when ensure_ascii is off
from typing import Any

from coterie.api import Answer, Chunk, Query
from coterie.api.texts import Text
from coterie.checkpoint.constrained import is_constrained
from coterie.core.errors import (
    CapacityError,
    ClosedError,
    ConflictError,
    ContextError,
    CoterieError,
    CrowdedError,
    ForgottenError,
    NotFoundError,
    OversizeError,
    RequestError,
    UsageError,
)
from coterie.server import fields
from coterie.server.choosing import CHOOSING, choosing, logprobs_of
from coterie.server.messages import (
    CONTINUING,
    EFFORT,
    PREDICTION,
    REASONING,
    SWITCHES,
    continues,
    messages,
    predicted,
    switches,
)
from coterie.server.structured import STRUCTURING, form_of
from coterie.server.tools import TOOLS, MessageWriter, calling, offered

# Features that Coterie does not implement: refused unless the value is one of these, which request nothing.
REFUSED: Mapping[str, tuple[object, ...]] = {
    "functions": ([],),
    "modalities": (["text"],),
    "function_call": ("none", "auto"),
    "verbosity": fields.VERBOSITY,
    "audio": (),
    "web_search_options": (),
}
LIMITS = ("max_completion_tokens", "max_tokens")
SUPPORTED = (
    *(*fields.SHARED, fields.IGNORE_END, *CHOOSING, *STRUCTURING, "messages", LIMITS[0], SWITCHES, EFFORT),
    *(*TOOLS, PREDICTION, *CONTINUING, REASONING[1]),
)


@dataclass(frozen=True, slots=True)
class ChatBody:
    """A validated request body. `seeded`: the caller gave the seed; `n`: the number of answers."""

    query: Query
    stream: bool
    include_usage: bool
    n: int = 1
    seeded: bool = False


def parse_chat(body: object) -> ChatBody:
    """Turn a decoded JSON body into a Query. Raises RequestError naming the field and what to change."""
    given = fields.without_synonyms(fields.as_object(body, "model and messages"))
    fields.check_names(given, SUPPORTED, REFUSED)
    tools = offered(given)
    called, form, ignore_end = calling(given, tools), form_of(given), fields.flag(given, fields.IGNORE_END)
    if ignore_end and (form or is_constrained(tools, called)):
        fact = "is set, but the answer is constrained, and the constraint says where it ends"
        raise RequestError(fields.IGNORE_END, fact, "leave it out")
    query = Query(
        messages=messages(given),
        model=fields.model(given),
        sampling=fields.sampling(given),
        max_tokens=_limit(given),
        stop=fields.stops(given),
        tools=tools,
        calling=called,
        choice=choosing(given),
        form=form,
        ignore_end=ignore_end,
        switches=switches(given),
        prediction=predicted(given),
        continues=continues(given),
    )
    stream, include_usage = fields.streaming(given)
    return ChatBody(query, stream, include_usage, fields.choices(given), given.get("seed") is not None)


def _limit(body: Mapping[str, object]) -> int | None:
    """The limit on an answer's tokens, under the newer or older name. Raises RequestError, also if the two differ."""
    given = {name: fields.integer(body, name) for name in LIMITS}
    limits = {name: limit for name, limit in given.items() if limit not in (None, fields.NO_LIMIT)}
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise RequestError(name, f"is {limit}", "allowed is 1 or more")
    if len(set(limits.values())) > 1:
        newer, older = LIMITS
        raise RequestError(newer, f"is {limits[newer]}, while {older} is {limits[older]}", "give one of them")
    return next(iter(limits.values()), None)


MARK = "<text>"
_TO_JSON = json.JSONEncoder(ensure_ascii=False).encode


class Frame:
    """An encoded event with a placeholder for its text: a tenth of the work of encoding each event anew."""

    def __init__(self, event: bytes) -> None:
        self._before, _, self._after = event.rpartition(encode_basestring(MARK).encode())

    def around(self, text: str) -> Sequence[bytes]:
        """The event with this text; nothing if it is empty."""
        return (self._before + encode_basestring(text).encode() + self._after,) if text else ()


class Streamed:
    """How completions write a stream: unnamed events, errors as objects; finally the usage, if requested, and [DONE].

    Subclasses set `include_usage` and define `usage`, the event with token counts. Source of events and comments: the
    HTML standard, "Server-sent events".
    """

    prompt_field = "messages"
    media_type = "text/event-stream"
    end = b"data: [DONE]\n\n"
    include_usage = False
    within = 1

    def observe(self, chunk: Chunk) -> None:
        """Take a chunk of a response that is not streamed; the answer repeats all of it."""

    def heartbeat(self, words: str) -> bytes:
        """A comment, which clients skip."""
        return f": {words}\n\n".encode(errors="replace")

    def encode_chunk(self, index: int, chunk: Chunk) -> Iterable[bytes]:
        """The encoded events for a choice's chunk."""
        plain = self.encode_text(index, chunk)
        return map(self.encode, self.events(index, chunk)) if plain is None else plain

    def encode_text(self, index: int, chunk: Chunk) -> Sequence[bytes] | None:
        """The encoded events for a chunk with nothing but text, the usual case; None for any other."""
        return None

    def events(self, index: int, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """The events for a choice's chunk."""
        raise NotImplementedError

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The stream's last event, with token counts."""
        raise NotImplementedError

    def ending(self, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
        """The last events."""
        if self.include_usage:
            yield self.usage(answers)

    def failure(self, error: CoterieError, request_id: str) -> Iterator[dict[str, Any]]:
        """The last event if there is no answer."""
        yield error_body(error, self.prompt_field)[1]

    @property
    def unused(self) -> dict[str, None]:
        """The usage field of all but the last event, null as in OpenAI's API."""
        return {"usage": None} if self.include_usage else {}

    @staticmethod
    def encode(event: Mapping[str, Any]) -> bytes:
        """The encoded event."""
        return b"data: " + _TO_JSON(event).encode() + b"\n\n"


def named_event(event: Mapping[str, Any]) -> bytes:
    """An encoded event that is named after its type."""
    return f"event: {event['type']}\ndata: {_TO_JSON(event)}\n\n".encode()


class ChatAnswers(Streamed):
    """A chat request's queries, and its answers as chat completions; `coterie` has the route and the timings."""

    def __init__(self, body: ChatBody, created: int, texts: Mapping[str, Text]) -> None:
        self.queries = fields.choices_of(body.query, body.n, body.seeded)
        self.stream, self.include_usage = body.stream, body.include_usage
        self._created, self._id, self._texts = created, "", texts
        self._choice = body.query.choice
        self._writers: dict[int, MessageWriter] = {}
        self._frames: dict[int, Frame] = {}

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        choices = []
        for index, answer in enumerate(answers):
            writer = self._writer_of(index, answer.expert)
            message = writer.message(answer.text, answer.reasoning)
            reason = writer.reason(answer.finish_reason)
            logprobs = logprobs_of(answer.logprobs, self._choice, whole=True)
            choice = {"index": index, "message": message, "finish_reason": reason, "logprobs": logprobs}
            choices.append({**choice, **own_details(answer, len(answers))})
        body = self._head(answers[0].request_id, "chat.completion", answers[0].expert)
        return {**body, "choices": choices, "usage": usage(answers, len(answers)), "coterie": details(answers[0])}

    def encode_text(self, index: int, chunk: Chunk) -> Sequence[bytes] | None:
        """Text in the middle of a choice, without logprobs, if no calls are parsed."""
        writer = self._writers.get(index)
        more = chunk.answer is not None or chunk.reasoning or self._choice.top_logprobs is not None
        if writer is None or not writer.is_text_only or more:
            return None
        if index not in self._frames:
            self._frames[index] = Frame(self.encode(self._event(index, chunk, {"content": MARK})))
        return self._frames[index].around(chunk.text)

    def events(self, index: int, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """A choice's first event has the role, its last one the finish reason."""
        writer, logprobs = self._writer_of(index, chunk.expert), logprobs_of(chunk.logprobs, self._choice)
        deltas = list(writer.deltas(chunk.text, chunk.last, chunk.reasoning))
        if chunk.logprobs and not deltas:
            deltas.append({"content": ""})  # a token whose text is still held back
        for place, delta in enumerate(deltas):
            yield self._event(index, chunk, delta, logprobs=None if place else logprobs)
        if chunk.answer is not None:
            reason = writer.reason(chunk.answer.finish_reason)
            yield {**self._event(index, chunk, {}, reason), "coterie": details(chunk.answer)}

    def usage(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The stream's last event, with token counts."""
        head = self._head(answers[0].request_id, "chat.completion.chunk", answers[0].expert)
        return {**head, "choices": [], "usage": usage(answers, len(answers))}

    def _writer_of(self, index: int, expert: str) -> MessageWriter:
        if index not in self._writers:
            self._writers[index] = MessageWriter(self._texts[expert].calls(self.queries[index]))
        return self._writers[index]

    def _event(
        self, index: int, chunk: Chunk, delta: Mapping[str, Any], reason: str | None = None, logprobs: object = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": dict(delta), "finish_reason": reason, "logprobs": logprobs}
        return {**self._head(chunk.request_id, "chat.completion.chunk", chunk.expert), "choices": [choice]}

    def _head(self, request_id: str, kind: str, model: str) -> dict[str, Any]:
        self._id = self._id or f"chatcmpl-{request_id}"  # one id for all choices: that of the first to answer
        head = {"id": self._id, "object": kind, "created": self._created, "model": model}
        return {**head, **self.unused}


def usage(answers: Sequence[Answer], n: int) -> dict[str, Any]:
    """Token counts in OpenAI's format: each prompt counts once, though n choices answer it.

    Choices of one prompt may share its KV state; cached tokens are those that none of them had to compute.
    """
    prompts = [answers[first : first + n] for first in range(0, len(answers), n)]
    prompt = sum(same[0].prompt_tokens for same in prompts)
    completion = sum(len(answer.token_ids) for answer in answers)
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    cached = sum(min(answer.cached_tokens for answer in same) for same in prompts)
    of_answers = {
        "reasoning_tokens": sum(answer.reasoning_tokens for answer in answers),
        "accepted_prediction_tokens": sum(answer.predicted_tokens for answer in answers),
        "rejected_prediction_tokens": sum(answer.unpredicted_tokens for answer in answers),
    }
    return {**counts, "prompt_tokens_details": {"cached_tokens": cached}, "completion_tokens_details": of_answers}


def details(answer: Answer) -> dict[str, Any]:
    """Route, timings and tokens. Text and reasoning are left out: they are in OpenAI's fields."""
    return {name: value for name, value in answer.to_dict().items() if name not in ("text", "reasoning")}


def own_details(answer: Answer, count: int) -> dict[str, Any]:
    """The details of one of several choices; of a single one, the response has them."""
    return {"coterie": details(answer)} if count > 1 else {}


TOO_LONG = "context_length_exceeded"  # clients know this code and shorten the conversation
# The first matching class gives the status, and OpenAI's type and code.
_ERRORS: Sequence[tuple[type[CoterieError], tuple[int, str, str]]] = (
    (NotFoundError, (404, "invalid_request_error", "model_not_found")),
    (CrowdedError, (429, "requests", "rate_limit_exceeded")),
    (ConflictError, (409, "invalid_request_error", "conflict")),
    (OversizeError, (400, "invalid_request_error", TOO_LONG)),
    (CapacityError, (503, "server_error", "capacity_exceeded")),
    (ClosedError, (503, "server_error", "shutting_down")),
    (ContextError, (400, "invalid_request_error", TOO_LONG)),
    (ForgottenError, (400, "invalid_request_error", "previous_response_not_found")),
    (UsageError, (400, "invalid_request_error", "invalid_value")),
    (CoterieError, (500, "server_error", "device_error")),
)


def error_body(error: CoterieError, prompt_field: str = "messages") -> tuple[int, dict[str, Any]]:
    """HTTP status and OpenAI error object for a failure; `prompt_field`: the body's field with the prompt."""
    status, kind, code = next(told for what, told in _ERRORS if isinstance(error, what))
    param = prompt_field if code == TOO_LONG else error.where if status == 400 else None
    return status, {"error": {"message": str(error), "type": kind, "param": param, "code": code}}

"""POST /v1/responses, the response: an answer as a response object or as its events; it may be stored.

    response.created, .in_progress -> events of items (items.py) -> response.completed, .incomplete or .failed

Knows nothing about HTTP, threads or the engine. Source: the OpenAI API reference, "Create a model response".
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coterie.api import Answer, Chunk, Query
from coterie.api.texts import Text
from coterie.core.errors import CoterieError
from coterie.server import fields
from coterie.server.inputs import ResponseBody
from coterie.server.items import Items
from coterie.server.openai import Streamed, details, error_body, named_event
from coterie.server.response_store import NONE_KEPT, ClientStore
from coterie.server.token_texts import Piece, TokenTexts

# Fields of features that a response does not use.
_NOTHING: Mapping[str, Any] = {
    "background": False,
    "error": None,
    "incomplete_details": None,
    "usage": None,
}
_OWN = {"response_format": "text.format", "max_tokens": "max_output_tokens", "messages": "input", "prompt": "input"}
_OWN_PARTS = {
    "response_format.json_schema.": "text.format.",
    "response_format.": "text.format.",
    "].function.": "].",
    "tool_choice.allowed_tools": "tool_choice",
}


def response_words(error: CoterieError) -> CoterieError:
    """Translates an error from chat's field names to this endpoint's."""
    return fields.translate_error(error, _OWN, _OWN_PARTS, {'"function": {"name": ...}}': '"name": ...}'})


def _drain(events: Iterator[object]) -> None:
    """Build the items; only a stream sends the events."""
    for _ in events:
        pass


class ResponseAnswers(Streamed):
    """A request's query, and its answer as a response, which `mine` stores when it is complete or has failed."""

    prompt_field = "input"
    end = b""
    within = 2
    encode = staticmethod(named_event)

    def __init__(
        self, body: ResponseBody, created: int, texts: Mapping[str, Text], mine: ClientStore = NONE_KEPT
    ) -> None:
        self.queries: tuple[Query, ...] = (body.query,)
        self.stream = body.stream
        self._echoed, self._created, self._texts = body.echoed, created, texts
        self._items: Items | None = None
        self._tokens = TokenTexts()
        self._mine, self._given, self._earlier = mine, body.given, body.earlier
        # Request ids restart with each process, but an id stored by a client must never name another response.
        self._name = secrets.token_hex(12)
        self._head: dict[str, Any] = {"id": f"resp_{self._name}", "model": body.query.model}
        self._number = 0

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        (answer,) = answers
        items = self._items
        if items is None:
            items = self._begin(answer.request_id, answer.expert)
            _drain(items.think(answer.reasoning))
            _drain(items.push(answer.text))
        _drain(items.end(answer.finish_reason == "length"))
        return self._ended(answer)

    def observe(self, chunk: Chunk) -> None:
        """Take a chunk of a response that is not streamed: logprobs belong to the text of their chunk."""
        if self.queries[0].choice.top_logprobs is not None:
            _drain(self.events(0, chunk))

    def events(self, index: int, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """The events for a chunk."""
        items = self._items
        if items is None:
            items = self._begin(chunk.request_id, chunk.expert)
            yield from self._opened()
        for event in items.think(chunk.reasoning):
            yield self._numbered(event)
        for text, tokens in self._pieces(chunk):
            for event in items.push(text, tokens=tokens):
                yield self._numbered(event)

    def _pieces(self, chunk: Chunk) -> Sequence[Piece]:
        """A chunk's text, split by token if logprobs are requested."""
        if self.queries[0].choice.top_logprobs is None:
            return ((chunk.text, ()),)
        self._tokens.add(chunk.logprobs)
        pieces = self._tokens.take(chunk.text, chunk.reasoning)
        if chunk.reasoning and not chunk.text:
            self._tokens.forget()
        return pieces

    def ending(self, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
        """The last events."""
        (answer,) = answers
        items = self._begin(answer.request_id, answer.expert) if self._items is None else self._items
        for event in items.end(answer.finish_reason == "length"):
            yield self._numbered(event)
        made = self._ended(answer)
        yield self._numbered({"type": f"response.{made['status']}", "response": made})

    def failure(self, error: CoterieError, request_id: str) -> Iterator[dict[str, Any]]:
        """The last events if there is no answer."""
        if self._items is None:
            if request_id:
                self._head["id"] = f"resp_{request_id}_{self._name}"
            yield from self._opened()
        status, body = error_body(response_words(error), self.prompt_field)
        code = {429: "rate_limit_exceeded"}.get(status, "server_error" if status >= 500 else "invalid_prompt")
        detail = {"code": code, "message": body["error"]["message"]}
        made = {**self._response("failed", [] if self._items is None else self._items.output), "error": detail}
        self._keep(made)
        yield self._numbered({"type": "response.failed", "response": made})

    def _begin(self, request_id: str, expert: str) -> Items:
        name = f"{request_id}_{self._name}"
        self._head = {"id": f"resp_{name}", "model": expert}
        text = self._texts.get(expert)
        self._items = Items(None if text is None else text.calls(self.queries[0]), name)
        return self._items

    def _opened(self) -> Iterator[dict[str, Any]]:
        for what in ("created", "in_progress"):
            yield self._numbered({"type": f"response.{what}", "response": self._response("in_progress", [])})

    def _ended(self, answer: Answer) -> dict[str, Any]:
        cut = answer.finish_reason == "length"
        made = self._response("incomplete" if cut else "completed", self._items.output if self._items else [])
        prompt, drawn = answer.prompt_tokens, len(answer.token_ids)
        cached = {"cached_tokens": answer.cached_tokens, "cache_write_tokens": 0}  # writes to the cache are not charged
        used = {"input_tokens": prompt, "input_tokens_details": cached, "output_tokens": drawn}
        used |= {"output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens}}
        more = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
        made = {**made, **more, "usage": {**used, "total_tokens": prompt + drawn}, "coterie": details(answer)}
        self._keep(made)
        return made

    def _keep(self, made: Mapping[str, Any]) -> None:
        """Store a response before its client can learn that it has ended."""
        if self._given is not None:
            self._mine.put(made, self._given, self._earlier)

    def _response(self, status: str, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        about = {"object": "response", "created_at": self._created, "status": status}
        return {**self._head, **about, **_NOTHING, **self._echoed, "output": list(output)}

    def _numbered(self, event: Mapping[str, Any]) -> dict[str, Any]:
        self._number += 1
        return {**event, "sequence_number": self._number - 1}

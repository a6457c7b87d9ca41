"""POST /v1/messages, the response: an answer as content blocks, whole or as their events.

    message_start -> content_block_start, content_block_delta ..., content_block_stop ... -> message_delta, message_stop

Knows nothing about HTTP, threads or the engine. Source: the Anthropic API reference, "Create a message" and "Streaming
messages".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coterie.api import Answer, Chunk, Query
from coterie.api.texts import Text
from coterie.checkpoint.calls import Call, CallReader, More
from coterie.core.errors import CoterieError
from coterie.models.model import Model
from coterie.server.openai import Streamed, details, error_body, named_event
from coterie.server.tools import found_in, new_call_id
from coterie.server.turns import THREAD, TurnsBody, turn_words

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_KINDS |= {409: "invalid_request_error", 413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}
_DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}
_CALLED = ("input_json_delta", "partial_json")


def turn_error(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """This endpoint's error object; if `param` is THREAD, with the code on which clients continue without it."""
    error: dict[str, Any] = {"type": _KINDS.get(status, "api_error"), "message": message}
    if param == THREAD:
        error["details"] = {"error_code": "thread_unsupported_request", "unsupported": [THREAD]}
    return {"type": "error", "error": error}


class Blocks:
    """Writes one answer's blocks. `content`: the blocks so far; the input of tool calls is still text."""

    def __init__(self, reader: CallReader | None) -> None:
        self._reader = reader
        self._open = False
        self.content: list[dict[str, Any]] = []

    def push(self, text: str, reasoning: str = "", last: bool = False) -> Iterator[dict[str, Any]]:
        """The events for new text and reasoning."""
        if reasoning:
            yield from self._push_text("thinking", reasoning, {"thinking": "", "signature": ""})
        for item in found_in(self._reader, text, last):
            if isinstance(item, str):
                yield from self._push_text("text", item, {"text": ""})
                continue
            if isinstance(item, Call):
                yield from self._close()
                yield from self._begin({"type": "tool_use", "id": new_call_id(), "name": item.name, "input": ""})
            yield from self._push_call(item)

    def end(self) -> Iterator[dict[str, Any]]:
        """The last events."""
        yield from self.push("", last=True)
        yield from self._close()

    def whole(self) -> list[dict[str, Any]]:
        """All blocks, with parsed inputs; that of a truncated call is empty."""
        return [{**block, "input": _object(block["input"])} if "input" in block else block for block in self.content]

    @property
    def calls(self) -> bool:
        """Whether it ends with a complete call."""
        return any("input" in block for block in self.content) and not (self._reader is not None and self._reader.cut)

    def _push_text(self, kind: str, text: str, empty: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if not self._open or self.content[-1]["type"] != kind:
            yield from self._close()
            yield from self._begin({"type": kind, **empty})
        name, field = _DELTAS[kind]
        self.content[-1][field] += text
        yield self._delta({"type": name, field: text})

    def _push_call(self, item: Call | More) -> Iterator[dict[str, Any]]:
        if item.arguments:
            self.content[-1]["input"] += item.arguments
            name, field = _CALLED
            yield self._delta({"type": name, field: item.arguments})

    def _begin(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.content.append(block)
        self._open = True
        shown = {**block, "input": {}} if "input" in block else dict(block)
        yield {"type": "content_block_start", "index": len(self.content) - 1, "content_block": shown}

    def _delta(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": delta}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open:
            self._open = False
            yield {"type": "content_block_stop", "index": len(self.content) - 1}


class TurnAnswers(Streamed):
    """A request's query, and its answer as a message."""

    end = b""
    encode = staticmethod(named_event)

    def __init__(self, body: TurnsBody, texts: Mapping[str, Text], models: Mapping[str, Model]) -> None:
        self.queries: tuple[Query, ...] = (body.query,)
        self.stream = body.stream
        self._texts, self._models = texts, models
        self._blocks: Blocks | None = None

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        (answer,) = answers
        blocks = self._begin(answer.expert)
        for _ in (*blocks.push(answer.text, answer.reasoning), *blocks.end()):
            pass  # these events are for streams
        head = _head(answer.request_id, answer.expert, blocks.whole())
        return {**head, **self._stopped(answer, blocks), "usage": _usage(answer), "coterie": details(answer)}

    def events(self, index: int, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """The events for a chunk."""
        if self._blocks is None:
            self._begin(chunk.expert)
            head = _head(chunk.request_id, chunk.expert, [])
            begun = {**head, "stop_reason": None, "stop_sequence": None, "usage": _NOTHING_USED}
            yield {"type": "message_start", "message": begun}
        if self._blocks is not None:
            yield from self._blocks.push(chunk.text, chunk.reasoning)

    def ending(self, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
        """The last events, which have the token counts: a prompt's is not known earlier."""
        (answer,) = answers
        blocks = self._begin(answer.expert) if self._blocks is None else self._blocks
        yield from blocks.end()
        stopped = self._stopped(answer, blocks)
        yield {"type": "message_delta", "delta": stopped, "usage": _usage(answer), "coterie": details(answer)}
        yield {"type": "message_stop"}

    def failure(self, error: CoterieError, request_id: str) -> Iterator[dict[str, Any]]:
        """The last event if there is no answer."""
        status, body = error_body(turn_words(error), self.prompt_field)
        yield turn_error(status, body["error"]["message"])

    def _begin(self, expert: str) -> Blocks:
        self._blocks = Blocks(self._texts[expert].calls(self.queries[0]))
        return self._blocks

    def _stopped(self, answer: Answer, blocks: Blocks) -> dict[str, Any]:
        """Why it ended.

        At a stop string, if there are any, the last token is no end token, and no constraint was completed, which would
        have ended it too.
        """
        if answer.finish_reason != "stop":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        query, ends = self.queries[0], self._models[answer.expert].end_ids
        whole = blocks.calls if query.calling.required else bool(query.form) and _json(answer.text) is not None
        if query.stop and not whole and (not answer.token_ids or answer.token_ids[-1] not in ends):
            stops = query.stop
            return {"stop_reason": "stop_sequence", "stop_sequence": stops[0] if len(stops) == 1 else None}
        return {"stop_reason": "tool_use" if blocks.calls else "end_turn", "stop_sequence": None}


_NOTHING_USED = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}


def _head(request_id: str, expert: str, content: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    about = {"type": "message", "role": "assistant", "model": expert}
    return {"id": f"msg_{request_id}", **about, "content": list(content)}


def _usage(answer: Answer) -> dict[str, Any]:
    cached = answer.cached_tokens
    read = {"input_tokens": answer.prompt_tokens - cached, "cache_read_input_tokens": cached}
    return {**_NOTHING_USED, **read, "output_tokens": len(answer.token_ids)}


def _object(text: str) -> dict[str, Any]:
    found = _json(text)
    return found if isinstance(found, dict) else {}


def _json(text: str) -> object:
    """The value of a JSON text; None if it is invalid."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

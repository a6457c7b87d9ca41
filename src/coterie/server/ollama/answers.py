"""POST /api/chat and /api/generate, the response: an answer as one object, or as one per line (NDJSON).

    {"message": {"content": "It"}, "done": false} ... {"done": true, "done_reason": "stop", "eval_count": 9, ...}

Knows nothing about HTTP, threads or the engine. Source: Ollama's API reference, as in `asked`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coterie.api import Answer, Chunk, Query
from coterie.api.texts import Text
from coterie.checkpoint.calls import Call, CallReader
from coterie.core.errors import CoterieError
from coterie.server.choosing import logprobs_of
from coterie.server.ollama.names import ollama_error, ollama_words, timestamp
from coterie.server.openai import MARK, Frame, Streamed, details
from coterie.server.tools import found_in, new_call_id

LINES = "application/x-ndjson"
_TO_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def chat_text(text: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """An assistant's text in /api/chat's format."""
    return {"message": {"role": "assistant", "content": text, **more}}


def plain_text(text: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """The same in /api/generate's format."""
    return {"response": text, **more}


TEXT_WRITERS = {True: chat_text, False: plain_text}  # keyed by whether it is a chat


def empty_answer(model: str, is_chat: bool, created_s: float, reason: str) -> dict[str, Any]:
    """The answer to a request without a prompt."""
    head = {"model": model, "created_at": timestamp(created_s)}
    return {**head, **TEXT_WRITERS[is_chat]("", {}), "done": True, "done_reason": reason}


class OllamaAnswers(Streamed):
    """A request's query, and its answer. `expert`: the one that answers, once known."""

    end = b""
    media_type = LINES

    def __init__(self, query: Query, stream: bool, is_chat: bool, created_s: float, texts: Mapping[str, Text]) -> None:
        self.queries: tuple[Query, ...] = (query,)
        self.stream, self.expert = stream, ""
        self._write_text, self._created, self._texts = TEXT_WRITERS[is_chat], timestamp(created_s), texts
        self._spoken: Calls | None = None
        self._frame: Frame | None = None

    @staticmethod
    def encode(event: Mapping[str, Any]) -> bytes:
        """A line."""
        return _TO_JSON(event).encode() + b"\n"

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        (answer,) = answers
        text, calls = self._calls(answer.expert).push(answer.text, last=True)
        logprobs = logprobs_of(answer.logprobs, self.queries[0].choice, whole=True)
        part = self._part(text, answer.reasoning, calls, logprobs)
        return {**self._head(answer.expert), **part, **_ended(answer)}

    def heartbeat(self, words: str) -> bytes:
        """Sent before the first text: the format has no comments, and clients accept an empty object."""
        return self.encode({**self._head(self.queries[0].model), **self._write_text("", {}), "done": False})

    def encode_text(self, index: int, chunk: Chunk) -> Sequence[bytes] | None:
        """Text in the middle of an answer, if no calls are parsed and there is nothing else."""
        more = chunk.answer is not None or chunk.reasoning or self.queries[0].choice.top_logprobs is not None
        if more or not self._calls(chunk.expert).is_plain:
            return None
        if self._frame is None:
            self._frame = Frame(self.encode({**self._head(chunk.expert), **self._write_text(MARK, {}), "done": False}))
        return self._frame.around(chunk.text)

    def events(self, index: int, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """The events for a chunk; the last line comes separately."""
        text, calls = self._calls(chunk.expert).push(chunk.text, chunk.last)
        part = self._part(text, chunk.reasoning, calls, logprobs_of(chunk.logprobs, self.queries[0].choice))
        if text or chunk.reasoning or calls or chunk.logprobs:
            yield {**self._head(chunk.expert), **part, "done": False}

    def ending(self, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
        """The last line: the reason for the end, and the timings."""
        (answer,) = answers
        yield {**self._head(answer.expert), **self._write_text("", {}), **_ended(answer)}

    def failure(self, error: CoterieError, request_id: str) -> Iterator[dict[str, Any]]:
        """The last line if there is no answer."""
        yield ollama_error(str(ollama_words(error)))

    def _calls(self, expert: str) -> Calls:
        if self._spoken is None:
            self.expert = expert
            self._spoken = Calls(self._texts[expert].calls(self.queries[0]))
        return self._spoken

    def _head(self, model: str) -> dict[str, Any]:
        return {"model": model, "created_at": self._created}

    def _part(
        self, text: str, thought: str, calls: Sequence[Mapping[str, Any]], logprobs: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        more = {"thinking": thought, "tool_calls": calls}
        more_logprobs = {} if logprobs is None else {"logprobs": logprobs["content"]}
        return {**self._write_text(text, {name: value for name, value in more.items() if value}), **more_logprobs}


class Calls:
    """Separates one answer's text from its calls, each of which is returned whole. Without a `reader` all is text."""

    def __init__(self, reader: CallReader | None) -> None:
        self._reader = reader
        self._open: list[str] = []  # name and arguments of an unfinished call
        self._num_calls = 0

    @property
    def is_plain(self) -> bool:
        """True if no calls are parsed."""
        return self._reader is None

    def push(self, text: str, last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """The text and calls in new text. A truncated call is dropped, as it cannot be executed."""
        content, calls = "", list[dict[str, Any]]()
        for item in found_in(self._reader, text, last):
            if isinstance(item, str):
                calls += self._close()
                content += item
            elif isinstance(item, Call):
                calls += self._close()
                self._open = [item.name, item.arguments]
            else:
                self._open[1] += item.arguments
        if last and not (self._reader is not None and self._reader.cut):
            calls += self._close()
        return content, calls

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open:
            (name, arguments), self._open = self._open, []
            function = {"index": self._num_calls, "name": name, "arguments": json.loads(arguments or "{}")}
            self._num_calls += 1
            yield {"id": new_call_id(), "function": function}


def _ended(answer: Answer) -> dict[str, Any]:
    """Why an answer ended, and its timings, in nanoseconds.

    Loading the expert and reading the prompt may overlap, because its first layers run while others arrive; generation
    is timed from the first token on.
    """
    took = {
        "total_duration": answer.total_s,
        "load_duration": answer.switch_s,
        "prompt_eval_duration": answer.ttft_s - answer.routed_s - answer.queued_s,
        "eval_duration": answer.total_s - answer.ttft_s,
    }
    counts = {"prompt_eval_count": answer.prompt_tokens, "eval_count": len(answer.token_ids)}
    durations = {name: nanoseconds(seconds) for name, seconds in took.items()}
    return {"done": True, "done_reason": answer.finish_reason, **durations, **counts, "coterie": details(answer)}


def nanoseconds(seconds: float) -> int:
    """A duration in this API's format."""
    return round(max(seconds, 0.0) * 1e9)

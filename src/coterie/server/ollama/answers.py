"""POST /api/chat and /api/generate, on the way out: an answer as one object, or as lines of them (NDJSON).

    {"message": {"content": "It"}, "done": false} ... {"done": true, "done_reason": "stop", "eval_count": 9, ...}

Knows nothing about HTTP, threads or the engine. Source: Ollama's API reference, as of `asked`.
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


def said_in_chat(text: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """What an assistant said, as /api/chat has it."""
    return {"message": {"role": "assistant", "content": text, **more}}


def said_in_text(text: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """The same as /api/generate has it."""
    return {"response": text, **more}


SAID = {True: said_in_chat, False: said_in_text}  # by whether it is a chat


def nothing_said(model: str, is_chat: bool, created_s: float, reason: str) -> dict[str, Any]:
    """The answer where nothing was asked."""
    head = {"model": model, "created_at": timestamp(created_s)}
    return {**head, **SAID[is_chat]("", {}), "done": True, "done_reason": reason}


class OllamaAnswers(Streamed):
    """A request's query, and its answer. `expert`: who answers, as soon as it is known."""

    end = b""
    media_type = LINES

    def __init__(self, query: Query, stream: bool, is_chat: bool, created_s: float, texts: Mapping[str, Text]) -> None:
        self.queries: tuple[Query, ...] = (query,)
        self.stream, self.expert = stream, ""
        self._said, self._created, self._texts = SAID[is_chat], timestamp(created_s), texts
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
        said = self._part(text, answer.reasoning, calls, logprobs)
        return {**self._head(answer.expert), **said, **_ended(answer)}

    def waiting(self, words: str) -> bytes:
        """Before there is a word: lines have no comments, and clients take an object that says nothing."""
        return self.encode({**self._head(self.queries[0].model), **self._said("", {}), "done": False})

    def plain(self, index: int, chunk: Chunk) -> Sequence[bytes] | None:
        """Text of an answer that goes on, where no calls are looked for and nothing is beside it."""
        more = chunk.answer is not None or chunk.reasoning or self.queries[0].choice.top_logprobs is not None
        if more or not self._calls(chunk.expert).is_plain:
            return None
        if self._frame is None:
            self._frame = Frame(self.encode({**self._head(chunk.expert), **self._said(MARK, {}), "done": False}))
        return self._frame.around(chunk.text)

    def events(self, index: int, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """What a stream says of a chunk; the last line is by itself."""
        text, calls = self._calls(chunk.expert).push(chunk.text, chunk.last)
        said = self._part(text, chunk.reasoning, calls, logprobs_of(chunk.logprobs, self.queries[0].choice))
        if text or chunk.reasoning or calls or chunk.logprobs:
            yield {**self._head(chunk.expert), **said, "done": False}

    def ending(self, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
        """The last line: why it ended, and what it took."""
        (answer,) = answers
        yield {**self._head(answer.expert), **self._said("", {}), **_ended(answer)}

    def failure(self, error: CoterieError, request_id: str) -> Iterator[dict[str, Any]]:
        """The last line where there is no answer."""
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
        beside = {} if logprobs is None else {"logprobs": logprobs["content"]}
        return {**self._said(text, {name: value for name, value in more.items() if value}), **beside}


class Calls:
    """Tells one answer's text from its calls, each of which is given out whole. Without a `reader` all is text."""

    def __init__(self, reader: CallReader | None) -> None:
        self._reader = reader
        self._open: list[str] = []  # the name and the arguments of a call whose end has not come
        self._num_calls = 0

    @property
    def is_plain(self) -> bool:
        """True where no calls are looked for."""
        return self._reader is None

    def push(self, text: str, last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """What new text comes to: text, and calls. One that was cut is none, as nothing can be called by it."""
        said, calls = "", list[dict[str, Any]]()
        for item in found_in(self._reader, text, last):
            if isinstance(item, str):
                calls += self._close()
                said += item
            elif isinstance(item, Call):
                calls += self._close()
                self._open = [item.name, item.arguments]
            else:
                self._open[1] += item.arguments
        if last and not (self._reader is not None and self._reader.cut):
            calls += self._close()
        return said, calls

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open:
            (name, arguments), self._open = self._open, []
            function = {"index": self._num_calls, "name": name, "arguments": json.loads(arguments or "{}")}
            self._num_calls += 1
            yield {"id": new_call_id(), "function": function}


def _ended(answer: Answer) -> dict[str, Any]:
    """Why an answer ended, and what it took, in nanoseconds: an expert's first layers run while others arrive, so that
    loading it and reading the prompt may overlap; tokens are drawn from the first one on.
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
    """A time as this API has it."""
    return round(max(seconds, 0.0) * 1e9)

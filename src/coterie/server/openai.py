"""The OpenAI chat-completions wire format: request bodies in, response bodies out.

Knows nothing about HTTP, threads or the engine. Source: the OpenAI API reference, "Create chat completion".
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.api import Answer, Message, Query
from coterie.api.types import draw_seed
from coterie.core.errors import (
    CapacityError,
    ClosedError,
    ConflictError,
    ContextError,
    CoterieError,
    CrowdedError,
    NotFoundError,
    OversizeError,
    RequestError,
    UsageError,
)
from coterie.engine.request import SamplingParams

# Accepted and without effect here: they describe the caller, not the answer.
IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
# Would change the answer in ways that Coterie does not implement: refused unless they ask for nothing, as these do.
REFUSED: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "function_call": ("none", "auto"),
    "reasoning_effort": (),
    "verbosity": ("medium",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
SUPPORTED = (
    "model",
    "messages",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "stop",
)
MAX_STOP = 16
ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ChatBody:
    """A validated request body."""

    query: Query
    stream: bool
    include_usage: bool


def parse_chat(body: object) -> ChatBody:
    """Turn a decoded JSON body into a Query. Raises RequestError naming the field and what to change."""
    if not isinstance(body, dict):
        raise RequestError("body", f"is a JSON {type(body).__name__}", "send an object with model and messages")
    _check_names(body)
    options = _get(body, "stream_options", dict, "an object") or {}
    stop = body.get("stop")
    stops = (
        () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else ("",)
    )
    if len(stops) > MAX_STOP or not all(isinstance(s, str) and s for s in stops):
        raise RequestError("stop", f"is {stop!r}", f"give a string or a list of at most {MAX_STOP} non-empty strings")
    limits = (_integer(body, "max_completion_tokens"), _integer(body, "max_tokens"))
    limit = next((number for number in limits if number is not None), None)
    seed, top_k = _integer(body, "seed"), _integer(body, "top_k")
    defaults = SamplingParams()
    sampling = SamplingParams(
        temperature=_number(body, "temperature", defaults.temperature),
        top_p=_number(body, "top_p", defaults.top_p),
        top_k=defaults.top_k if top_k is None else top_k,
        min_p=_number(body, "min_p", defaults.min_p),
        seed=draw_seed() if seed is None else seed,
    )
    model = _get(body, "model", str, "a string")
    if not model:
        raise RequestError("model", "is missing", "give the composition's name, or an expert's to bypass the router")
    query = Query(messages=_messages(body), model=model, sampling=sampling, max_tokens=limit, stop=stops)
    stream = _get(body, "stream", bool, "true or false") or False
    return ChatBody(query, stream, bool(options.get("include_usage", False)))


def _check_names(body: Mapping[str, object]) -> None:
    for name, value in body.items():
        if value is None or name in SUPPORTED or name in IGNORED:
            continue  # many clients send null for whatever their user left out
        if name in REFUSED:
            if value not in REFUSED[name]:
                raise RequestError(name, f"is {value!r}, which Coterie does not implement", "leave it out")
            continue
        near = difflib.get_close_matches(name, SUPPORTED, 1)
        raise RequestError(name, "is not a known field", f"did you mean {near[0]}?" if near else "leave it out")


def _messages(body: Mapping[str, object]) -> tuple[Message, ...]:
    found = body.get("messages")
    if not isinstance(found, list) or not found:
        raise RequestError("messages", "is missing or empty", "give a list with at least one user message")
    messages = []
    for i, item in enumerate(found):
        where = f"messages[{i}]"
        if not isinstance(item, dict) or item.get("role") not in ROLES:
            raise RequestError(where, "has no known role", f"use one of {', '.join(ROLES)}")
        # "developer" is OpenAI's newer word for it; a chat template that does not know a role may drop its message.
        role = "system" if item["role"] == "developer" else str(item["role"])
        messages.append(Message(role, _content(item.get("content"), where)))
    return tuple(messages)


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(p.get("text", "")) for p in content)
    raise RequestError(where, "has content that is not text", "send a string or a list of text parts")


def _get(body: Mapping[str, object], name: str, kind: type, words: str) -> Any:
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise RequestError(name, f"is {value!r}", f"give {words}")
    return value


def _integer(body: Mapping[str, object], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise RequestError(name, f"is {value!r}", "give a whole number")
    return value


def _number(body: Mapping[str, object], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        raise RequestError(name, f"is {str(value)[:40]}", "give a number")
    return float(value)


def usage(answer: Answer) -> dict[str, Any]:
    """Token counts as OpenAI names them."""
    prompt, completion = answer.prompt_tokens, len(answer.token_ids)
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**counts, "prompt_tokens_details": {"cached_tokens": answer.cached_tokens}}


def completion(request_id: str, created: int, answer: Answer) -> dict[str, Any]:
    """A whole chat completion; `coterie` holds the route and the timings."""
    return {
        "id": request_id,
        "object": "chat.completion",
        "created": created,
        "model": answer.expert,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "finish_reason": answer.finish_reason,
                "logprobs": None,
            }
        ],
        "usage": usage(answer),
        "coterie": details(answer),
    }


def details(answer: Answer) -> dict[str, Any]:
    """Route, timings and tokens; the text is where OpenAI has it."""
    return {name: value for name, value in answer.to_dict().items() if name != "text"}


def chunk_maker(request_id: str, created: int, model: str) -> Callable[..., dict[str, Any]]:
    """A function that makes the streamed chunks of one completion."""

    def make(delta: Mapping[str, str], finish_reason: str | None = None, **extra: object) -> dict[str, Any]:
        choice = {"index": 0, "delta": dict(delta), "finish_reason": finish_reason, "logprobs": None}
        head = {"id": request_id, "object": "chat.completion.chunk", "created": created, "model": model}
        return {**head, "choices": [choice], **extra}

    return make


def error_body(error: CoterieError) -> tuple[int, dict[str, Any]]:
    """HTTP status and OpenAI error object for a failure."""
    status, kind, code = 500, "server_error", "device_error"
    if isinstance(error, NotFoundError):
        status, kind, code = 404, "invalid_request_error", "model_not_found"
    elif isinstance(error, CrowdedError):
        status, kind, code = 429, "requests", "rate_limit_exceeded"
    elif isinstance(error, ConflictError):
        status, kind, code = 409, "invalid_request_error", "conflict"
    elif isinstance(error, OversizeError):
        status, kind = 400, "invalid_request_error"
    elif isinstance(error, CapacityError):
        status, kind, code = 503, "server_error", "capacity_exceeded"
    elif isinstance(error, ClosedError):
        status, kind, code = 503, "server_error", "shutting_down"
    elif isinstance(error, UsageError):
        status, kind, code = 400, "invalid_request_error", "invalid_value"
    param = error.where if status == 400 else None
    if isinstance(error, ContextError | OversizeError):
        param, code = "messages", "context_length_exceeded"  # clients know this code, and shorten the conversation
    return status, {"error": {"message": str(error), "type": kind, "param": param, "code": code}}

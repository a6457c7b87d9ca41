"""POST /api/chat and /api/generate, the request: a body as a query, or only to load or unload a model.

    messages, options, format, think, tools -> Query        no prompt -> None: its model is loaded, or unloaded

Knows nothing about answers. Source: Ollama's API reference, "Generate a chat message" and "Generate a response".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.api import Message, Query
from coterie.checkpoint.grammar import ANY_OBJECT
from coterie.composition.composition import Composition
from coterie.core.errors import RequestError, shown
from coterie.core.sampling import PartialSampling
from coterie.server import fields
from coterie.server.choosing import choosing
from coterie.server.messages import effort, message
from coterie.server.ollama.names import keep_alive, named
from coterie.server.tools import calling, offered

# Ollama's sampling if neither a request nor a model's parameters say otherwise; its repeat_penalty is 1 (none) since
# 2026. Source: ollama/ollama, api/types.go, DefaultOptions, and pull request 17679.
DEFAULT_SAMPLING = PartialSampling(temperature=0.8, top_k=40, top_p=0.9)
SHARED = ("model", "stream", "options", "format", "keep_alive", "think", "logprobs", "top_logprobs")
CHAT = (*SHARED, "messages", "tools")
GENERATE = (*SHARED, "prompt", "suffix", "system", "raw")
# Features that Coterie does not implement: refused unless the value is one of these, which request nothing.
OF_CHAT: Mapping[str, tuple[object, ...]] = {"truncate": (True,), "shift": (True,), "template": ("",)}
OF_GENERATE: Mapping[str, tuple[object, ...]] = {**OF_CHAT, **dict.fromkeys(("width", "height", "steps"), (0,))}
SAMPLED = ("temperature", "top_k", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty")
# Options for loading a model, and for shifting its context: here a model always has its whole context.
LOADING = ("numa", "low_vram", "f16_kv", "logits_all", "vocab_only", "embedding_only", "num_keep")
OPTIONS = (*SAMPLED, *LOADING, "repetition_penalty", "max_tokens", "stop", "repeat_penalty", "num_predict")
OF_OPTIONS: Mapping[str, tuple[object, ...]] = {"penalize_newline": (True,)}  # penalised like all other tokens
ANY_SEED = -1
_CONTEXT = "send the conversation as messages to /api/chat: this server keeps what it has computed of it"
_ONLY_TEXT = "send text alone: no expert here reads images"


@dataclass(frozen=True, slots=True)
class OllamaBody:
    """A validated request body. `model`: the composition's name for the model asked; `requested_model`: the request's.

    `query` None: only load the model, or, if `keep_s` is 0, unload it. `keep_s`: how long to keep it after the answer,
    in seconds; None: the default, negative: for ever.
    """

    model: str
    requested_model: str
    query: Query | None
    stream: bool
    keep_s: float | None


def parse_chat(body: object, composition: Composition) -> OllamaBody:
    """Turn a decoded JSON body into a Query. Raises RequestError naming the field and what to change."""
    given = fields.as_object(body, "model and messages")
    fields.check_names(given, CHAT, OF_CHAT)
    turns = fields.get(given, "messages", list, "a list of messages") or []
    tools = fields.get(given, "tools", list, "a list of functions") or []
    functions = [{"type": "function", **tool} if isinstance(tool, dict) else tool for tool in tools]
    return _body_of(given, composition, conversation(turns) if turns else (), tools=offered({"tools": functions}))


def parse_generate(body: object, composition: Composition) -> OllamaBody:
    """Turn a decoded JSON body into a Query. Raises RequestError naming the field and what to change."""
    given = fields.as_object(body, "model and prompt")
    if given.get("context"):
        raise RequestError("context", "is given, which no answer of this server has", _CONTEXT)
    _check_images(given, "images")
    fields.check_names({**given, "context": None, "images": None}, GENERATE, OF_GENERATE)
    prompt, suffix, system = [fields.get(given, name, str, "a text") or "" for name in ("prompt", "suffix", "system")]
    as_it_is = fields.flag(given, "raw") or bool(suffix)
    if system and as_it_is:
        fact = f"is given with {'suffix' if suffix else 'raw'}, by which the prompt is not put into a chat template"
        raise RequestError("system", fact, "leave one of the two out")
    messages: tuple[Message, ...] = (Message("user", prompt),) if prompt or suffix else ()
    if messages and system:
        messages = (Message("system", system), *messages)
    return _body_of(given, composition, messages, raw=as_it_is, suffix=suffix)


def _body_of(
    given: Mapping[str, Any], composition: Composition, messages: tuple[Message, ...], **more: Any
) -> OllamaBody:
    """What both endpoints share; everything is validated, even if there is nothing to answer."""
    model, stream = named(given, composition), given.get("stream") is None or fields.flag(given, "stream")
    options = _options(given)
    seed = fields.integer(options, "seed")
    tools = more.get("tools", ())
    query = Query(
        messages=messages,
        model=model,
        sampling=fields.sampling({**options, "seed": None if seed == ANY_SEED else seed}),
        max_tokens=_limit(options),
        stop=fields.stops(options),
        calling=calling({}, tools),
        choice=choosing(given),
        form=_form(given.get("format")),
        switches=_thinking(given.get("think")),
        fallback_sampling=DEFAULT_SAMPLING,
        **more,
    )
    return OllamaBody(model, str(given["model"]), query if messages else None, stream, keep_alive(given))


def check_options(given: Mapping[str, object]) -> None:
    """Refuse invalid options, even where they have no effect. Raises RequestError."""
    options = _options(given)
    fields.sampling(options)


def _options(given: Mapping[str, object]) -> dict[str, Any]:
    options = fields.get(given, "options", dict, "an object") or {}
    found = fields.without_synonyms(options)
    fields.check_names(found, OPTIONS, OF_OPTIONS, "options.")
    return found


def _limit(options: Mapping[str, object]) -> int | None:
    """The limit on an answer's tokens; None for a negative one. Raises RequestError."""
    found = fields.integer(options, "max_tokens")
    if found == 0:
        raise RequestError("num_predict", "is 0", "allowed is 1 or more, or -1 for no limit of its own")
    return None if found is None or found < 0 else found


def _form(given: object) -> str:
    """The JSON schema, as JSON, by which `format` constrains an answer; empty: none. Raises RequestError."""
    if given is None or given == "":
        return ""
    if given == "json":
        return ANY_OBJECT
    if not isinstance(given, dict):
        raise RequestError("format", f"is {shown(given)}", "give json, or a JSON schema that is an object")
    return json.dumps(given)


def _thinking(given: object) -> dict[str, Any]:
    """Whether, and how much, to think, as chat-template variables. Raises RequestError."""
    if isinstance(given, bool):
        return {"enable_thinking": given, "thinking": given}
    return effort(given, "think")


def _check_images(given: Mapping[str, Any], where: str) -> None:
    if given.get("images"):
        raise RequestError(where, "are given", _ONLY_TEXT)


def conversation(turns: list[Any]) -> tuple[Message, ...]:
    """The messages of a chat.

    In this API calls and results may have no ids; they are matched by the tool's name and by order. Raises RequestError
    that names the message and what to change.
    """
    made: list[tuple[str, str]] = []  # calls without a result so far: the id and the tool
    ids = iter(range(10**5))

    def new_id() -> str:
        return f"call{next(ids):05d}"  # nine letters and digits, the same each time the conversation is sent

    return tuple([_message(turn, f"messages[{place}]", made, new_id) for place, turn in enumerate(turns)])


def _message(turn: object, where: str, made: list[tuple[str, str]], new_id: Callable[[], str]) -> Message:
    if not isinstance(turn, dict):
        raise RequestError(where, f"is {shown(turn)}", "send objects with role and content")
    _check_images(turn, f"{where}.images")
    content = fields.get(turn, "content", str, "a text", f"{where}.") or ""
    found: dict[str, Any] = {"role": turn.get("role"), "content": content}
    if turn.get("role") == "assistant":
        found["reasoning_content"] = fields.get(turn, "thinking", str, "a text", f"{where}.")
        calls = fields.get(turn, "tool_calls", list, "a list of calls", f"{where}.") or []
        found["tool_calls"] = [_call(call, new_id) for call in calls]
        made += [(call["id"], call["function"].get("name")) for call in found["tool_calls"] if call is not None]
    elif turn.get("role") == "tool":
        tool = next((turn[name] for name in ("tool_name", "name") if isinstance(turn.get(name), str)), "")
        known = turn.get("tool_call_id")
        place = next((n for n, (call_id, name) in enumerate(made) if known == call_id or tool == name), 0)
        before = made.pop(place) if made and (not known or known == made[place][0]) else (known or new_id(), "")
        found |= {"tool_call_id": before[0], "name": tool or before[1]}
    return message(found, where)


def _call(call: object, new_id: Callable[[], str]) -> dict[str, Any] | None:
    """A call in chat's format, its arguments as text; None if it is invalid."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        return None
    arguments = function.get("arguments")
    as_text = arguments if isinstance(arguments, str) else json.dumps({} if arguments is None else arguments)
    known = call.get("id")
    own = known if isinstance(known, str) and known else new_id()
    return {"id": own, "function": {"name": function.get("name"), "arguments": as_text}}

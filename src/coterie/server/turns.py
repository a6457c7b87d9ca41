"""POST /v1/messages, the request: a body of Anthropic's Messages API as a query, its content blocks as messages.

    system, turns of blocks (text, thinking, tool_use, tool_result) -> Message ...      tools -> chat's functions

Knows nothing about answers. Source: the Anthropic API reference, "Create a message".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.api import Message, Query, Serving
from coterie.api.texts import speaker
from coterie.api.types import ToolCall
from coterie.core.errors import CoterieError, RequestError, shown
from coterie.server import fields
from coterie.server.messages import effort
from coterie.server.structured import form_of
from coterie.server.tokens import check_one_template, tokens_of
from coterie.server.tools import calling, offered

# A conversation stored by the server; clients that get this refusal from `turn_error` send all of it each time.
THREAD = "thread"
# Features that Coterie does not implement: refused unless the value is one of these, which request nothing.
REFUSED: Mapping[str, tuple[object, ...]] = {"mcp_servers": ([],), "container": (), THREAD: ()}
# Accepted without effect: hints on what may be dropped from a conversation, where and for whom it runs, diagnostics.
IGNORED = (
    *("context_management", "cache_control", "inference_geo", "speed"),
    *("diagnostics", "user_profile_id", "workspace_id"),
)
SAMPLED = ("temperature", "top_p", "top_k", "min_p", "seed")
ASKED = ("model", "stream", "max_tokens", "messages", "system", "stop_sequences")
SUPPORTED = (*SAMPLED, *IGNORED, *ASKED, "tools", "tool_choice", "thinking", "output_config")
_OWN = {"response_format": "output_config.format", "prompt": "messages"}
_OWN_PARTS = {
    "response_format.json_schema.": "output_config.format.",
    "].function.parameters": "].input_schema",
    "].function.": "].",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


@dataclass(frozen=True, slots=True)
class TurnsBody:
    """A validated request body."""

    query: Query
    stream: bool


def parse_turns(body: object) -> TurnsBody:
    """Turn a decoded JSON body into a Query. Raises RequestError naming the field and what to change."""
    given = fields.as_object(body, "model, max_tokens and messages")
    limit = fields.integer(given, "max_tokens")
    if limit is None or limit < 1:
        fact = "is missing" if limit is None else f"is {limit}"
        raise RequestError("max_tokens", fact, "say how many tokens the answer may have, 1 or more")
    return TurnsBody(_query(given, limit), fields.flag(given, "stream"))


def count_tokens(body: object, coterie: Serving) -> dict[str, Any]:
    """How many tokens the prompt of such a body has. Raises RequestError, NotFoundError."""
    query = _query(fields.as_object(body, "model and messages"), None)
    check_one_template(coterie, query.model)
    text = speaker(coterie.texts, coterie.composition, query.model)
    return {"input_tokens": len(tokens_of(text, query, coterie))}


def turn_words(error: CoterieError) -> CoterieError:
    """Translates an error from chat's field names to this endpoint's."""
    return fields.translate_error(error, _OWN, _OWN_PARTS)


def _query(given: Mapping[str, Any], limit: int | None) -> Query:
    fields.check_names(given, SUPPORTED, REFUSED)
    chat = {"tools": _tools(given), **_choice(given)}
    tools, output = offered(chat), fields.get(given, "output_config", dict, "an object") or {}
    fields.check_names(output, ("effort", "format"), {"task_budget": ()}, "output_config.")
    messages = _conversation(given)
    if messages[-1] == Message("assistant", ""):  # the API allows an empty last message: it begins no answer
        messages = messages[:-1]
    return Query(
        messages=messages,
        model=fields.model(given),
        sampling=fields.sampling(given),
        max_tokens=limit,
        stop=fields.stops(given, "stop_sequences"),
        tools=tools,
        calling=calling(chat, tools),
        form=form_of({"response_format": _format(output.get("format"))}),
        switches={**_thinking(given), **effort(output.get("effort"), "output_config.effort")},
        continues=bool(messages) and messages[-1].role == "assistant",
    )


def _thinking(given: Mapping[str, Any]) -> dict[str, Any]:
    """Whether to think, as chat-template variables; templates know no budget, so it is ignored."""
    found = fields.get(given, "thinking", dict, "an object with a type") or {"type": "adaptive"}
    kinds = {"enabled": True, "disabled": False, "adaptive": None}
    if found.get("type") not in tuple(kinds):  # a list is not hashable
        raise RequestError("thinking.type", f"is {shown(found.get('type'))}", f"use one of {', '.join(kinds)}")
    wanted = kinds[found["type"]]
    return {} if wanted is None else {"enable_thinking": wanted, "thinking": wanted}


def _format(given: object) -> object:
    """`output_config.format` as chat's `response_format`."""
    if isinstance(given, dict) and given.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": given.get("schema")}}
    return given


def _conversation(given: Mapping[str, Any]) -> tuple[Message, ...]:
    system = _text_of(given.get("system") or "", "system")
    messages = [Message("system", system)] if system else []
    turns = given.get("messages")
    if not isinstance(turns, list) or not turns:
        raise RequestError("messages", "is missing or empty", "give a list with at least one user message")
    names: dict[str, str] = {}
    for place, turn in enumerate(turns):
        where = f"messages[{place}]"
        role = turn.get("role") if isinstance(turn, dict) else None
        if role == "system":  # further ones; the first has its own field
            messages.append(Message("system", _text_of(turn.get("content"), f"{where}.content")))
            continue
        if role not in ("user", "assistant"):
            raise RequestError(where, "has no known role", "use user, assistant or system")
        blocks = _blocks(turn.get("content"), where)
        messages += (
            [_assistant_message(blocks, where, names)] if role == "assistant" else _user_messages(blocks, where, names)
        )
    return tuple(messages)


def _blocks(content: object, where: str) -> Sequence[Mapping[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise RequestError(f"{where}.content", "is neither text nor blocks", "send a string or a list of blocks")
    return content


def _assistant_message(blocks: Sequence[Mapping[str, Any]], where: str, names: dict[str, str]) -> Message:
    """An assistant's text, reasoning and calls; adds its calls' tools to `names`, by call id."""
    text, thought, calls = "", "", list[ToolCall]()
    for place, block in enumerate(blocks):
        at, kind = f"{where}.content[{place}]", block.get("type")
        if kind == "thinking":
            thought += str(block.get("thinking") or "")
        elif kind == "tool_use":
            call_id, name, arguments = block.get("id"), block.get("name"), block.get("input")
            if not isinstance(call_id, str) or not isinstance(name, str) or not isinstance(arguments, dict):
                raise RequestError(at, "is no call with an id, a name and an input", "send it as the answer had it")
            names[call_id] = name
            calls.append(ToolCall(call_id, name, arguments))
        elif kind != "redacted_thinking":  # encrypted by another service
            text += _text(block, at)
    return Message("assistant", text, tuple(calls), reasoning=thought)


def _user_messages(blocks: Sequence[Mapping[str, Any]], where: str, names: Mapping[str, str]) -> list[Message]:
    """Results of calls, followed by the user's text."""
    results, texts = list[Message](), list[str]()
    for place, block in enumerate(blocks):
        at = f"{where}.content[{place}]"
        if block.get("type") != "tool_result":
            texts.append(_text(block, at))
            continue
        call_id = block.get("tool_use_id")
        if not isinstance(call_id, str) or not call_id:
            raise RequestError(
                at, "is the result of a call, but does not say of which", "give the call's id, tool_use_id"
            )
        result = _text_of(block.get("content") or "", f"{at}.content")
        results.append(Message("tool", result, call_id=call_id, name=names.get(call_id, "")))
    return [*results, *([Message("user", "".join(texts))] if texts or not results else [])]


def _text_of(content: object, where: str) -> str:
    """Text, given as a string or in blocks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(where, "is not text", "send a string or a list of text blocks")
    return "".join([_text(block, f"{where}[{place}]") for place, block in enumerate(content)])


def _text(block: object, where: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    text = block.get("text") if isinstance(block, dict) and kind == "text" else None
    if not isinstance(text, str):
        raise RequestError(where, f"is no text: a block of type {shown(kind)}", "send text blocks alone")
    return text


def _tools(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tools in chat's format. Raises RequestError."""
    tools = fields.get(given, "tools", list, "a list of tools") or []
    return [_function(tool, f"tools[{place}]") for place, tool in enumerate(tools)]


def _function(tool: object, where: str) -> dict[str, Any]:
    kind = tool.get("type") or "custom" if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or kind != "custom":
        raise RequestError(where, f"is of type {shown(kind)}", "offer tools of your own alone: nothing is run here")
    schema = fields.get(tool, "input_schema", dict, "a JSON schema that is an object", f"{where}.")
    found = {"name": tool.get("name"), "description": tool.get("description"), "parameters": schema}
    strict = {"strict": True} if fields.flag(tool, "strict", f"{where}.") else {}
    return {"type": "function", "function": {key: value for key, value in found.items() if value is not None} | strict}


def _choice(given: Mapping[str, Any]) -> dict[str, Any]:
    """`tool_choice` in chat's format. Raises RequestError."""
    choice = fields.get(given, "tool_choice", dict, "an object with a type") or {"type": "auto"}
    kind, several = choice.get("type"), not fields.flag(choice, "disable_parallel_tool_use", "tool_choice.")
    if kind == "tool":
        named = {"type": "function", "function": {"name": choice.get("name")}}
        return {"tool_choice": named, "parallel_tool_calls": several}
    if kind not in tuple(_CHOICES):
        raise RequestError("tool_choice.type", f"is {shown(kind)}", f"use one of {', '.join(_CHOICES)} or tool")
    return {"tool_choice": _CHOICES[kind], "parallel_tool_calls": several}

"""Tools in chat: those that a request offers, and an answer's text and calls in OpenAI's format.

Knows nothing about how a model writes calls.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coterie.checkpoint.calls import Call, Calling, CallReader, Found
from coterie.core.errors import RequestError, shown
from coterie.server import fields

TOOLS = ("tools", "tool_choice", "parallel_tool_calls")
ID_CHARS = 9  # exactly this many letters and digits: Mistral's templates refuse other ids when they are sent back
_ALLOWED = '{"mode": "auto", or "required", "tools": [{"type": "function", "function": {"name": ...}}]}'
_LETTERS = string.ascii_letters + string.digits


def offered(body: Mapping[str, object]) -> tuple[Mapping[str, Any], ...]:
    """The tools that the model may call. Raises RequestError that names the tool and what to change.

    With `tool_choice` none the prompt has no tools.
    """
    tools = fields.get(body, "tools", list, "a list of functions") or []
    for place, tool in enumerate(tools):
        _check(tool, f"tools[{place}]")
    return () if body.get("tool_choice") == "none" else tuple(tools)


def calling(body: Mapping[str, object], tools: Sequence[Mapping[str, Any]]) -> Calling:
    """The requirements of `tool_choice` and `parallel_tool_calls` on the calls. Raises RequestError."""
    several = fields.get(body, "parallel_tool_calls", bool, "true or false") is not False
    choice = body.get("tool_choice")
    if choice in (None, "auto", "none"):
        return Calling(several=several)
    if choice == "required":
        _offers(tools, ())
        return Calling(True, several)
    if isinstance(choice, dict) and choice.get("type") == "function":
        named = _name(choice, "tool_choice")
        _offers(tools, [named])
        return Calling(True, False, (named,))
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        mode, given = (allowed.get("mode"), allowed.get("tools")) if isinstance(allowed, dict) else (None, None)
        if mode not in ("auto", "required") or not isinstance(given, list) or not given:
            raise RequestError("tool_choice", "has allowed_tools without mode and tools", f"give {_ALLOWED}")
        only = tuple([_name(tool, "tool_choice.allowed_tools") for tool in given])
        _offers(tools, only)
        return Calling(mode == "required", several, only)
    words = 'give none, auto, required or {"type": "function", "function": {"name": ...}}'
    raise RequestError("tool_choice", f"is {shown(choice)}", words)


def _name(tool: object, where: str) -> str:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        fact = "names no function"
        raise RequestError(where, fact, 'give {"type": "function", "function": {"name": ...}}')
    return name


def _offers(tools: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    known = [tool["function"]["name"] for tool in tools]
    if not known:
        raise RequestError("tool_choice", "asks for a call, but no tools are offered", "give tools, or leave it out")
    for name in names:
        if name not in known:
            fact = f"names {shown(name)}, which is not offered"
            raise RequestError("tool_choice", fact, f"offered are {', '.join(known[:8])}")


def _check(tool: object, where: str) -> None:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RequestError(where, "is no function with a name", 'give {"type": "function", "function": {"name": ...}}')
    within = f"{where}.function."
    fields.get(function, "description", str, "a string", within)
    fields.get(function, "parameters", dict, "a JSON schema that is an object", within)
    fields.flag(function, "strict", within)


class MessageWriter:
    """One choice's text and calls, whole or in pieces. Without a `reader` everything is text."""

    def __init__(self, reader: CallReader | None) -> None:
        self._reader = reader
        self._begun = False
        self._num_calls = 0

    @property
    def is_text_only(self) -> bool:
        """True if all that follows is plain text: the role has been sent, and no calls are parsed."""
        return self._begun and self._reader is None

    def message(self, text: str, reasoning: str = "") -> dict[str, Any]:
        """A whole answer's message; `content` is null if there are only calls."""
        thought = {"reasoning_content": reasoning} if reasoning else {}
        content, calls = "", list[dict[str, Any]]()
        for item in found_in(self._reader, text, last=True):
            if isinstance(item, str):
                content += item
            elif isinstance(item, Call):
                calls.append(_body(item))
            else:
                calls[-1]["function"]["arguments"] += item.arguments
        if not calls:
            return {"role": "assistant", "content": content, **thought}
        return {"role": "assistant", "content": content or None, **thought, "tool_calls": calls}

    def deltas(self, text: str, last: bool, reasoning: str = "") -> Iterator[dict[str, Any]]:
        """The deltas for new text and reasoning; the first one has the role."""
        found = list(found_in(self._reader, text, last))
        if not self._begun:
            self._begun = True
            first = found.pop(0) if found and isinstance(found[0], str) and not reasoning else ""
            yield {"role": "assistant", "content": first}
        if reasoning:
            yield {"reasoning_content": reasoning}
        for item in found:
            if isinstance(item, str):
                yield {"content": item}
            elif isinstance(item, Call):
                yield {"tool_calls": [{"index": self._num_calls, **_body(item)}]}
                self._num_calls += 1
            else:
                yield {"tool_calls": [{"index": self._num_calls - 1, "function": {"arguments": item.arguments}}]}

    def reason(self, finish_reason: str) -> str:
        """The finish reason."""
        called = self._reader is not None and self._reader.num_calls > 0 and not self._reader.cut
        return "tool_calls" if called and finish_reason == "stop" else finish_reason


def found_in(reader: CallReader | None, text: str, last: bool = False) -> Sequence[Found]:
    """The text and calls in new text; with `last`, also what was held back. Without a reader everything is text."""
    if reader is None:
        return [text] if text else []
    found = reader.push(text)
    return [*found, *reader.flush()] if last else found


def new_call_id() -> str:
    """A new call id."""
    return "".join(secrets.choice(_LETTERS) for _ in range(ID_CHARS))


def _body(call: Call) -> dict[str, Any]:
    return {"id": new_call_id(), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}

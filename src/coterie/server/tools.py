"""Tools in chat: what a request offers, and an answer's text and calls as OpenAI writes them.

Knows nothing about how a model writes calls.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coterie.checkpoint.calls import Call, CallText
from coterie.core.errors import RequestError
from coterie.server import fields
from coterie.server.messages import check_text

ID_CHARS = 9  # exactly so many letters and digits: Mistral's templates refuse other ids when they come back
_LETTERS = string.ascii_letters + string.digits


def offered(body: Mapping[str, object]) -> tuple[Mapping[str, Any], ...]:
    """The tools that the model may call. Raises RequestError that names the tool and what to change.

    `tool_choice` none takes them out of the prompt; what would force a call, or bound it, is refused by name.
    """
    tools = fields.get(body, "tools", list, "a list of functions") or []
    for place, tool in enumerate(tools):
        _check(tool, f"tools[{place}]")
    if tools and body.get("parallel_tool_calls") is False:
        fact = "is false, but the model alone decides how many calls it makes"
        raise RequestError("parallel_tool_calls", fact, "leave it out")
    return () if body.get("tool_choice") == "none" else tuple(tools)


def _check(tool: object, where: str) -> None:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RequestError(where, "is no function with a name", 'give {"type": "function", "function": {"name": ...}}')
    if not isinstance(function.get("parameters", {}), dict):
        raise RequestError(f"{where}.function.parameters", "is no JSON schema", "give an object, or leave it out")
    if function.get("strict"):
        fact = "is set, but nothing holds a model to the schema of its arguments"
        raise RequestError(f"{where}.function.strict", fact, "leave it out, and check the arguments")
    check_text(tool, where)


class Spoken:
    """One choice's text and calls, whole or piece by piece. Without a `reader` all of it is text."""

    def __init__(self, reader: CallText | None) -> None:
        self._reader = reader
        self._begun = False
        self._num_calls = 0

    def message(self, text: str) -> dict[str, Any]:
        """A whole answer's message; `content` is null where there are calls alone."""
        found = self._find(text, last=True)
        calls = [_body(item) for item in found if isinstance(item, Call)]
        said = "".join(item for item in found if isinstance(item, str))
        if not calls:
            return {"role": "assistant", "content": said}
        return {"role": "assistant", "content": said or None, "tool_calls": calls}

    def deltas(self, text: str, last: bool) -> Iterator[dict[str, Any]]:
        """What a stream says of new text; at first, who speaks."""
        found = list(self._find(text, last))
        if not self._begun:
            self._begun = True
            first = found.pop(0) if found and isinstance(found[0], str) else ""
            yield {"role": "assistant", "content": first}
        for item in found:
            if isinstance(item, str):
                yield {"content": item}
            else:
                yield {"tool_calls": [{"index": self._num_calls, **_body(item)}]}
                self._num_calls += 1

    def reason(self, finish_reason: str) -> str:
        """Why it ended."""
        called = self._reader is not None and self._reader.num_calls > 0
        return "tool_calls" if called and finish_reason == "stop" else finish_reason

    def _find(self, text: str, last: bool) -> Sequence[str | Call]:
        if self._reader is None:
            return [text] if text else []
        found = self._reader.push(text)
        return [*found, *self._reader.flush()] if last else found


def _body(call: Call) -> dict[str, Any]:
    call_id = "".join(secrets.choice(_LETTERS) for _ in range(ID_CHARS))
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}

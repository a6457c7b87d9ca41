"""The messages of a chat request: texts, an assistant's tool calls, and their results.

Knows nothing about templates. Source: the OpenAI API reference, "Create chat completion".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.api import Message
from coterie.api.types import ToolCall
from coterie.checkpoint.chat import RESERVED_VARIABLES
from coterie.core.errors import RequestError, shown
from coterie.server import fields
from coterie.server.body import parsed

SWITCHES = "chat_template_kwargs"  # the name in vLLM, SGLang and llama.cpp
EFFORT = "reasoning_effort"
PREDICTION = "prediction"
CONTINUING = ("continue_final_message", "add_generation_prompt")  # the names in transformers, vLLM and SGLang
# As in templates: gpt-oss's has three levels; most others only have a switch for thinking, under either name.
EFFORTS = {"none": "", "minimal": "low", "low": "low", "medium": "medium", "high": "high"}
EFFORTS |= {"xhigh": "high", "max": "high"}
REASONING = ("reasoning_content", "reasoning")  # in a message: DeepSeek's name, and vLLM's newer one
ROLES = ("system", "developer", "user", "assistant", "tool")
_ELSEWHERE = {"function_call": "send tool_calls", "audio": "send its transcript as content"}


def messages(body: Mapping[str, object]) -> tuple[Message, ...]:
    """The conversation. Raises RequestError that names the message and what to change."""
    found = body.get("messages")
    if not isinstance(found, list) or not found:
        raise RequestError("messages", "is missing or empty", "give a list with at least one user message")
    return tuple(message(item, f"messages[{place}]") for place, item in enumerate(found))


def predicted(body: Mapping[str, object]) -> str:
    """The text that the answer is expected to repeat; empty: none. Raises RequestError."""
    given = fields.get(body, PREDICTION, dict, "an object") or {}
    if not given:
        return ""
    fields.check_names(given, ("type", "content"), {}, f"{PREDICTION}.")
    if given.get("type") != "content":
        raise RequestError(f"{PREDICTION}.type", f"is {shown(given.get('type'))}", "give content, the only type")
    return _content(given.get("content"), PREDICTION)


def switches(body: Mapping[str, object]) -> Mapping[str, Any]:
    """Values for further variables of chat templates, which use those they know. Raises RequestError."""
    found: dict[str, Any] = fields.get(body, SWITCHES, dict, "an object of a template's variables") or {}
    for name in RESERVED_VARIABLES:
        if name in found:
            raise RequestError(f"{SWITCHES}.{name}", "is what the request itself says", "leave it out")
    return {**_reasoning(body), **effort(body.get(EFFORT), EFFORT), **found}


def _reasoning(body: Mapping[str, object]) -> dict[str, Any]:
    """OpenRouter's field for reasoning effort; its token budget is accepted and ignored. Raises RequestError."""
    given = fields.get(body, REASONING[1], dict, "an object with effort or enabled") or {}
    within = f"{REASONING[1]}."
    fields.check_names(given, ("effort", "enabled", "max_tokens"), {"exclude": (False,), "summary": ("auto",)}, within)
    wanted = fields.flag(given, "enabled", within)
    variables = {} if given.get("enabled") is None else {"enable_thinking": wanted, "thinking": wanted}
    return {**variables, **effort(given.get("effort"), f"{within}effort")}


def continues(body: Mapping[str, object]) -> bool:
    """Whether the answer continues the last message. Raises RequestError."""
    wanted, begins = fields.flag(body, CONTINUING[0]), body.get(CONTINUING[1])
    if begins is not None and fields.flag(body, CONTINUING[1]) == wanted:
        fact = f"is {shown(begins)}, while {CONTINUING[0]} is {shown(wanted)}"
        raise RequestError(CONTINUING[1], fact, "leave it out: an answer is new, or continues the last message")
    return wanted


def effort(given: object, where: str) -> dict[str, Any]:
    """A reasoning effort as chat-template variables. Raises RequestError naming `where`."""
    if given is None:
        return {}
    if not isinstance(given, str) or given not in EFFORTS:
        raise RequestError(where, f"is {shown(given)}", f"use one of {', '.join(EFFORTS)}")
    wanted = EFFORTS[given]
    return {"enable_thinking": bool(wanted), "thinking": bool(wanted)} | ({EFFORT: wanted} if wanted else {})


def message(item: object, where: str) -> Message:
    """One message. Raises RequestError naming `where`."""
    if not isinstance(item, dict) or item.get("role") not in ROLES:
        raise RequestError(where, "has no known role", f"use one of {', '.join(ROLES)}")
    # "developer" is OpenAI's newer name for system; a chat template may drop a message of an unknown role.
    role = "system" if item["role"] == "developer" else str(item["role"])
    content = item.get("content")
    if role == "tool":
        call_id, name = item.get("tool_call_id"), item.get("name")
        if not isinstance(call_id, str) or not call_id:
            raise RequestError(
                where, "is the result of a call, but does not say of which", "give the call's id, tool_call_id"
            )
        return Message(role, _content(content, where), call_id=call_id, name=name if isinstance(name, str) else "")
    if role == "assistant":
        calls = _calls(item.get("tool_calls"), where)
        return Message(role, _text_content(item, where), calls, reasoning=_reasoning_content(item, where))
    return Message(role, _content(content, where))


def _text_content(item: Mapping[str, object], where: str) -> str:
    """An assistant's text, including a refusal; empty if it only made calls, or was cut off before any text."""
    for name, remedy in _ELSEWHERE.items():
        if item.get(name) is not None:
            raise RequestError(f"{where}.{name}", "is given, which Coterie does not read", remedy)
    content, refusal = item.get("content"), fields.get(item, "refusal", str, "a text", f"{where}.")
    return ("" if content is None else _content(content, where)) + (refusal or "")


def _reasoning_content(item: Mapping[str, object], where: str) -> str:
    """An assistant's reasoning; other servers' formats for it are ignored."""
    found = [item[name] for name in REASONING if isinstance(item.get(name), str)]
    return str(found[0]) if found else ""


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(where, "has content that is not text", "send a string or a list of text parts")
    return "".join([_part(part, where) for part in content])


def _part(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    is_text = kind in ("text", "refusal")  # the field has the type's name
    text = part.get(kind) if isinstance(part, dict) and is_text else None
    if not isinstance(text, str):
        what = f"the text of a part is {shown(text)}" if is_text else f"a part of type {shown(kind)}"
        raise RequestError(where, f"has content that is not text: {what}", "send text parts alone")
    return text


def _calls(given: object, where: str) -> tuple[ToolCall, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise RequestError(where, "has tool_calls that are no list", "send them as the answer had them")
    return tuple(call(item, f"{where}.tool_calls[{place}]") for place, item in enumerate(given))


def call(item: object, where: str) -> ToolCall:
    """An assistant's tool call. Raises RequestError naming `where`."""
    function = item.get("function") if isinstance(item, dict) and item.get("type", "function") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(item, dict) or not isinstance(item.get("id"), str) or not isinstance(name, str):
        raise RequestError(where, "is no call of a function with an id and a name", "send it as the answer had it")
    arguments = function.get("arguments") if isinstance(function, dict) else None
    where = f"{where}.arguments"
    # Templates encode arguments as JSON themselves, and would encode a string twice.
    found = parsed(arguments, where) if isinstance(arguments, str) else None
    if not isinstance(found, dict):
        raise RequestError(where, "are no JSON object in a string", "send them as the answer had them")
    return ToolCall(item["id"], name, found)

"""POST /v1/responses, the request: its body as a query, its items as messages, its flat tools in chat's format.

    items of stored turns, items of this input -> messages -> a query for the whole conversation

Knows nothing about answers. Source: the OpenAI API reference, "Create a model response".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coterie.api import Message, Query, Serving
from coterie.api.texts import speaker
from coterie.api.types import ToolCall
from coterie.core.errors import RequestError, shown
from coterie.engine.request import ChoiceParams
from coterie.server import fields
from coterie.server.input_items import kept_items
from coterie.server.messages import call, effort, message
from coterie.server.response_store import NONE_KEPT, PREVIOUS, ClientStore, Turn
from coterie.server.shortening import as_read
from coterie.server.structured import form_of
from coterie.server.tokens import check_one_template, tokens_of
from coterie.server.tools import calling, offered

# Features that Coterie does not implement: refused unless the value is one of these, which request nothing.
REFUSED: Mapping[str, tuple[object, ...]] = {
    "background": (False,),
    "max_tool_calls": (),
    "prompt": (),
}
# Accepted without effect: reasoning is sent unencrypted, and no tool is run here.
INCLUDED = frozenset(
    (
        *("reasoning.encrypted_content", "message.input_image.image_url", "computer_call_output.output.image_url"),
        *("file_search_call.results", "web_search_call.results", "web_search_call.action.sources"),
        "code_interpreter_call.outputs",
    )
)
# Reasoning is not summarised: its items have all of it.
OF_REASONING: Mapping[str, tuple[object, ...]] = {"summary": ("auto",), "generate_summary": ("auto",)}
CONVERSATION, TRUNCATION = "conversation", "truncation"
LOGPROBS, TOP = "message.output_text.logprobs", "top_logprobs"  # the value of `include`, and the number of alternatives
SUPPORTED = (
    *(name for name in fields.SHARED if name not in ("n", "max_tokens", "stop")),
    CONVERSATION,
    PREVIOUS,
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "reasoning",
    "text",
    "tools",
    "tool_choice",
    TOP,
    TRUNCATION,
    "parallel_tool_calls",
)
_NAMED = ("name", "description", "parameters", "strict")  # fields of a function
_PLAIN: Mapping[str, Any] = {"type": "function", "strict": False, "parameters": None}


@dataclass(frozen=True, slots=True)
class ResponseBody:
    """A validated request body.

    `echoed`: fields that the response repeats. `given`: its input items if they are to be stored, else None; `earlier`:
    the turns before them. `truncates`: a prompt that is too long is shortened.
    """

    query: Query
    stream: bool
    echoed: Mapping[str, Any] = field(default_factory=dict)
    given: bytes | None = None
    earlier: tuple[Turn, ...] = ()
    truncates: bool = False


def count_input(body: object, coterie: Serving, mine: ClientStore = NONE_KEPT) -> dict[str, Any]:
    """How many tokens the prompt of such a body has, after any shortening.

    Raises RequestError, NotFoundError.
    """
    parsed = parse_response(body, mine)
    query = parsed.query
    check_one_template(coterie, query.model)
    text = speaker(coterie.texts, coterie.composition, query.model)
    query = as_read(query, text.expert, coterie) if parsed.truncates else query
    return {"object": "response.input_tokens", "input_tokens": len(tokens_of(text, query, coterie))}


def parse_response(body: object, mine: ClientStore = NONE_KEPT) -> ResponseBody:
    """Turn a decoded JSON body into a Query, including the client's stored turns that it continues.

    Raises RequestError naming the field and what to change.
    """
    given = fields.as_object(body, "model and input")
    _check(given)
    given = _with_items(given, mine)
    metadata = fields.get(given, "metadata", dict, "an object of texts") or {}
    for name in metadata:
        fields.get(metadata, name, str, "a text", "metadata.")
    text = fields.get(given, "text", dict, "an object") or {}
    fields.check_names(text, ("format",), {"verbosity": fields.VERBOSITY}, "text.")
    chat = {**given, "tools": _tools(given), "tool_choice": _choice(given.get("tool_choice"))}
    tools, sampling, limit = offered(chat), fields.sampling(given), fields.integer(given, "max_output_tokens")
    previous = fields.get(given, PREVIOUS, str, "the id of a response")
    earlier = mine.find(previous).turns if previous is not None else ()
    truncates = _truncates(given)
    keeps = mine.keeps and (given.get("store") is None or fields.flag(given, "store"))
    query = Query(
        messages=conversation(given, [item for turn in earlier for item in turn.items()]),
        model=fields.model(given),
        sampling=sampling,
        max_tokens=limit,
        tools=tools,
        calling=calling(chat, tools),
        choice=ChoiceParams(top_logprobs=_logprobs(given)),
        form=form_of({"response_format": _format(text.get("format"))}),
        switches=effort(_reasoning(given).get("effort"), "reasoning.effort"),
    )
    echoed = {
        "instructions": given.get("instructions"),
        "max_output_tokens": limit,
        "metadata": metadata,
        "parallel_tool_calls": given.get("parallel_tool_calls") is not False,
        PREVIOUS: previous,
        "reasoning": {"effort": _reasoning(given).get("effort"), "summary": None},
        "store": keeps,
        "temperature": sampling.temperature,
        "text": {"format": text.get("format") or {"type": "text"}},
        "tool_choice": given.get("tool_choice") or "auto",
        TOP: fields.integer(given, TOP) or 0,
        "tools": [{**_PLAIN, **tool["function"]} for tool in chat["tools"]],
        "top_p": sampling.top_p,
        TRUNCATION: "auto" if truncates else "disabled",
    }
    kept = kept_items(given["input"]) if keeps else None
    return ResponseBody(query, fields.streaming(given)[0], echoed, kept, earlier, truncates)


def _check(given: Mapping[str, object]) -> None:
    """Refuse what is not implemented. Raises RequestError."""
    fields.check_names(given, SUPPORTED, REFUSED)
    if given.get(CONVERSATION) is not None:
        fact, remedy = "is given, but this server stores no conversations", f"continue one by {PREVIOUS}"
        raise RequestError(CONVERSATION, fact, remedy)
    fields.flag(given, "store")
    for name in fields.get(given, "include", list, "a list of texts") or []:
        if not isinstance(name, str) or name not in (*INCLUDED, LOGPROBS):
            raise RequestError("include", f"has {shown(name)}, which Coterie does not implement", "leave it out")
    fields.check_names(_reasoning(given), ("effort",), OF_REASONING, "reasoning.")


def _logprobs(given: Mapping[str, object]) -> int | None:
    """The number of alternatives per token for which logprobs are requested; None: no logprobs. Raises RequestError."""
    included = fields.get(given, "include", list, "a list of texts") or []
    wanted, top = LOGPROBS in included, fields.integer(given, TOP)
    if top and not wanted:
        raise RequestError(TOP, f"is {top}, but include has no {LOGPROBS}", "add that to include")
    return (top or 0) if wanted else None


def _with_items(given: dict[str, Any], mine: ClientStore) -> dict[str, Any]:
    """The body with references in its input replaced by the stored output items. Raises RequestError."""
    items = given.get("input")
    if not isinstance(items, list):
        return given
    found = list(items)
    for place, item in enumerate(items):
        if isinstance(item, dict) and item.get("type") == "item_reference":
            item_id = item.get("id")
            referred = mine.item(item_id) if isinstance(item_id, str) else None
            if referred is None:
                fact = f"refers to {shown(item_id)}, which is not the id of a stored output item"
                raise RequestError(f"input[{place}]", fact, "send the item itself")
            found[place] = referred
    return {**given, "input": found}


def _truncates(given: Mapping[str, object]) -> bool:
    """Whether a conversation that is too long may be shortened. Raises RequestError."""
    value = given.get(TRUNCATION)
    if value not in (None, "auto", "disabled"):
        raise RequestError(TRUNCATION, f"is {shown(value)}", "use auto or disabled")
    return value == "auto"


def _reasoning(given: Mapping[str, object]) -> Mapping[str, object]:
    return fields.get(given, "reasoning", dict, "an object") or {}


def conversation(body: Mapping[str, object], earlier: Sequence[object] = ()) -> tuple[Message, ...]:
    """Instructions, earlier items and input as messages. Raises RequestError that names the item and what to change.

    As in chat, calls are merged into the preceding message if it is the assistant's, and reasoning into the following
    one.
    """
    instructions, given = fields.get(body, "instructions", str, "a string"), body.get("input")
    messages = [Message("system", instructions)] if instructions else []
    if isinstance(given, str) and not earlier:
        return (*messages, Message("user", given))
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise RequestError("input", "is missing or empty", "give a string, or a list of items")
    placed = [(item, f"{PREVIOUS}[{place}]") for place, item in enumerate(earlier)]
    placed += [(item, f"input[{place}]") for place, item in enumerate(given)]
    names: dict[str, str] = {}
    thought = ""
    for found in (_item(item, where, names) for item, where in placed):
        if isinstance(found, str):
            thought += found
            continue
        if isinstance(found, Message):
            messages.append(replace(found, reasoning=thought) if found.role == "assistant" else found)
        elif messages and messages[-1].role == "assistant":
            last = messages[-1]
            messages[-1] = replace(last, calls=(*last.calls, found), reasoning=last.reasoning + thought)
        else:
            messages.append(Message("assistant", "", (found,), reasoning=thought))
        thought = ""
    return tuple(messages)


def _item(item: object, where: str, names: dict[str, str]) -> Message | ToolCall | str:
    """One item; `names` maps call ids to function names. A str is reasoning."""
    kind = item.get("type") or "message" if isinstance(item, dict) else None
    if isinstance(item, dict) and kind == "reasoning":
        return _thought(item.get("content"))
    if not isinstance(item, dict) or kind not in ("message", "function_call", "function_call_output"):
        fact = f"is of type {shown(kind)}" if kind else "is no item"
        raise RequestError(where, fact, "send messages, function_call and function_call_output")
    if kind == "message":
        return message({"role": item.get("role"), "content": _content(item.get("content"))}, where)
    call_id = item.get("call_id")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        made = call({"id": call_id, "function": function}, where)
        names[made.call_id] = made.name
        return made
    if not isinstance(call_id, str) or not call_id:
        raise RequestError(where, "is the result of a call, but does not say of which", "give the call's call_id")
    result = {"role": "tool", "content": _content(item.get("output")), "tool_call_id": call_id}
    return message({**result, "name": names.get(call_id)}, where)


def _thought(parts: object) -> str:
    """The text of a reasoning item; empty for another service's, which is encrypted."""
    found = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "".join([str(part["text"]) for part in found if isinstance(part.get("text"), str)])


def _content(content: object) -> object:
    """Text parts with chat's type names; anything else unchanged, to be refused there."""
    if not isinstance(content, list):
        return content
    kinds = ("input_text", "output_text", "text")
    return [{**p, "type": "text"} if isinstance(p, dict) and p.get("type") in kinds else p for p in content]


def _tools(body: Mapping[str, object]) -> list[dict[str, Any]]:
    """Flat functions in chat's format. Raises RequestError."""
    given = fields.get(body, "tools", list, "a list of functions") or []
    return [_nested(tool, f"tools[{place}]") for place, tool in enumerate(given)]


def _nested(tool: object, where: str) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or kind != "function":
        raise RequestError(where, f"is of type {shown(kind)}", "offer functions alone: nothing else is run here")
    return {"type": "function", "function": {name: tool[name] for name in _NAMED if tool.get(name) is not None}}


def _choice(choice: object) -> object:
    """`tool_choice` in chat's format, where it is validated."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        allowed = {"mode": choice.get("mode"), "tools": [_choice(tool) for tool in choice["tools"]]}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice


def _format(given: object) -> object:
    """`text.format` as chat's `response_format`."""
    if isinstance(given, dict) and given.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": given}
    return given

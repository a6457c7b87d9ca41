"""Finds a chat template's form of tool calls by rendering a call with it and trying which form can read the result.

The template's text alone can mislead: signs of one form occur in templates of others, and some templates print
arguments in Python's syntax unless they get them as JSON text.
Knows nothing about template syntax.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.checkpoint.calls import Call, CallText
from coterie.checkpoint.forms import FORMS, Form, form_of
from coterie.core.errors import RequestError

_NAME, _ASKED = "look_up", "What was asked?"
_ARGUMENTS = {"word": "a, b", "count": 7, "inside": {"key": "d"}}
_KINDS = {"word": "string", "count": "integer", "inside": "object"}
_PARAMETERS = {
    "type": "object",
    "properties": {name: {"type": kind, "description": name} for name, kind in _KINDS.items()},
    "required": [*_KINDS],
}
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "Looks up.", "parameters": _PARAMETERS}}
_USER = {"role": "user", "content": _ASKED}
Render = Callable[[Sequence[Mapping[str, Any]], bool, Sequence[Mapping[str, Any]]], str]


@dataclass(frozen=True, slots=True)
class Shown:
    """A template's form of calls, None if none of the known ones. `as_text`: it needs arguments as JSON text."""

    form: Form | None
    as_text: bool = False


def shown_calls(source: str, render: Render) -> Shown:
    """The form of calls of a template with this source. `render`: (messages, add_generation_prompt, tools) -> text.

    If the template does not render calls, or refuses them, its text decides (forms.py).
    """
    told, seen = form_of(source), False
    forms = [form for form in FORMS.values() if form is not told]
    for as_text in (False, True):
        for count, said in _written(render, as_text):
            seen = seen or _NAME in said
            for form in [*([] if told is None else [told]), *forms]:
                if _reads(form, count, said):
                    return Shown(form, as_text)
    return Shown(None if seen else told)


def _written(render: Render, as_text: bool) -> list[tuple[int, str]]:
    """(number of calls, rendered answer) for an answer of two calls, or of one if the template allows only one.

    There are two candidates for where the answer begins: at the first difference from the prompt, and after the
    question.
    """
    arguments = json.dumps(_ARGUMENTS) if as_text else _ARGUMENTS
    calls = [
        {"id": f"abcdefgh{number}", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
        for number in range(2)
    ]
    for count in (2, 1):
        answer = {"role": "assistant", "content": "", "tool_calls": calls[:count]}
        try:
            whole = render([_USER, answer], False, [_TOOL])
            begun = render([_USER], True, [_TOOL])
        except RequestError:
            continue
        ends = min(len(whole), len(begun))
        same = next((at for at in range(ends) if whole[at] != begun[at]), ends)
        return [(count, whole[same:]), (count, whole.rpartition(_ASKED)[2])]
    return []


def _reads(form: Form, count: int, said: str) -> bool:
    reader = CallText(form, {_NAME: _PARAMETERS})
    calls = [found for found in [*reader.push(said), *reader.flush()] if isinstance(found, Call)]
    return [(call.name, json.loads(call.arguments)) for call in calls] == [(_NAME, _ARGUMENTS)] * count

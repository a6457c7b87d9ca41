"""Calls that a grammar holds to their form: the grammar of a form and its tools, and such calls in text as it comes.

    tools, Calling -> grammar -> mask                (grammar.py)
    pieces   '<tool_call>\\n{"name": "add", "argu'   'ments": {"a": '    '2}}\\n</tool_call>'
    found                                           Call("add", "")      More('{"a": ')  More('2}')

What such a call will be is known from its head on, so its arguments are given out before its end.
Knows nothing about tokens but those that are special. Source: github.com/guidance-ai/llguidance, docs/syntax.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from typing import Any

from coterie.checkpoint.calls import Call, Calling, CallText, Found, More
from coterie.checkpoint.forms import Form
from coterie.checkpoint.nesting import Nested
from coterie.checkpoint.sections import Sections
from coterie.checkpoint.tagged import literal, marked
from coterie.core.errors import RequestError

_EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
_BETWEEN = r'"\n"'  # calls in marks of their own
_ANY = r"TEXT: /(?s:.*)/"
# An answer that begins with a brace is a call where a form has calls without a mark.
_NO_BRACE = r"TEXT: /([ \t\r\n]*[^{ \t\r\n](?s:.*))?/"


def is_strict(tool: Mapping[str, Any]) -> bool:
    """Whether a tool's arguments are to be held to its schema."""
    return bool(tool["function"].get("strict"))


def is_constrained(tools: Sequence[Mapping[str, Any]], calling: Calling) -> bool:
    """Whether an answer that is offered these tools is held to a grammar."""
    return bool(tools) and (calling != Calling() or any(map(is_strict, tools)))


def argument_schema(tool: Mapping[str, Any], always: bool, where: str) -> dict[str, Any]:
    """The schema of a tool's arguments: its own where it is strict, or `always`, else any object.

    Raises RequestError naming `where` for one that no object can meet.
    """
    if not (always or is_strict(tool)):
        return {"type": "object"}
    schema = tool["function"].get("parameters")
    if schema is None:
        return _EMPTY
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise RequestError(where, f"has type {kind!r}, but arguments are an object", "give a schema of an object")
    return {**schema, "type": "object"}


def call_grammar(
    form: Form,
    arguments: Mapping[str, Mapping[str, Any]],
    calling: Calling,
    special: Callable[[str], int | None],
    answer: Mapping[str, Any] | None = None,
) -> str:
    """The grammar, in llguidance's Lark, of answers that call tools in a form.

    `arguments`: a schema for each tool that may be called. `special`: a mark's token, where it is a special one.
    `answer`: the schema of an answer that calls none, and then has no text beside calls; None: any text.
    Spaces and order of a call's head are those that templates write. Raises RequestError where no grammar can tell a
    call from an answer.
    """
    if form.bare and answer is not None and not calling.required:
        fact = "is given with tools, whose calls begin with a brace in this expert's format, as JSON does"
        raise RequestError("response_format", fact, "drop one, or ask for a call by tool_choice")
    rules = list(_call_rules(form, arguments, special))
    mark, opening = special(form.opening), marked(form.opening, special)
    if form.bare:
        rules.append("calls: call" + _repeated('"; " call', calling))
        free, text = "calls | TEXT" if mark is None else f"calls | {opening} calls | TEXT", _NO_BRACE
    else:
        rules.append(f"rest: {_rest(form, calling, special)}")
        again = _repeated(rf"{_BETWEEN if form.closing else ''} {opening} rest", calling)
        rules.append(f"calls: {opening} rest" + (again if form.apart else ""))
        # Letters that mark a call end the text before it; a special token is no text anyway.
        rules.append(f"head{'[lazy]' if mark is None else ''}: TEXT {opening}")
        free, text = "(head rest)* TEXT" if calling.several and form.apart else "head rest | TEXT", _ANY
    if answer is not None:
        free = "calls | answer"
        rules.append(f"answer: %json {json.dumps(answer)}")
    return "\n".join([f"start: {'calls' if calling.required else free}", *rules, text])


def _call_rules(
    form: Form, arguments: Mapping[str, Mapping[str, Any]], special: Callable[[str], int | None]
) -> Iterator[str]:
    yield f"call: {' | '.join(f'call_{number}' for number in range(len(arguments)))}"
    for number, (name, schema) in enumerate(arguments.items()):
        if form.layout is not None:
            yield from form.layout.rules(number, name, schema, special)
            continue
        head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{form.arguments}": '
        yield f'call_{number}: {literal(head)} arguments_{number} "}}"'
        yield f"arguments_{number}: %json {json.dumps(schema)}"


def _rest(form: Form, calling: Calling, special: Callable[[str], int | None]) -> str:
    """What follows the mark of a call, or of a list of them."""
    ends = [marked(form.closing, special)] if form.closing else []
    if isinstance(form.layout, Sections):
        between = literal(form.layout.between) if form.layout.between else ""
        return " ".join(["call" + _repeated(f"{between} call", calling), *ends])
    if form.listed:
        return " ".join(['" "? "[" call' + _repeated('", " call', calling) + ' "]"', *ends])
    if not form.closing:
        return "call"
    lead, tail = (form.layout.lead, form.layout.tail) if form.layout is not None else ("\n", "\n")
    return " ".join([*([literal(lead)] if lead else []), "call", *([literal(tail)] if tail else []), *ends])


def _repeated(rule: str, calling: Calling) -> str:
    return f" ({rule})*" if calling.several else ""


class ConstrainedCallText(CallText):
    """As CallText, of an answer that a grammar holds: a call is known by its head, its arguments follow in pieces.

    One that is cut short ends where the answer does. `apart`: an answer has calls or text, not both, so that text
    may spell a call. `alone`: it is nothing but calls, so that the beginning of a head is no text.
    """

    def __init__(self, form: Form, tools: Collection[str], apart: bool = False, alone: bool = False) -> None:
        super().__init__(form, tools)
        self._apart, self._alone = apart, alone
        key = re.escape(json.dumps(form.arguments))
        self._head = re.compile(r'[^{]*\{"name": ("(?:[^"\\]|\\.)*"), ' + key + ": ")
        self._object: Nested | None = None
        self._over = False  # the last call's arguments are whole

    @property
    def cut(self) -> bool:
        """True while the last call's arguments are not whole."""
        return self._object is not None

    def flush(self) -> list[Found]:
        """Return the rest: no more text will come."""
        if self._over:
            self._held = ""  # what follows arguments but for a next head
        found = super().flush()
        return [one for one in found if not isinstance(one, str)] if self._alone else found

    def _text_before_a_call(self) -> Iterator[str]:
        if not self._apart:
            yield from super()._text_before_a_call()
            return
        begins, opening = self._held.lstrip(self._edge), self._form.opening
        self._inside = not self._said and begins.startswith(opening)
        if self._held and (self._said or not opening.startswith(begins[: len(opening)])):
            yield self._take(len(self._held))

    def _block(self, final: bool) -> Generator[Found, None, bool]:
        while True:
            if self._object is not None:
                size = self._object.push(self._held)
                if size:
                    yield More(self._held[:size])
                    self._held = self._held[size:]
                if not self._object.whole:
                    return False
                self._object, self._over = None, True
            if self._over and not self._leave():
                return not self._over
            head = self._head.match(self._held)
            name = None if head is None else _name(head[1])
            if head is None or name is None or name not in self._tools:
                return False  # letters of a text that spell a mark
            self._held = self._held[head.end() :]
            self._object = Nested()
            self.num_calls += 1
            yield Call(name, "")

    def _leave(self) -> bool:
        """Pass over what stands behind arguments, `_over` False once that is known; True: another call of the block."""
        closing, next_head = self._form.closing, self._held.find("{")
        at = self._held.find(closing) if closing else -1
        if closing and not (self._form.listed and 0 <= next_head < (len(self._held) if at < 0 else at)):
            if at >= 0:
                self._held, self._over = self._held[at + len(closing) :], False
            return False
        if next_head >= 0:
            self._held, self._over = self._held[next_head:], False
        return next_head >= 0


def _name(text: str) -> str | None:
    try:
        return str(json.loads(text))
    except ValueError:
        return None

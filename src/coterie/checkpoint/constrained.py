"""Tool calls under constrained decoding: the grammar for a form and its tools, and a reader for such calls in a stream.

    tools, Calling -> grammar -> mask                (grammar.py)
    pieces   '<tool_call>\\n{"name": "add", "argu'   'ments": {"a": '    '2}}\\n</tool_call>'
    found                                           Call("add", "")      More('{"a": ')  More('2}')

The grammar guarantees that a call is complete once its head is read, so its arguments are streamed before it ends.
Knows nothing about tokens, special ones aside. Source: github.com/guidance-ai/llguidance, docs/syntax.md.
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
_BETWEEN = r'"\n"'  # between calls that each have their own marks
_ANY = r"TEXT: /(?s:.*)/"
# In forms with bare calls, text cannot begin with a brace: that would be a call.
_NO_BRACE = r"TEXT: /([ \t\r\n]*[^{ \t\r\n](?s:.*))?/"


def is_strict(tool: Mapping[str, Any]) -> bool:
    """Whether a tool's arguments must follow its schema."""
    return bool(tool["function"].get("strict"))


def is_constrained(tools: Sequence[Mapping[str, Any]], calling: Calling) -> bool:
    """Whether an answer with these tools is decoded under a grammar."""
    return bool(tools) and (calling != Calling() or any(map(is_strict, tools)))


def argument_schema(tool: Mapping[str, Any], always: bool, where: str) -> dict[str, Any]:
    """The schema that a tool's arguments must follow: its own if it is strict or `always` is set, else any object.

    Raises RequestError naming `where` for a schema that no object can satisfy.
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

    `arguments`: a schema for each tool that may be called. `special`: the token id of a mark, if it is a special token.
    `answer`: the schema of an answer without calls; there is no text next to calls then. None: any text.
    The white space and key order of a call's head are those that templates write. Raises RequestError if no grammar can
    distinguish a call from an answer.
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
        # A mark in ordinary tokens ends the text at its first occurrence; a special token cannot occur in text.
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
    """The rule for what follows the opening mark of a call or of a list of calls."""
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
    """CallText for an answer under a grammar: a call is recognised by its head, and its arguments follow in pieces.

    A call that is cut short ends with the answer. `apart`: an answer is either calls or text, so text may contain what
    looks like a call. `alone`: the answer is only calls, so an incomplete head is dropped, not returned as text.
    """

    def __init__(self, form: Form, tools: Collection[str], apart: bool = False, alone: bool = False) -> None:
        super().__init__(form, tools)
        self._apart, self._alone = apart, alone
        key = re.escape(json.dumps(form.arguments))
        self._head = re.compile(r'[^{]*\{"name": ("(?:[^"\\]|\\.)*"), ' + key + ": ")
        self._object: Nested | None = None
        self._over = False  # the last call's arguments are complete

    @property
    def cut(self) -> bool:
        """True while the last call's arguments are incomplete."""
        return self._object is not None

    def flush(self) -> list[Found]:
        """Return the rest: the answer has ended."""
        if self._over:
            self._held = ""  # what follows the arguments, other than another head
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
                return False  # text that happens to spell a mark
            self._held = self._held[head.end() :]
            self._object = Nested()
            self.num_calls += 1
            yield Call(name, "")

    def _leave(self) -> bool:
        """Skip what follows the arguments and clear `_over` once that is known; True: the block has another call."""
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

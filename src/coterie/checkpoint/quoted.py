"""Tool calls as Gemma 4 writes them: objects with unquoted keys, and strings between marks.

    call:add{n:1,text:<|"|>a "b"<|"|>,inner:{list:[true,null]}}

Knows nothing about marks around calls, or tokens. Source: the chat template of Gemma 4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.checkpoint.pythonic import properties_in_turn
from coterie.checkpoint.tagged import (
    OF_OBJECT,
    OF_TEXT,
    Layout,
    Read,
    Schema,
    Special,
    kinds_of,
    listed,
    literal,
    marked,
    named,
    property_of,
    refuse,
)
from coterie.core.errors import RequestError

_HEAD = re.compile(r"\s*call:(?P<name>[^\s{}]+)\s*(?=\{)")
_KEY = re.compile(r"\s*(?P<key>[^\s:{}\[\],][^:{}\[\],]*):\s*")
_BARE = re.compile(r"[^,{}\[\]]*")
_NESTED = ("array", "object")
_MAX_NESTED = 8  # levels of nested values that a schema is enforced for; rule names then have at most _DEPTH "_"
_DEPTH = 3 * _MAX_NESTED
_OF_NUMBER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_OF_LIST = ("items", "minItems", "maxItems")
_OF_VALUE = (*OF_TEXT, *OF_OBJECT, *_OF_LIST, *_OF_NUMBER, "minLength", "maxLength")


@dataclass(frozen=True)
class Quoted(Layout):
    """`quote` delimits a string on both sides. Strings are written literally: there are no escapes."""

    quote: str = '<|"|>'

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks within a call that may be special tokens."""
        return (self.quote,)

    @property
    def within(self) -> tuple[str, str]:
        """The delimiters of a string, in which a block's closing mark is part of the string."""
        return self.quote, self.quote

    def read(self, text: str, tools: Mapping[str, Schema]) -> list[Read]:
        """All calls of a block; none if it is malformed."""
        found, at, size = list[Read](), 0, len(text.rstrip())
        while at < size:
            head = _HEAD.match(text, at)
            if head is None:
                return []
            try:
                value, at = self._value(text, head.end())
            except (ValueError, RecursionError):
                return []
            found.append((head["name"], value))
        return found

    def rules(self, number: int, name: str, schema: Schema, special: Special) -> Iterator[str]:
        """The grammar of a call, in llguidance's Lark, as the rule `call_NUMBER`; properties in the schema's order."""
        yield f"call_{number}: {literal(f'call:{name}')} its_{number}"
        yield from self._object_rules(f"its_{number}", number, schema, schema, special)
        yield from self._any(number, special)

    def check(self, schema: Schema, where: str) -> None:
        """Raise RequestError naming `where` for a schema that cannot be enforced in this form."""
        _check(schema, schema, where)

    def _value(self, text: str, at: int) -> tuple[Any, int]:
        """The value at `at`, and where it ends. Raises ValueError if there is none."""
        if text.startswith(self.quote, at):
            begin = at + len(self.quote)
            end = text.index(self.quote, begin)
            return text[begin:end], end + len(self.quote)
        if text[at : at + 1] == "{":
            return self._object(text, at + 1)
        if text[at : at + 1] == "[":
            return self._list(text, at + 1)
        bare = _BARE.match(text, at)
        said = "" if bare is None else bare[0].strip()
        if bare is None or not said:
            raise ValueError(f"there is no value at {at}")
        try:
            return json.loads(said), bare.end()
        except ValueError:
            return said, bare.end()

    def _object(self, text: str, at: int) -> tuple[dict[str, Any], int]:
        found = dict[str, Any]()
        while (key := _KEY.match(text, at)) is not None:
            name = key["key"].rstrip().removeprefix(self.quote).removesuffix(self.quote)
            found[name], at = self._value(text, key.end())
            at = _behind(text, at)
        return found, _closed(text, at, "}")

    def _list(self, text: str, at: int) -> tuple[list[Any], int]:
        found, at = list[Any](), _blanks(text, at)
        while text[at : at + 1] not in ("]", ""):
            value, at = self._value(text, at)
            found.append(value)
            at = _blanks(text, _behind(text, at))
        return found, _closed(text, at, "]")

    def _object_rules(self, rule: str, number: int, schema: Schema, root: Schema, special: Special) -> Iterator[str]:
        yield f'{rule}: "{{" {rule}_first_0 "}}"'
        yield from properties_in_turn(f"{rule}_first", f"{rule}_p", schema, f"pair_{number}", ",")
        for place, key in enumerate(named(schema.get("properties"))):
            part = f"{rule}_p{place}"
            yield f"{part}: {literal(f'{key}:')} {part}_v"
            yield from self._value_rules(f"{part}_v", number, property_of({**root, **schema}, key), root, special)

    def _value_rules(self, rule: str, number: int, schema: Schema, root: Schema, special: Special) -> Iterator[str]:
        """The grammar of a value. Nested beyond about _MAX_NESTED levels, objects and lists may have any contents."""
        kinds, quote = kinds_of(schema), marked(self.quote, special)
        values = [schema["const"]] if "const" in schema else listed(schema.get("enum"))
        if values:
            ways = [f"{quote} {literal(v)} {quote}" if isinstance(v, str) else literal(json.dumps(v)) for v in values]
            yield f"{rule}: {' | '.join(ways)}"
            return
        deep = rule.count("_") > _DEPTH
        ways = [self._text(number, schema, special)] if "string" in kinds else []
        if "array" in kinds:
            ways.append(f"list_{number}" if deep or "items" not in schema else f"{rule}_l")
        if "object" in kinds:
            ways.append(f"object_{number}" if deep or "properties" not in schema else f"{rule}_o")
        if plain := sorted(kinds - {"string", *_NESTED}):
            of_number = {key: schema[key] for key in _OF_NUMBER if key in schema}
            ways.append(f"%json {json.dumps({**of_number, 'type': plain})}")
        yield f"{rule}: {' | '.join(ways or [f'any_{number}'])}"
        if f"{rule}_l" in ways:
            least, most = (schema.get(key) for key in ("minItems", "maxItems"))
            more = f'("," {rule}_i){{{max(int(least or 1) - 1, 0)},{"" if most is None else max(int(most) - 1, 0)}}}'
            some = f"{rule}_i {more}" if most != 0 else '""'
            yield f'{rule}_l: "[" ({some}){"" if least else "?"} "]"'
            yield from self._value_rules(f"{rule}_i", number, named(schema["items"]), root, special)
        if f"{rule}_o" in ways:
            yield from self._object_rules(f"{rule}_o", number, schema, root, special)

    def _text(self, number: int, schema: Schema, special: Special) -> str:
        """A string, whose length the schema may bound."""
        if not {"minLength", "maxLength"} & set(schema):
            return f"text_{number}"
        quote, letter = marked(self.quote, special), "[^<]" if special(self.quote) is None else "(?s:.)"
        return f"{quote} /{letter}{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}/ {quote}"

    def _any(self, number: int, special: Special) -> Iterator[str]:
        """The rules for an arbitrary value."""
        quote, its = marked(self.quote, special), special(self.quote)
        if its is None:
            yield f"text_{number}: {quote} rest_{number}"
            yield f"rest_{number}[lazy]: /(?s:.*)/ {quote}"
        else:
            yield f"text_{number}: {quote} /(?s:.*)/ {quote}"
        plain = '%json {"type": ["number", "boolean", "null"]}'
        yield f"any_{number}: text_{number} | {plain} | object_{number} | list_{number}"
        yield f'object_{number}: "{{" (pair_{number} ("," pair_{number})*)? "}}"'
        yield rf"pair_{number}: /[^\s:{{}}\[\],<>][^:{{}}\[\],<>]*/ {literal(':')} any_{number}"
        yield f'list_{number}: "[" (any_{number} ("," any_{number})*)? "]"'


def _check(schema: Schema, root: Schema, where: str, depth: int = 0) -> None:
    """Raise RequestError naming `where` for what `_value_rules` would not enforce."""
    refuse(schema, _OF_VALUE, where)
    kinds, either = kinds_of(schema), [named(one) for one in listed(schema.get("anyOf"))]
    known = {"string", "integer", "number", "boolean", "null", "other", *_NESTED}
    loose = any(set(one) - {*OF_TEXT} or kinds_of(one) & {*_NESTED} for one in either)
    if loose or depth > _MAX_NESTED or not kinds <= known or not kinds:
        fact = "is a choice, or nested, beyond what can be enforced in this expert's tool-call format"
        raise RequestError(where, fact, "simplify it, or leave out the tool's strict")
    for key in named(schema.get("properties")):
        _check(property_of({**root, **schema}, key), root, f"{where}.properties.{key}", depth + 1)
    if "items" in schema:
        _check(named(schema["items"]), root, f"{where}.items", depth + 1)


def _blanks(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _behind(text: str, at: int) -> int:
    """The position after white space and a comma, if there is one."""
    at = _blanks(text, at)
    return at + 1 if text[at : at + 1] == "," else at


def _closed(text: str, at: int, bracket: str) -> int:
    at = _blanks(text, at)
    if text[at : at + 1] != bracket:
        raise ValueError(f"there is no {bracket} at {at}")
    return at + 1

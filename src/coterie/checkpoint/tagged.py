"""Tool calls in other layouts than a JSON object: function and parameters in tags, or a name before its arguments.

    Tags     <function=add>\\n<parameter=a>\\n2\\n</parameter>\\n</function>
    Named    add[ARGS]{"a": 2}

Each layout parses its calls and writes a grammar for them.
Knows nothing about marks around calls, or tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from coterie.checkpoint.literals import python_value
from coterie.core.errors import RequestError

Schema = Mapping[str, Any]
Read = tuple[str, dict[str, Any]]  # a name, and arguments
Special = Callable[[str], "int | None"]  # the id of a token that is special, by its text
_DECODER = json.JSONDecoder()
DEFINED = ("$defs", "definitions")
_ABOUT = ("title", "description", "default", "examples", "deprecated")  # annotations, which constrain nothing
OF_OBJECT = (*_ABOUT, *DEFINED, "type", "properties", "required", "additionalProperties", "$schema", "x-guidance")
OF_TEXT = (*_ABOUT, "type", "enum", "const", "anyOf", "$ref")
_TEXT = "/(?s:.*)/"
_PYTHON = {"True": ("boolean", True), "False": ("boolean", False), "None": ("null", None)}  # Qwen3-Coder's template


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How calls are written between the marks of a block; `lead` and `tail` surround them."""

    lead: str = ""
    tail: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks within a call that may be special tokens; by default none."""
        return ()

    def check(self, schema: Schema, where: str) -> None:
        """Raise RequestError naming `where` for a schema that this layout cannot enforce; by default none."""


@dataclass(frozen=True)
class Tags(Layout):
    """Functions and parameters as elements, with NAME, KEY and VALUE as placeholders."""

    head: str
    parameter: str
    end: str = ""
    lead: str = field(default="\n", kw_only=True)
    tail: str = field(default="\n", kw_only=True)

    def read(self, text: str, tools: Mapping[str, Schema]) -> list[Read]:
        """All calls of a block; none if it is malformed. White space between tags may vary."""
        found, at, size = list[Read](), 0, len(text.rstrip())
        while at < size:
            head = self._head.match(text, at)
            if head is None:
                return []
            at, arguments = head.end(), dict[str, Any]()
            schemas = tools.get(head["name"], {})
            while (one := self._parameter.match(text, at)) is not None:
                arguments[one["key"]] = _value(one["value"], property_of(schemas, one["key"]))
                at = one.end()
            end = self._end.match(text, at)
            if end is None:
                return []
            at = end.end()
            found.append((head["name"], arguments))
        return found if self.end or len(found) < 2 else []

    @property
    def within(self) -> tuple[str, str]:
        """The tags around a parameter's value, between which a block's closing mark is part of the value."""
        opening, between, closing = (part.strip() for part in re.split("KEY|VALUE", self.parameter))
        return (between if "<" in between[1:] else opening).split("\n")[-1], closing

    def rules(self, number: int, name: str, schema: Schema, _: Special) -> Iterator[str]:
        """The grammar of a call, in llguidance's Lark, as the rule `call_NUMBER`; properties in the schema's order."""
        before, after = self.head.split("NAME")
        parts = [literal(f"{before}{name}{after}")]
        required, properties = listed(schema.get("required")), named(schema.get("properties"))
        for place, key in enumerate(properties):
            parts.append(f"p_{number}_{place}" + ("" if key in required else "?"))
        free = not properties and schema.get("additionalProperties", True) is not False
        if free:
            parts.append(f"any_{number}*")
        yield f"call_{number}: {' '.join([*parts, *([literal(self.end)] if self.end else [])])}"
        opening, between, closing = re.split("KEY|VALUE", self.parameter)
        closing, behind = closing.rstrip(), literal("\n")  # the closing tag alone ends a value
        for place, key in enumerate(properties):
            its = property_of(schema, key)
            yield f"p_{number}_{place}: {literal(f'{opening}{key}{between}')} v_{number}_{place} {behind}"
            yield from _value_rules(f"v_{number}_{place}", its, schema, closing)
        if not free:
            return
        yield rf"any_{number}: {literal(opening)} /[^<>\n\"]+/ {literal(between)} until_{number} {behind}"
        yield f"until_{number}[lazy]: {_TEXT} {literal(closing)}"

    def check(self, schema: Schema, where: str) -> None:
        """Raise RequestError naming `where` for a schema that cannot be enforced in tags."""
        refuse(schema, OF_OBJECT, where)
        for key in named(schema.get("properties")):
            its = property_of(schema, key)
            if is_text(its):
                refuse(its, OF_TEXT, f"{where}.properties.{key}")

    @cached_property
    def _head(self) -> re.Pattern[str]:
        before, after = (re.escape(part.strip()) for part in self.head.split("NAME"))
        return re.compile(rf"\s*{before}(?P<name>[^\s<>\"]+){after}\s*")

    @cached_property
    def _parameter(self) -> re.Pattern[str]:
        opening, between, closing = (part.strip() for part in re.split("KEY|VALUE", self.parameter))
        steps = r"\s*".join([re.escape(step) for step in between.split("\n")])
        return re.compile(
            rf"\s*{re.escape(opening)}(?P<key>[^<>\"]+){steps}\n?(?P<value>.*?)\n?{re.escape(closing)}\s*", re.DOTALL
        )

    @cached_property
    def _end(self) -> re.Pattern[str]:
        return re.compile(rf"\s*{re.escape(self.end)}\s*")


@dataclass(frozen=True)
class Named(Layout):
    """A name, a mark and a JSON object; `identity` and the call's id may precede the mark."""

    mark: str
    identity: str

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks within a call that may be special tokens."""
        return self.mark, self.identity

    def first(self, text: str, at: int) -> tuple[int, Read | None] | None:
        """The end of the call at `at`, and the call, None if it is malformed; None alone: not complete yet."""
        head = self._head.match(text, at)
        if head is None:
            return None if text.find(self.mark, at) < 0 and "\n" not in text[at:] else (at, None)
        try:
            value, end = _DECODER.raw_decode(text, head.end())
        except json.JSONDecodeError:
            return None if text[head.end() :].startswith("{") or not text[head.end() :] else (at, None)
        except (RecursionError, ValueError):  # ValueError: an integer with thousands of digits
            return at, None
        return end, (head["name"], value) if isinstance(value, dict) else None

    def rules(self, number: int, name: str, schema: Schema, special: Special) -> Iterator[str]:
        """The grammar of a call, in llguidance's Lark, as the rule `call_NUMBER`."""
        yield f"call_{number}: {literal(name)} {marked(self.mark, special)} arguments_{number}"
        yield f"arguments_{number}: %json {json.dumps(schema)}"

    @cached_property
    def _head(self) -> re.Pattern[str]:
        identity = rf"(?:{re.escape(self.identity)}[^\[\]{{}}]*)?"
        return re.compile(rf"\s*(?P<name>[^\s\[\]{{}}]+){identity}{re.escape(self.mark)}\s*")


def marked(text: str, special: Special) -> str:
    """A mark in llguidance's Lark: the token if it is a special one, else its text."""
    token = special(text)
    return literal(text) if token is None else f"<[{token}]>"


def literal(text: str) -> str:
    """A string literal in llguidance's Lark."""
    return json.dumps(text, ensure_ascii=False)


def property_of(schema: Schema, key: str) -> Schema:
    """The schema of a property, with a reference resolved; empty if the schema does not mention it."""
    its = named(named(schema.get("properties")).get(key))
    for where in DEFINED:
        name = str(its.get("$ref", "")).removeprefix(f"#/{where}/")
        referred = named(schema.get(where)).get(name)
        if isinstance(referred, dict):
            return referred
    return its


def kinds_of(schema: Schema) -> set[str]:
    """The types that a value may have, as far as the schema says, without following references."""
    kinds = schema.get("type")
    found = {kinds} if isinstance(kinds, str) else {str(kind) for kind in listed(kinds)}
    for other in (*listed(schema.get("anyOf")), *listed(schema.get("oneOf"))):
        found |= kinds_of(named(other))
    values = [schema["const"]] if "const" in schema else listed(schema.get("enum"))
    return found or {"string" if isinstance(value, str) else "other" for value in values}


def is_text(schema: Schema) -> bool:
    """Whether a value may be a string."""
    return "string" in kinds_of(schema)


def _value(text: str, schema: Schema) -> Any:
    """The value of a parameter's text: the text itself if the schema allows strings, else parsed as JSON or Python."""
    kinds = kinds_of(schema)
    if "string" in kinds and not ("null" in kinds and text == "null"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        kind, value = _PYTHON.get(text, ("", text))
        if text[:1] not in ("{", "["):
            return value if kind in kinds else text
    try:
        return python_value(text)
    except ValueError:
        return text


def named(value: object) -> Mapping[str, Any]:
    """An unvalidated part of a schema that should be an object; empty if it is not."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> Sequence[Any]:
    """An unvalidated part of a schema that should be a list; empty if it is not."""
    return value if isinstance(value, list) else ()


def _value_rules(rule: str, schema: Schema, root: Schema, closing: str) -> Iterator[str]:
    """The grammar of a parameter's value and its closing tag: strings as plain text, all else as JSON."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if is_text(schema) and isinstance(values, list):
        said = [value if isinstance(value, str) else json.dumps(value) for value in values]
        yield f"{rule}: ({' | '.join([literal(value) for value in said])}) {literal(closing)}"
    elif is_text(schema):
        yield f"{rule}[lazy]: {_TEXT} {literal(closing)}"
    else:
        yield f"{rule}: %json {json.dumps(with_definitions(schema, root))} {literal(closing)}"


def with_definitions(schema: Schema, root: Schema) -> Schema:
    """A part of a schema with the root's definitions, for its references, and the root's llguidance options."""
    return {**{where: root[where] for where in (*DEFINED, "x-guidance") if where in root}, **schema}


def refuse(schema: Schema, known: Sequence[str], where: str) -> None:
    """Raise RequestError naming `where` for a schema with other keywords than the known ones."""
    for word in schema:
        if word not in known:
            fact = f"has {word!r}, which cannot be enforced in this expert's tool-call format"
            raise RequestError(where, fact, "leave it out, or the tool's strict")

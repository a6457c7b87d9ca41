"""Tool calls in Python syntax: names with keyword arguments, in a list or one per line.

    [add(a=1, b="x"), now()]

Knows nothing about marks around calls, or tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.checkpoint.literals import python_value
from coterie.checkpoint.tagged import (
    OF_OBJECT,
    Layout,
    Read,
    Schema,
    Special,
    kinds_of,
    listed,
    literal,
    named,
    property_of,
    refuse,
    with_definitions,
)

_HEAD = re.compile(r"[\s,;]*(?P<name>[^\s()\[\]{},;'\"]+)\s*\(")
_KEY = re.compile(r"\s*,?\s*(?P<key>[^\s()\[\]{},;'\"=]+)\s*=\s*")
_CLOSED = re.compile(r"[\s,]*\)")
_QUOTED = r"/'([^'\\\x00-\x1f\x7f]|\\['\"\\nrt])*'/"  # a text between single quotes


@dataclass(frozen=True)
class Pythonic(Layout):
    """Calls with keyword arguments, in the brackets `lead` and `tail`, which a model may leave out."""

    lead: str = field(default="[", kw_only=True)
    tail: str = field(default="]", kw_only=True)

    def read(self, text: str, tools: Mapping[str, Schema]) -> list[Read]:
        """All calls of a block; none if it is malformed. Values are Python literals or JSON."""
        body, found, at = text.strip(), list[Read](), 0
        if body[:1] == "[" and body[-1:] == "]":
            body = body[1:-1].rstrip()
        while at < len(body):
            head = _HEAD.match(body, at)
            if head is None:
                return []
            at, arguments = head.end(), dict[str, Any]()
            while (key := _KEY.match(body, at)) is not None:
                at = _end_of(body, key.end())
                try:
                    arguments[key["key"]] = python_value(body[key.end() : at])
                except ValueError:
                    return []
            closed = _CLOSED.match(body, at)
            if closed is None:
                return []
            at = closed.end()
            found.append((head["name"], arguments))
        return found

    def rules(self, number: int, name: str, schema: Schema, _: Special) -> Iterator[str]:
        """The grammar of a call, in llguidance's Lark, as the rule `call_NUMBER`; properties in the schema's order."""
        yield f'call_{number}: {literal(f"{name}(")} first_{number}_0 ")"'
        yield rf"any_{number}: /[A-Za-z_][A-Za-z0-9_]*/ {literal('=')} %json {{}}"
        yield from properties_in_turn(f"first_{number}", f"p_{number}_", schema, f"any_{number}")
        for place, key in enumerate(named(schema.get("properties"))):
            yield f"p_{number}_{place}: {literal(f'{key}=')} v_{number}_{place}"
            yield f"v_{number}_{place}: {' | '.join(_values(property_of(schema, key), schema))}"

    def check(self, schema: Schema, where: str) -> None:
        """Raise RequestError naming `where` for a schema with keywords beyond the types of the single arguments."""
        refuse(schema, OF_OBJECT, where)


def properties_in_turn(rule: str, part: str, schema: Schema, free: str, between: str = ", ") -> Iterator[str]:
    """The rules `RULE_0`, ...: an object's properties in the schema's order, each by the rule `PART` + its index.

    If the schema names no properties, any number of pairs by the rule `free`, or none if it allows no others.
    """
    properties, required = named(schema.get("properties")), listed(schema.get("required"))
    if properties:
        yield from in_turn(rule, [(f"{part}{place}", key in required) for place, key in enumerate(properties)], between)
    elif schema.get("additionalProperties", True) is False:
        yield f'{rule}_0: ""'
    else:
        yield f"{rule}_0: ({free} ({literal(between)} {free})*)?"


def in_turn(rule: str, parts: Sequence[tuple[str, bool]], between: str = ", ") -> Iterator[str]:
    """The rules `RULE_0`, ...: (part, whether it is required) in order, with `between` between those that occur.

    `RULE_n` continues with part n if no part has occurred so far, `RULE_n_on` if one has.
    """
    for place, (part, required) in enumerate(parts):
        without = "" if required else f" | {rule}_{place + 1}"
        yield f"{rule}_{place}: {part} {rule}_{place + 1}_on{without}"
        if place:
            yield f"{rule}_{place}_on: ({literal(between)} {part}){'' if required else '?'} {rule}_{place + 1}_on"
    yield f'{rule}_{len(parts)}: ""'
    yield f'{rule}_{len(parts)}_on: ""'


def _end_of(text: str, at: int) -> int:
    """Where the value that begins at `at` ends: before the comma or closing bracket that follows it."""
    depth, quote, escaped = 0, "", False
    for place in range(at, len(text)):
        letter = text[place]
        if escaped:
            escaped = False
        elif quote:
            escaped, quote = letter == "\\", "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif depth == 0 and letter in ",)":
            return place
        else:
            depth += (letter in "([{") - (letter in ")]}")
    return len(text)


def _values(schema: Schema, root: Schema) -> list[str]:
    """Alternatives for a value: JSON, and Python's spelling if that differs (quotes, True, False, None)."""
    ways, kinds = [f"%json {json.dumps(with_definitions(schema, root))}"], kinds_of(schema)
    if set(schema) <= {"type", "title", "description", "default"}:
        ways += [_QUOTED] if "string" in kinds else []
        ways += ['"True"', '"False"'] if "boolean" in kinds else []
        ways += ['"None"'] if "null" in kinds else []
    return ways

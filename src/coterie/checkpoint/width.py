"""Bounds the number of ways in which an object of a JSON schema may begin, since llguidance can follow only so many.

    anyOf: {a?, b?, c, d?} | {e?}        a, b, c or e may come first; three of them are optional

Without this check, too wide a schema would only fail after the first token.
Knows nothing about grammars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from coterie.checkpoint.tagged import listed, named
from coterie.core.errors import RequestError

MAX_OPTIONAL = 480  # optional properties of an object: llguidance follows 2,000 items at once, about four for each
_DATA = ("enum", "const", "default", "examples")  # their values may look like schemas, but are data
_CHOICES = ("anyOf", "oneOf")


def check_width(schema: object, where: str) -> None:
    """Raise RequestError if an object, or a choice of objects, has more optional properties than can be followed."""
    _Widths(schema, where).check(schema)


class _Widths:
    """Checks the parts of one schema, in which references are resolved."""

    def __init__(self, root: object, where: str) -> None:
        self._root, self._where = root, where
        self._known: dict[int, int] = {}  # by identity

    def check(self, schema: object) -> None:
        if isinstance(schema, list):
            for item in schema:
                self.check(item)
        if not isinstance(schema, dict):
            return
        count = len(named(schema.get("properties")).keys() - _required(schema))
        if count > MAX_OPTIONAL:
            remedy = f"require more of them, or split it: at most {MAX_OPTIONAL} may be left out"
            raise RequestError(self._where, f"has an object with {count} properties that are not required", remedy)
        for name, item in schema.items():
            if name not in _DATA:
                self.check(item)
        first = self._first(schema)
        if first > MAX_OPTIONAL:
            fact = f"has a choice of objects with {first} properties in all that may be left out and come first"
            remedy = f"begin each with one that is required: at most {MAX_OPTIONAL} such may come first"
            raise RequestError(self._where, fact, remedy)

    def _first(self, schema: object) -> int:
        """The number of optional properties that may come first, summed over all objects allowed here.

        Properties that stand next to a choice are not counted, since the alternatives may rule them out; so this is a
        lower bound.
        """
        if not isinstance(schema, dict):
            return 0
        if id(schema) not in self._known:
            self._known[id(schema)] = 0  # ends the recursion of a schema that refers to itself
            choices = [part for name in _CHOICES if isinstance(schema.get(name), list) for part in schema[name]]
            if "$ref" in schema:
                choices.append(self._referred(schema["$ref"]))
            self._known[id(schema)] = sum(map(self._first, choices)) if choices else _leading(schema)
        return self._known[id(schema)]

    def _referred(self, ref: object) -> object:
        """The part of the schema that a reference names; None if there is no such part."""
        if not isinstance(ref, str) or not ref.startswith("#"):
            return None
        found: Any = self._root
        for step in ref[1:].split("/")[1:]:
            if not isinstance(found, dict):
                return None
            found = found.get(unquote(step).replace("~1", "/").replace("~0", "~"))
        return found


def _required(schema: Mapping[str, Any]) -> set[str]:
    return set(map(str, listed(schema.get("required"))))


def _leading(schema: Mapping[str, Any]) -> int:
    """The number of properties before the first required one; an answer has them in the schema's order."""
    required, names = _required(schema), list(named(schema.get("properties")))
    return next((place for place, name in enumerate(names) if name in required), len(names))

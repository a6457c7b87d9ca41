"""In how many ways an object of a JSON schema may begin: llguidance follows so many at once and no more.

    anyOf: {a?, b?, c, d?} | {e?}        a, b or c come first, or e: of those that may be left out, three

Without this, what is too wide would be found when its first token has come. Knows nothing about grammars.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from coterie.checkpoint.tagged import listed, named
from coterie.core.errors import RequestError

MAX_OPTIONAL = 480  # properties of an object: llguidance follows 2,000 items at once, four for each of them
_DATA = ("enum", "const", "default", "examples")  # what these have looks like a schema, and is none
_CHOICES = ("anyOf", "oneOf")


def check_width(schema: object, where: str) -> None:
    """Raise RequestError where more properties may be left out than can be followed, of an object or of a choice."""
    _Widths(schema, where).check(schema)


class _Widths:
    """The widths of one schema's parts; references are looked up in it."""

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
        """How many properties may be left out before the first that may not, of all objects that may stand here.

        Of a choice's own properties, which each of its objects may have too, nothing is counted: these may rule them
        out. So it is never too much.
        """
        if not isinstance(schema, dict):
            return 0
        if id(schema) not in self._known:
            self._known[id(schema)] = 0  # of one that refers to itself
            choices = [part for name in _CHOICES if isinstance(schema.get(name), list) for part in schema[name]]
            if "$ref" in schema:
                choices.append(self._referred(schema["$ref"]))
            self._known[id(schema)] = sum(map(self._first, choices)) if choices else _leading(schema)
        return self._known[id(schema)]

    def _referred(self, ref: object) -> object:
        """What a reference within the schema names; None where there is no such part."""
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
    """How many properties stand before the first that is required. They come in their order."""
    required, names = _required(schema), list(named(schema.get("properties")))
    return next((place for place, name in enumerate(names) if name in required), len(names))

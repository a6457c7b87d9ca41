"""Validates a table of a composition file against the schema; each mistake gives one clear sentence.

Knows nothing about files, experts or routers.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coterie.composition.schema import Key, Table
from coterie.core.errors import CompositionError
from coterie.core.text import first_few

MAX_NAMES, MAX_MEANT = 12, 3  # names that an error lists: of all experts, and as suggestions
_TYPE_WORDS = {
    "string": "text in quotes",
    "integer": "a whole number",
    "number": "a number",
    "strings": "a list of texts",
    "table": "a table",
    "tables": "a list of tables",
}


def nearest(word: str, known: Iterable[str], limit: int = 3, cutoff: float = 0.6) -> list[str]:
    """The known names closest to `word`, best first, ignoring case; empty if none is close."""
    by_folded = {name.casefold(): name for name in known}
    return [by_folded[match] for match in difflib.get_close_matches(word.casefold(), by_folded, limit, cutoff)]


def name_hint(name: str, names: Sequence[str], aliases: Sequence[str] = ()) -> str:
    """The remedy in an error about an unknown expert: the closest names, or else a list of names."""
    known_as = (*names, *aliases)
    close = nearest(name, known_as) or [known for known in known_as if name.casefold() in known.casefold()][:MAX_MEANT]
    if name and close:
        return f"did you mean {' or '.join(close)}?"
    return f"the experts are {first_few(names, MAX_NAMES)}"


def validate(values: Mapping[str, Any], table: Table, file: str, at: str = "") -> None:
    """Check `values` and the tables nested in it. `at` is the place in the file, for example `router` or `expert[2]`.

    Raises CompositionError naming file, key, value and what to change.
    """
    if table.variants:
        table = _with_variant(values, table, file, at)
    keys = {key.name: key for key in table.keys}
    for name, value in values.items():
        if name not in keys:
            close = nearest(name, keys)
            hint = f'did you mean "{close[0]}"?' if close else f"the keys here are {', '.join(keys)}"
            raise CompositionError(_where(file, at, name), f"{name} = {_show(value)} is not a known key", hint)
        _check_value(value, keys[name], file, _where_at(at, name))
    _check_presence(values, table, file, at)


def _with_variant(values: Mapping[str, Any], table: Table, file: str, at: str) -> Table:
    where, kinds = _where(file, at, "kind"), ", ".join(table.variants)
    kind = values.get("kind")
    if kind is None:
        raise CompositionError(where, "kind is missing", f'write kind = "..." with one of {kinds}')
    if not isinstance(kind, str) or kind not in table.variants:
        raise CompositionError(where, f"kind = {_show(kind)} is not a router", f"use one of {kinds}")
    return table.with_variant(table.variants[kind])


def _check_presence(values: Mapping[str, Any], table: Table, file: str, at: str) -> None:
    for key in table.keys:
        if key.required and key.name not in values:
            raise CompositionError(
                _where(file, at, key.name), f"{key.name} is missing", f"add {key.name}: {key.meaning}"
            )
    given = [name for name in table.exactly_one if name in values]
    if table.exactly_one and len(given) != 1:
        fact = " and ".join(given) + " are both given" if given else f"none of {', '.join(table.exactly_one)} is given"
        raise CompositionError(_where(file, at), fact, f"give exactly one of {' or '.join(table.exactly_one)}")
    if table.at_least_one and not any(name in values for name in table.at_least_one):
        fact = "there is no condition, so this would always hold"
        raise CompositionError(_where(file, at), fact, f"give at least one of {', '.join(table.at_least_one)}")
    for name, other in table.needs.items():
        if name in values and other not in values:
            fact = f"{name} = {_show(values[name])} has no meaning without {other}"
            raise CompositionError(_where(file, at, name), fact, f"give {other} or leave {name} out")


def _check_value(value: Any, key: Key, file: str, at: str) -> None:
    if not _has_type(value, key):
        fact = f"{key.name} = {_show(value)} is {_kind_of(value)}, not {_TYPE_WORDS[key.type]}"
        raise CompositionError(f"{file}: {at}", fact, f"write {key.name} as {_TYPE_WORDS[key.type]}: {key.meaning}")
    if key.table is not None:
        if key.type == "table":
            validate(value, key.table, file, at)
            return
        if not value:
            raise CompositionError(f"{file}: {at}", f"there are no {key.name}s", f"add a [[{at}]] table")
        for number, item in enumerate(value, start=1):
            label = item.get("name")
            validate(item, key.table, file, f"{at}[{number}]" + (f" {label!r}" if isinstance(label, str) else ""))
    elif key.type in ("string", "strings"):
        _check_text(value, key, file, at)
    elif not _in_range(value, key):
        low = "" if key.minimum is None else f"at least {key.minimum:g}"
        high = "" if key.maximum is None else f"at most {key.maximum:g}"
        bounds = " and ".join(filter(None, (low, high)))
        raise CompositionError(f"{file}: {at}", f"{key.name} = {value} is out of range", f"it must be {bounds}")


def _check_text(value: Any, key: Key, file: str, at: str) -> None:
    items = value if key.type == "strings" else [value]
    if not items or (not key.may_be_empty and not all(item.strip() for item in items)):
        raise CompositionError(f"{file}: {at}", f"{key.name} = {_show(value)} is empty", f"give {key.meaning}")
    for item in items:
        if key.choices and item not in key.choices:
            close = nearest(item, key.choices, limit=1)
            hint = f'did you mean "{close[0]}"? ' if close else ""
            remedy = f"{hint}use one of {', '.join(key.choices)}"
            raise CompositionError(f"{file}: {at}", f"{key.name} = {_show(item)} is not known", remedy)
        if key.pattern and re.fullmatch(key.pattern, item) is None:
            remedy = f"use {key.pattern_meaning}"
            raise CompositionError(f"{file}: {at}", f"{key.name} = {_show(item)} cannot be a name", remedy)


def _has_type(value: Any, key: Key) -> bool:
    match key.type:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "strings":
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        case "table":
            return isinstance(value, dict)
        case "tables":
            return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _in_range(value: float, key: Key) -> bool:
    low = key.minimum is None or value >= key.minimum
    return low and (key.maximum is None or value <= key.maximum) and not math.isnan(value)


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    words = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a table"}
    return words.get(type(value), "a date or time")


def _show(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _where_at(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _where(file: str, at: str, name: str = "") -> str:
    place = _where_at(at, name) if name else at
    return f"{file}: {place}" if place else file

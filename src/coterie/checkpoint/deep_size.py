"""The size of a template's value when fully expanded: characters and elements, including those nested in its elements.

    x = [x, x], forty times     40 lists of two elements, but a text of 2^40      size 2^41

Containers that a template makes store their size, so that it is not computed again; in others, each distinct part is
visited once, however often it occurs.
Knows nothing about limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_CONTAINERS = (list, tuple, set, frozenset, dict)


class _List(list[Any]):
    size: int


class _Tuple(tuple[Any, ...]):
    size: int


class _Dict(dict[Any, Any]):
    size: int


def sized(value: Any, its: int | None = None) -> Any:
    """For a list, tuple or dict, an equal one that stores its size; any other value as it is. `its`: a known size."""
    if isinstance(value, _List | _Tuple | _Dict) or not isinstance(value, list | tuple | dict):
        return value
    made: Any
    if isinstance(value, list):
        made = _List(value)
    elif type(value) is tuple:
        made = _Tuple(value)
    elif isinstance(value, dict):
        made = _Dict(value)
    else:
        return value  # a named tuple, whose names are needed
    made.size = deep_size(value) if its is None else its
    return made


def deep_size(value: Any) -> int:
    """Characters and elements of a value; nested ones count as often as they occur."""
    return _deep_size(value, {})


def _deep_size(value: Any, known: dict[int, int]) -> int:
    """`known`: sizes of containers already visited, by identity."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return 1 + value.bit_length() // 3
    if isinstance(value, _List | _Tuple | _Dict):
        return value.size
    if not isinstance(value, _CONTAINERS):
        return 1
    found = known.get(id(value))
    if found is None:
        found = known[id(value)] = len(value) + sum(_deep_size(part, known) for part in _parts(value))
    return found


def _parts(value: Any) -> Iterable[Any]:
    return (part for pair in value.items() for part in pair) if isinstance(value, dict) else value

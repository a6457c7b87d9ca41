"""How long a template's value would be as a text: letters and elements, those of its elements with them.

    x = [x, x], forty times     40 lists of two elements, and a text of 2^40      size 2^41

A list that a template writes knows its size, so that one of many is not walked through anew; of others each part is
walked through once, however often it stands in them. Knows nothing about bounds.
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
    """An equal value that knows its size, of a list, tuple or dict; another one as it is. `its`: if it is known."""
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
        return value  # a tuple with names, which are used
    made.size = deep_size(value) if its is None else its
    return made


def deep_size(value: Any) -> int:
    """Letters and elements of a value, with those of its elements as often as they stand in it."""
    return _deep_size(value, {})


def _deep_size(value: Any, known: dict[int, int]) -> int:
    """`known`: sizes of what was walked through, by identity."""
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

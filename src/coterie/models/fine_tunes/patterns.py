"""Matches the regular expressions of an adapter's config without exponential backtracking.

Python's `re` backtracks: the time for `(a+)+b` doubles with each additional letter. This matcher follows all
alternatives at once, as sets of positions at which a part of the pattern may end, memoised by starting position.
Knows nothing about adapters. Source: Thompson, "Regular expression search algorithm", CACM 11(6), 1968.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from coterie.core.errors import CheckpointError, UnsupportedError, shown

MAX_PATTERN, MAX_NAME = 2000, 200  # characters
_MAX_GROUPS = 12  # limit of repeated groups
_MAX_TIMES = 64  # limit of a counted repetition
_TRIES = re.compile(r"[*+?{(|]")  # patterns without any of these cannot backtrack
_REPEATED = re.compile(r"\)[*+{]")
_parser: Any = importlib.import_module("re._parser")
_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda letter: letter.isalnum() or letter == "_",
}


def matches(pattern: str, name: str, where: str, at_end: bool = False) -> bool:
    """Whether a pattern matches all of a name, as `re.fullmatch` does; with `at_end`, or a suffix of it after a dot.

    Raises CheckpointError naming `where` for an invalid pattern, UnsupportedError for features that position sets
    cannot handle (references to groups, flags, possessive repetitions) and for patterns that are too long.
    """
    whole = rf"(.*\.)?({pattern})" if at_end else pattern
    try:
        re.compile(pattern)
        if not _TRIES.search(pattern):
            return re.fullmatch(whole, name) is not None
        tree = _parsed(whole)
    except (re.error, RecursionError, OverflowError) as error:
        fact = f"{shown(pattern)} is not a regular expression: {error}"
        raise CheckpointError(where, fact, "mend it") from None
    if len(pattern) > MAX_PATTERN or len(name) > MAX_NAME:
        fact = f"matches a pattern of {len(pattern)} characters with a name of {len(name)}"
        raise UnsupportedError(where, fact, f"at most {MAX_PATTERN} and {MAX_NAME} are read; list the names")
    if len(_REPEATED.findall(pattern)) > _MAX_GROUPS:
        raise _unread(where, pattern, f"more than {_MAX_GROUPS} groups that are repeated")
    if tree.state.flags & ~re.UNICODE.value:
        raise _unread(where, pattern, "flags")
    return len(name) in _Matcher(name, where, pattern).ends(tree, 0)


@lru_cache(maxsize=1024)
def _parsed(pattern: str) -> Any:
    return _parser.parse(pattern)


def _unread(where: str, pattern: str, what: str) -> UnsupportedError:
    fact = f"{shown(pattern)} has {what}, which a pattern of modules is not read with"
    return UnsupportedError(where, fact, "list the modules by name")


class _Matcher:
    """Matches one name against one pattern."""

    def __init__(self, name: str, where: str, pattern: str) -> None:
        self._name, self._where, self._pattern = name, where, pattern
        self._known: dict[tuple[int, int], frozenset[int]] = {}

    def ends(self, parts: Any, start: int) -> frozenset[int]:
        """The positions at which a sequence of parts that begins at `start` may end."""
        key = (id(parts), start)
        if key not in self._known:
            places = frozenset([start])
            for kind, value in parts:
                places = frozenset([end for place in places for end in self._part(str(kind), value, place)])
            self._known[key] = places
        return self._known[key]

    def _part(self, kind: str, value: Any, at: int) -> Iterable[int]:
        letter = self._name[at : at + 1]
        if kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return (at + 1,) if letter and _is(letter, kind, value) else ()
        if kind == "BRANCH":
            return [end for branch in value[1] for end in self.ends(branch, at)]
        if kind == "SUBPATTERN" and not (value[1] or value[2]):
            return self.ends(value[3], at)
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            least, most, parts = value
            return self._repeated(least, most, parts, at)
        if kind == "AT":
            return (at,) if self._is_at(str(value), at) else ()
        if kind in ("ASSERT", "ASSERT_NOT"):
            direction, parts = value
            begins = at if direction > 0 else at - parts.getwidth()[0]
            ends = self.ends(parts, begins) if begins >= 0 else frozenset[int]()
            found = bool(ends) if direction > 0 else at in ends
            return (at,) if found == (kind == "ASSERT") else ()
        raise _unread(self._where, self._pattern, kind.lower().replace("_", " "))

    def _repeated(self, least: int, most: Any, parts: Any, at: int) -> set[int]:
        if least > _MAX_TIMES or (_MAX_TIMES < most < _parser.MAXREPEAT):
            raise _unread(self._where, self._pattern, f"more than {_MAX_TIMES} counted repetitions")
        now, times = {at}, 0
        while times < least and now:
            now, times = {end for place in now for end in self.ends(parts, place)}, times + 1
        found = set(now)
        while now and times < most:
            now, times = {end for place in now for end in self.ends(parts, place)} - found, times + 1
            found |= now
        return found

    def _is_at(self, kind: str, at: int) -> bool:
        name, before = self._name, self._name[:at][-1:]
        if kind in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return at == 0
        if kind in ("AT_END", "AT_END_STRING"):
            return at == len(name) or (kind == "AT_END" and name[at:] == "\n")
        word = _CATEGORIES["CATEGORY_WORD"]
        border = bool(before and word(before)) != bool(name[at : at + 1] and word(name[at]))
        if kind in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
            return border == (kind == "AT_BOUNDARY")
        raise _unread(self._where, self._pattern, kind.lower().replace("_", " "))


def _is(letter: str, kind: str, value: Any) -> bool:
    """Whether a character matches a single-character part of a pattern."""
    if kind == "ANY":
        return letter != "\n"
    if kind != "IN":
        return bool(ord(letter) == value) == (kind == "LITERAL")
    found, wanted = False, True
    for one, what in value:
        name = str(one)
        if name == "NEGATE":
            wanted = False
        elif name == "LITERAL":
            found = found or ord(letter) == what
        elif name == "RANGE":
            found = found or what[0] <= ord(letter) <= what[1]
        else:
            category = str(what)
            found = found or _CATEGORIES[category.replace("_NOT_", "_")](letter) != ("_NOT_" in category)
    return found == wanted

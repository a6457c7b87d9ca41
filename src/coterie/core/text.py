"""Texts: names listed in a message, and what comes in pieces. Knows nothing about what they say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from unicodedata import combining, normalize

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def safe_name(text: str) -> str:
    """A text without accents, and with hyphens for what else a name may not have; empty where nothing is left.

    The same for both forms in which systems write an accented letter.
    """
    plain = "".join(letter for letter in normalize("NFKD", text) if not combining(letter))
    return _UNSAFE.sub("-", plain).strip("-._")


def nearest_hint(name: str, names: Iterable[str]) -> str:
    """Which of the names a wrong one may mean, to stand behind it; empty where none is like it."""
    near = get_close_matches(name, list(names), n=1)
    return f" (the nearest name is {near[0]})" if near else ""


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `mark`: so much may yet become it."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)

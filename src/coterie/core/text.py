"""Text helpers: names in messages, safe names, overlaps of streamed text. Knows nothing about what the text means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from unicodedata import combining, normalize

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def first_few(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and the number of the others."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def safe_name(text: str) -> str:
    """Turn text into a safe file name: accents removed, other special characters replaced by hyphens; may be empty.

    Composed and decomposed Unicode forms give the same name.
    """
    plain = "".join(letter for letter in normalize("NFKD", text) if not combining(letter))
    return _UNSAFE.sub("-", plain).strip("-._")


def nearest_hint(name: str, names: Iterable[str]) -> str:
    """A "did you mean" hint to append to an unknown name; empty if no name is similar."""
    near = get_close_matches(name, list(names), n=1)
    return f" (the nearest name is {near[0]})" if near else ""


def overlap(text: str, mark: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `mark`, and so might become `mark`."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)

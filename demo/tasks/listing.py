"""Word lists written as text.

Knows nothing about what the words are for.
"""

from __future__ import annotations


def words_of(text: str) -> list[str]:
    """The words of a block of text."""
    return text.split()

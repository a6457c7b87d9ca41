"""Lengths: which queries take how long before the engine can have them: text is cut into tokens, forms are compiled.

Knows nothing about threads, or what is done about it.
"""

from __future__ import annotations

from collections.abc import Sequence

from coterie.api import Query

LONG_CHARS = 2048  # of what is read for a request: with more, everybody's next step would wait half a millisecond
QUICK_CHARS = 16 * LONG_CHARS  # that are read in milliseconds


def takes_long(query: Query) -> bool:
    """Whether forms must be compiled, or much text be cut into tokens."""
    return _is_formed(query) or _chars(query) > LONG_CHARS


def are_quick(queries: Sequence[Query]) -> bool:
    """Whether it takes milliseconds, not seconds, of all together."""
    return not any(map(_is_formed, queries)) and sum(map(_chars, queries)) <= QUICK_CHARS


def _is_formed(query: Query) -> bool:
    return bool(query.form or query.tools)


def _chars(query: Query) -> int:
    """How much is read for it."""
    return len(query.prompt_ids) + sum([len(message.content) for message in query.messages])

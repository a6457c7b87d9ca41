"""Lengths: which queries take long to prepare for the engine: texts are tokenised, grammars are compiled.

Knows nothing about threads, or what is done about it.
"""

from __future__ import annotations

from collections.abc import Sequence

from coterie.api import Query

LONG_CHARS = 2048  # beyond this, tokenising a request would delay everyone's next step by half a millisecond
QUICK_CHARS = 16 * LONG_CHARS  # tokenised in milliseconds


def takes_long(query: Query) -> bool:
    """Whether a grammar must be compiled, or much text tokenised."""
    return _is_constrained(query) or _chars(query) > LONG_CHARS


def are_quick(queries: Sequence[Query]) -> bool:
    """Whether preparing all of them takes milliseconds, not seconds."""
    return not any(map(_is_constrained, queries)) and sum(map(_chars, queries)) <= QUICK_CHARS


def _is_constrained(query: Query) -> bool:
    return bool(query.form or query.tools)


def _chars(query: Query) -> int:
    """The length of its text."""
    return len(query.prompt_ids) + sum([len(message.content) for message in query.messages])

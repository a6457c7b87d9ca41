"""How many tokens an answer may have where nobody said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coterie.api.inflight import DEFAULT_MAX_TOKENS, MAX_TOKENS_OF_TEXT, capped_by_kv, tokens_to_draw
from coterie.api.types import Query
from coterie.engine.request import Request


@pytest.mark.parametrize(
    ("said", "room", "chats", "drawn"),
    [
        (None, 8000, True, DEFAULT_MAX_TOKENS),
        (None, 8000, False, MAX_TOKENS_OF_TEXT),
        (None, 100, True, 100),
        (None, 100, False, 100),
        (None, 0, True, 1),
        (5000, 8000, True, 5000),
        (5000, 100, False, 5000),
    ],
)
def test_a_default_has_room_in_the_context_and_what_was_said_stands(said, room, chats, drawn):
    assert tokens_to_draw(replace(Query.text("x"), max_tokens=said), room, chats) == drawn


@pytest.mark.parametrize(
    ("limit", "prompt", "holds", "drawn"),
    [
        (2048, 10, 65536, 2048),
        (2048, 10, 8192, 1024),
        (2048, 10, 1000, 256),
        (2048, 900, 1000, 101),
        (2048, 1000, 1000, 1),
        (2048, 1200, 1000, 1),
        (100, 10, 1000, 100),
    ],
)
def test_a_default_takes_a_share_of_the_kv_cache_and_fits(limit, prompt, holds, drawn):
    request = Request("r", "e", (1,) * prompt, limit)
    assert capped_by_kv(request, Query.text("x"), holds).max_tokens == drawn
    assert capped_by_kv(request, replace(Query.text("x"), max_tokens=limit), holds) == request

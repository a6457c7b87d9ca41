"""Values that were made once are kept by what they were made from, the last ones."""

import pytest

from coterie.core.lru_cache import LruCache


def test_the_values_that_were_asked_for_last_are_kept():
    made, kept = [], LruCache(2)

    def get(key):
        return kept.get(key, lambda: made.append(key) or [key])

    first = get("a")
    assert get("b") is not get("a") is first
    get("c")  # b goes, which was asked for before a
    assert get("a") is first
    assert get("b") == ["b"]
    assert made == ["a", "b", "c", "b"]


def test_what_cannot_be_made_is_not_kept():
    kept = LruCache(2)
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: 1 // 0)
    assert kept.get("a", lambda: 1) == 1

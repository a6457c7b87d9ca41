"""Sizes of a template's values: nested ones count as often as they stand there, and are walked through once."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.deep_size import deep_size, sized


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("", 0),
        ("abc", 3),
        (b"ab", 2),
        (7, 2),
        (2.5, 1),
        (None, 1),
        ([], 0),
        (["a", "bcd"], 2 + 4),
        (("a", ("b",)), 2 + 1 + 1 + 1),
        ({"a": "bcd", "e": {}}, 2 + 1 + 3 + 1),
        ({"a", "bc"}, 2 + 3),
    ],
)
def test_deep_size(value: Any, wanted: int) -> None:
    assert deep_size(value) == wanted
    assert sized(value) == value
    assert deep_size(sized(value)) == wanted
    assert deep_size([value, value]) == deep_size(sized([value, value])) == 2 + 2 * wanted


def test_a_nested_list_is_walked_through_once() -> None:
    plain: Any = ["ab"]
    written: Any = sized(["ab"])
    for _ in range(200):
        plain, written = [plain, plain], sized([written, written])
    assert deep_size(plain) == deep_size(written) == 2**200 * 3 + 2 * (2**200 - 1)


def test_what_a_template_writes_is_used_as_ever() -> None:
    source = (
        "{% set l = [messages, 1] %}{% set d = {'a': l, 'b': none} %}{% set t = (l[1], 'x') %}{% set p, q = t %}"
        "{{ l is sequence }}{{ d is mapping }}{{ l == [messages, 1] }}{{ '%s-%s' % t }}{{ '%s-%s' % (p, q) }}"
        "{{ (l + [2])[1:] }}{{ [p] * 2 }}{{ {(p, q): 1}[(1, 'x')] }}{{ d }}{{ d|tojson }}{{ d.items()|list|length }}"
    )
    shown = "{'a': [[], 1], 'b': None}"
    wanted = f"TrueTrueTrue1-x1-x[1, 2][1, 1]1{shown}" + '{"a": [[], 1], "b": null}2'
    assert ChatTemplate(source, {}, "t").render([]) == wanted

"""Patterns of an adapter's config: what Python's own matcher says, in time that no pattern makes long."""

from __future__ import annotations

import random
import re
import time

import pytest

from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.fine_tunes.patterns import matches

NAMES = [f"model.layers.{i}.{m}" for i in (0, 7, 31) for m in ("self_attn.q_proj", "mlp.up_proj", "mlp.experts.3.w1")]
NAMES += ["lm_head", "", "a", "aab", "aaaa", "ab ab", "x_1", "model.embed_tokens", "\u00e9t\u00e9", "a\n", "1\u0663"]
PATTERNS = [
    r".*\.(q|k|v)_proj",
    r"^(?!.*vision).*(?:up|down)_proj$",
    r"model\.layers\.(?:[0-9]|1[0-9])\.mlp\..*",
    r"(?:.*?(?:language|self_attn).*?(?:attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\..*)",
    *(
        r"(.*\.)?(q_proj|lm_head)",
        r"a*",
        r"(a|aa)+b?",
        r"(a+)+",
        r"(?:a*)*b",
        r"a{2}b",
        r"a{0,3}",
        r"a{2,}",
        r"[^a]",
        r"",
    ),
    *(r"\w+", r"\W", r"\d+", r"\D*", r"a\sb.*", r"a.b ab", r"(?<=a)b|a+(?<=a)b", r".*(?<!q)_proj", r"a(?=a).*", r"a$"),
    *(r"\Aa+\Z", r"\b\w+\b \b\w+", r"a\Ba+", r".", r"(a)?(b)?", r"x|", r"[\w.]+", r"[^\W_]+", r"(?P<n>a)+", r"a??a+?b"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pythons_own_matcher_says_the_same(pattern: str) -> None:
    for name in NAMES:
        assert matches(pattern, name, "x") == (re.fullmatch(pattern, name) is not None), name


def test_patterns_at_random() -> None:
    chance = random.Random(1)

    def drawn(depth: int) -> str:
        if depth == 0:
            return chance.choice(("a", "b", ".", "[ab]", "[^a]", r"\w", "^", "$", r"\b", "(?=a)", "(?!b)", "(?<=a)"))
        one, other = drawn(depth - 1), drawn(depth - 1)
        times = chance.choice(("*", "+", "?", "*?", "{1,2}", ""))
        return chance.choice((f"{one}{other}", f"(?:{one}|{other})", f"(?:{one}){times}"))

    names = ["".join(chance.choices("ab1", k=size)) for size in (0, 1, 2, 3, 4, 5, 6) for _ in range(4)]
    for _ in range(400):
        pattern = drawn(chance.randint(1, 4))
        for name in names:
            assert matches(pattern, name, "x") == (re.fullmatch(pattern, name) is not None), (pattern, name)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(a|aa)+b", "(.*)*b", ".*.*.*.*.*.*.*.*b", "(" * 12 + "a" + ")*" * 12 + "b"]
)
def test_no_pattern_takes_long(pattern: str) -> None:
    begun_s = time.process_time()
    assert not matches(pattern, "a" * 200, "x")
    assert time.process_time() - begun_s < 3  # by trying: for ever


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        *((pattern, CheckpointError) for pattern in ("(", "[", "*", "(?P<n>", "a{2,1}", "(?<=a*)b", "(" * 5000)),
        *((pattern, UnsupportedError) for pattern in (r"(a)\1", "(?i)a", "(?i:a)", "a*+", "(?>a)", "a{65}", "a{1,65}")),
        (".*" + "a" * 2000, UnsupportedError),
        ("(a)*" * 13, UnsupportedError),
    ],
)
def test_what_is_not_read_is_refused(pattern: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^\[here\] "):
        matches(pattern, "aaaa", "here")


def test_the_end_of_a_name_behind_a_dot() -> None:
    for pattern in ("q_proj", r"self_attn\.q_proj", "q|q_proj", "proj", ".*"):
        wanted = re.fullmatch(rf"(.*\.)?({pattern})", NAMES[0]) is not None
        assert matches(pattern, NAMES[0], "x", at_end=True) == wanted
    with pytest.raises(CheckpointError, match=r"'\(q' is not a regular expression"):
        matches("(q", "q", "x", at_end=True)


def test_many_names_are_matched_soon() -> None:
    """An adapter may list the rank of each module."""
    modules = [f"model.layers.{i}.mlp.up_proj" for i in range(200)]
    begun_s = time.process_time()
    found = [sum(matches(one.replace(".", r"\."), name, "x", at_end=True) for one in modules) for name in modules]
    assert found == [1] * 200
    assert sum(matches(r".*\.(up|down)_proj", name, "x") for name in modules) == 200
    assert time.process_time() - begun_s < 5

"""The rules router: each condition, both ways to match, the threshold, and any text at all."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.composition.router import Prompt
from coterie.composition.routers.rules import Rule, RulesRouter, compile_keywords


def rule(expert, **conditions):
    return Rule(conditions.pop("name", expert), expert, **conditions)


RULES = (
    rule("sums", keywords=compile_keywords(["plus", "added to"])),
    rule("roman", pattern=re.compile(r"\b[IVXLC]+\b")),
    rule("short", max_chars=3),
    rule("german", language="de", min_chars=10),
)
ROUTER = RulesRouter(RULES, fallback="general")


@pytest.mark.parametrize(
    ("text", "expert", "reason"),
    [
        ("What is 1 PLUS 2?", "sums", "rule sums: the word 'PLUS'"),
        ("1 added\n to 2", "sums", "rule sums: the word 'added\\n to'"),
        ("surplus", "general", "none of 4 rules holds"),
        ("what is XIV", "roman", "rule roman: the pattern found 'XIV'"),
        ("XIV plus IX", "sums", "rule sums"),
        ("hi", "short", "its length of 2 characters"),
        ("Was ist der Unterschied?", "german", "its length of 24 characters and its language de"),
        ("der das", "general", "none"),
        ("", "short", "its length of 0 characters"),
    ],
)
def test_first_rule_that_holds(text, expert, reason):
    route = ROUTER.decide(Prompt(text))
    assert route.expert == expert
    assert reason in route.reason
    assert route.is_fallback == (expert == "general")
    assert ROUTER.ask(Prompt(text)) == ()


def test_all_conditions_of_a_rule_must_hold():
    router = RulesRouter([rule("a", keywords=compile_keywords(["x"]), min_chars=5)], "b")
    assert router.decide(Prompt("x")).expert == "b"
    assert router.decide(Prompt("x x x")).expert == "a"


def test_confidence_of_a_rule_and_threshold():
    unsure = RulesRouter([rule("a", keywords=compile_keywords(["x"]), confidence=0.4)], "b", threshold=0.5)
    route = unsure.decide(Prompt("x"))
    assert (route.expert, route.is_fallback, route.runners_up) == ("b", True, (("a", 0.4),))
    assert "a, has 40%, below the threshold of 50%" in route.reason


def test_weights_are_summed_and_shared():
    rules = [
        rule("a", name="one", keywords=compile_keywords(["x"]), weight=3.0),
        rule("b", keywords=compile_keywords(["y"]), weight=4.0),
        rule("a", name="two", keywords=compile_keywords(["z"]), weight=1.0),
    ]
    router = RulesRouter(rules, "c", match="weight")
    assert router.decide(Prompt("x y")).expert == "b"
    route = router.decide(Prompt("x y x z z"))
    assert (route.expert, route.confidence, route.runners_up) == ("a", 0.5, (("b", 0.5),))
    assert route.reason == "rule one: the word 'x'; rule two: the word 'z'"


def test_weights_of_nothing():
    router = RulesRouter([rule("a", keywords=compile_keywords(["x"]), weight=0.0)], "b", threshold=0.1, match="weight")
    assert router.decide(Prompt("x")).expert == "b"


@given(st.text(max_size=300), st.sampled_from(["first", "weight"]))
def test_any_text_has_one_route(text, match):
    router = RulesRouter(RULES, "general", threshold=0.6, match=match)
    route = router.decide(Prompt(text))
    assert route == router.decide(Prompt(text))
    assert route.expert in {"sums", "roman", "short", "german", "general"}
    assert 0 <= route.confidence <= 1
    assert all(0 <= share <= 1 for _, share in route.runners_up)
    assert route.reason


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=4))
def test_a_keyword_is_found_as_it_stands(keywords):
    assert compile_keywords(keywords).search(f" {keywords[0].strip()} ")

"""Sweeps of a router's settings: points from routes, and thresholds applied afterwards as a router applies them."""

import pytest

from coterie.composition.evaluate import Question
from coterie.composition.router import Prompt, Route
from coterie.composition.routers.knn import Example, KnnRouter, KnnSettings
from coterie.composition.routers.rules import Rule, RulesRouter, compile_keywords
from coterie.composition.sweep import THRESHOLDS, sweep_point, sweep_thresholds

QUESTIONS = (
    Question("a", "sums", None),
    Question("b", "sums", None),
    Question("c", "general", None),
    Question("d", None, None),
    Question("e", None, None),
)
ROUTES = (
    Route("sums", 0.9, (), ""),
    Route("roman", 0.45, (), ""),
    Route("general", 0.1, (), ""),
    Route("sums", 0.2, (), ""),
    Route("general", 0.0, (), "", is_fallback=True),
)


def test_a_point_counts():
    point = sweep_point("threshold", 0.0, QUESTIONS, ROUTES)
    assert (point.in_scope_right, point.in_scope_to_fallback, point.out_of_scope_to_fallback) == (2 / 3, 0, 1 / 2)
    assert sweep_point("k", 1, QUESTIONS[:2], ROUTES[:2]).out_of_scope_to_fallback is None
    with pytest.raises(ValueError, match="share of nothing"):
        sweep_point("k", 1, QUESTIONS[3:], ROUTES[3:])


def test_thresholds_send_the_unsure_to_the_fallback():
    points = {point.value: point for point in sweep_thresholds(QUESTIONS, ROUTES, "general")}
    assert tuple(points) == THRESHOLDS
    assert points[0.0] == sweep_point("threshold", 0.0, QUESTIONS, ROUTES)
    assert (points[0.2].out_of_scope_to_fallback, points[0.3].out_of_scope_to_fallback) == (0.5, 1.0)
    assert (points[0.4].in_scope_to_fallback, points[0.5].in_scope_to_fallback) == (0.0, 1 / 3)
    # what belongs to the fallback's own expert is right there, however unsure
    assert points[0.9].in_scope_right == 2 / 3


def test_a_sweep_is_what_rules_do_that_name_the_fallback_too():
    rules = [
        Rule("1", "sums", keywords=compile_keywords(["plus"]), confidence=0.5),
        Rule("2", "general", keywords=compile_keywords(["who"]), confidence=0.3),
    ]
    texts = ["1 plus 2", "who", "plus", "who else", "where"]
    asked = [Question(text, ("sums", "general", None, None, None)[i], None) for i, text in enumerate(texts)]

    def routes(threshold):
        return [RulesRouter(rules, "general", threshold).decide(Prompt(text)) for text in texts]

    points = list(sweep_thresholds(asked, routes(0.0), "general"))
    assert points == [sweep_point("threshold", value, asked, routes(value)) for value in THRESHOLDS]
    assert points[-1].in_scope_to_fallback == 0.5


def test_who_belongs_to_the_fallback_is_right_there():
    point = sweep_point("threshold", 0.0, QUESTIONS[2:3], ROUTES[4:])
    assert (point.in_scope_right, point.in_scope_to_fallback) == (1.0, 0.0)


def test_a_sweep_is_what_routers_with_these_thresholds_do():
    wordings = {"sums": "what is {} plus {}", "roman": "write {} in Roman numerals", "sql": "select {} from {}"}
    examples = [Example(name, text) for name, text in wordings.items()]
    texts = ["what is plus", "write what in plus", "select Roman from numerals", "Roman what", "who wrote it", "plus"]
    asked = [Question(text, ("sums", "sql", "roman", None, None, None)[i], None) for i, text in enumerate(texts)]

    def routes(threshold):
        router = KnnRouter(examples, "general", KnnSettings(threshold=threshold))
        return [router.decide(Prompt(text)) for text in texts]

    points = list(sweep_thresholds(asked, routes(0.0), "general"))
    assert points == [sweep_point("threshold", value, asked, routes(value)) for value in THRESHOLDS]
    assert len({point.out_of_scope_to_fallback for point in points}) > 1

"""The demo's shipped router on the demo's held-out questions: what the project promises of it, and of a knn router."""

import pytest

from coterie.composition.composition import load_composition
from coterie.composition.evaluate import read_questions, score
from coterie.composition.router import Prompt
from coterie.composition.routers.knn import Example, KnnRouter
from coterie.composition.routing import Routing


@pytest.fixture(scope="module")
def demo():
    return load_composition("demo")


@pytest.fixture(scope="module")
def result(demo):
    routing, questions = Routing(demo), read_questions(demo.root / "questions.jsonl")
    return score(questions, [routing.route(Prompt(question.text))[0] for question in questions])


def test_every_expert_has_questions_and_a_class(demo, result):
    experts = set(demo.names) - {demo.router.fallback}
    assert len(experts) >= 16
    assert {row.expert for row in result.experts} == experts
    assert all(row.num_questions >= 200 for row in result.experts)


def test_questions_reach_their_expert(result):
    assert result.router >= 0.98
    assert result.router_unseen >= 0.97
    assert min(row.routed_here for row in result.experts) >= 0.90


def test_questions_for_no_expert_reach_the_fallback(result):
    assert result.num_out_of_scope >= 200
    assert result.out_of_scope_to_fallback == result.num_out_of_scope


def test_router_file_is_small(demo):
    assert demo.router.weights.stat().st_size < 3_000_000


@pytest.mark.parametrize(
    ("text", "expert", "word"),
    [
        ("What is 47 plus 85?", "arithmetic", "'plus'"),
        ("Write 149 in Roman numerals", "roman-numerals", "'roman'"),
        ("What day of the week was 4 July 1976?", "weekday", "'day'"),
        ("Sort 5, 3, 9 from low to high", "sorting", "'sort'"),
    ],
)
def test_the_questions_of_the_readme(demo, text, expert, word):
    route, _ = Routing(demo).route(Prompt(text))
    assert route.expert == expert
    assert word in route.reason
    assert route.confidence > 0.9


@pytest.mark.parametrize(("per_expert", "right"), [(5, 0.85), (20, 0.94), (100, 0.98)])
def test_examples_without_training_reach_unseen_wordings(demo, per_expert, right):
    """Examples are questions in the wordings of training; asked are those in others, and half of those for none."""
    questions = read_questions(demo.root / "questions.jsonl")
    none = [question for question in questions if question.expert is None]
    examples = [Example("general", question.text) for question in none[::2]]
    for name in dict.fromkeys(question.expert for question in questions if question.expert is not None):
        texts = [q.text for q in questions if q.expert == name and q.seen_phrasing]
        examples += [Example(name, text) for text in texts[:per_expert]]
    asked = [q for q in questions if q.expert is not None and not q.seen_phrasing] + none[1::2]
    router = KnnRouter(examples, "general")
    result = score(asked, [router.decide(Prompt(question.text)) for question in asked])
    assert result.num_questions == 16 * 70
    assert result.router >= right
    assert result.out_of_scope_to_fallback >= 0.8 * result.num_out_of_scope

"""Reading questions and scoring: shares, rows, confusions, and files that are wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.composition.evaluate import (
    Question,
    confusions,
    is_exact,
    last_line,
    limited,
    read_questions,
    score,
    share,
)
from coterie.composition.router import Route
from coterie.core.errors import CompositionError, NotFoundError


def route(expert, is_fallback=False):
    return Route(expert, 0.9, (), "because", is_fallback)


QUESTIONS = (
    Question("1+1", "sums", "2"),
    Question("2+2", "sums", "4", seen_phrasing=False),
    Question("5 in Roman", "roman", "V"),
    Question("6 in Roman", "roman", "VI", seen_phrasing=False),
    Question("who?", None, None),
    Question("where?", None, None),
)
ROUTES = (route("sums"), route("sums"), route("roman"), route("sums"), route("general", True), route("sums"))


def test_router_alone():
    result = score(QUESTIONS, ROUTES)
    assert (result.num_questions, result.router, result.router_unseen) == (4, 0.75, 0.5)
    assert (result.num_out_of_scope, result.out_of_scope_to_fallback) == (2, 1)
    assert result.confusions == (("roman", "sums", 1),)
    assert (result.composition, result.experts_alone, result.single_model) == (None, None, None)
    assert [(row.expert, row.num_questions, row.routed_here, row.alone) for row in result.experts] == [
        ("sums", 2, 1.0, None),
        ("roman", 2, 0.5, None),
    ]


def test_answers():
    routed = ("1+1\n2", "5", "V", "6", "", "sorry")
    alone = ("2", "4", "V", "V I", "", "")
    single = ("2", "", "X", "", "", "")
    result = score(QUESTIONS, ROUTES, routed, alone, single)
    assert (result.composition, result.experts_alone, result.single_model) == (0.5, 0.75, 0.25)
    assert [(row.alone, row.routed, row.single_model) for row in result.experts] == [(1.0, 0.5, 0.5), (0.5, 0.5, 0.0)]
    values = result.to_dict()
    assert values["experts"] == {"sums": 1.0, "roman": 0.5}
    assert values["out_of_scope"] == {"questions": 2, "to_fallback": 1}
    assert (values["composition"], values["router"], values["single_model"]) == (0.5, 0.75, 0.25)


def test_no_unseen_phrasings():
    assert score(QUESTIONS[:1], ROUTES[:1]).router_unseen is None


def test_scores_of_nothing_are_refused():
    with pytest.raises(ValueError, match="none of 2 questions belongs to an expert"):
        score(QUESTIONS[4:], ROUTES[4:])
    with pytest.raises(ValueError, match="6 questions but 5 routes"):
        score(QUESTIONS, ROUTES[:5])
    with pytest.raises(ValueError, match="6 questions but 1 routed"):
        score(QUESTIONS, ROUTES, routed=["x"])
    with pytest.raises(ValueError, match="share of nothing"):
        share([])


@pytest.mark.parametrize(
    ("seen", "unseen", "limit", "chosen"),
    [(9, 0, 4, (4, 0)), (9, 9, 4, (2, 2)), (9, 9, 3, (1, 2)), (9, 1, 4, (3, 1)), (1, 9, 4, (1, 3)), (9, 9, 1, (0, 1)),
     (0, 9, 4, (0, 4)), (2, 1, 9, (2, 1)), (9, 9, None, (9, 9))],
)  # fmt: skip
def test_a_limit_is_of_each_expert_and_half_of_it_unseen(seen, unseen, limit, chosen):
    asked = [Question(f"{i}", name, "x", i < seen) for i in range(seen + unseen) for name in ("a", "b", None)]
    found = limited(asked, limit)
    for name in ("a", "b", None):
        own = [q.seen_phrasing for q in found if q.expert == name]
        assert (own.count(True), own.count(False)) == chosen
    assert found == [question for question in asked if question in found]


def test_confusions_are_ordered():
    asked = [Question("q", "b", "x")] * 3 + [Question("q", "a", "x")]
    assert confusions(asked, [route("c"), route("a"), route("a"), route("b")]) == (
        ("b", "a", 2),
        ("a", "b", 1),
        ("b", "c", 1),
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [("4", "4"), ("47+85\n132", "132"), ("a\n\n  132 \n\n", "132"), ("", ""), (" \n ", ""), ("a\r\nb\r\n", "b")],
)
def test_last_line(text, line):
    assert last_line(text) == line


def test_exact_match_is_exact():
    assert is_exact("working\n 132", "132")
    assert not is_exact("132\nworking", "132")
    assert not is_exact("xiv", "XIV")
    assert not is_exact("", "0")


@given(st.text())
def test_an_answer_equals_itself(text):
    assert is_exact(text, text)


def test_questions_are_read(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(
        '{"prompt": "1+1", "expert": "sums", "answer": "2", "seen_phrasing": false}\n\n'
        '{"prompt": "who?", "expert": null, "answer": null}\n'
    )
    assert read_questions(file) == (Question("1+1", "sums", "2", False), Question("who?", None, None))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "q.jsonl:1.*this line is not JSON"),
        ("[]", "q.jsonl:1.*JSON, but no object"),
        ('{"prompt": "x", "n": ' + 5000 * "1" + "}", "q.jsonl:1.*this line is not JSON: Exceeds the limit"),
        ('{"prompt": " ", "expert": "a"}', "q.jsonl:1.*there is no prompt"),
        ('{"expert": "a", "answer": "b"}', "there is no prompt"),
        ('{"prompt": "x", "expert": "a", "answer": 2}', "expert = 'a' or answer = 2 is no text"),
        ('{"prompt": "x", "expert": 3, "answer": "b"}', "expert = 3"),
        ("", "there are no questions in it"),
    ],
)
def test_bad_questions(tmp_path, line, sentence):
    file = tmp_path / "q.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(CompositionError, match=sentence):
        read_questions(file)


def test_no_questions_file(tmp_path):
    with pytest.raises(NotFoundError, match="no such file of questions"):
        read_questions(tmp_path / "no.jsonl")

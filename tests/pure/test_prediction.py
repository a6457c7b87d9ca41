"""Predictions: what is followed is what came, and it is found again after what was changed, added or left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.engine.speculate.lookup import MIN_MATCH, Tally
from coterie.engine.speculate.prediction import BEGUN, Prediction

TEXT = tuple(range(100, 140))


def following(*parts):
    """How many of an answer's tokens were said before they came, one by one; and the prediction."""
    tokens = [1, 2, 3]
    made, right = Prediction(TEXT, tokens, 3), 0
    for token in np.concatenate([np.array(part, int) for part in parts]).tolist():
        said = made.after(1)
        right += bool(said) and said[0][0] == token
        tokens.append(token)
        made.catch_up()
    return right, made


def test_a_prediction_that_comes_true_is_said_whole():
    right, made = following(TEXT)
    assert (right, made.counts, made.after(9)) == (40, (40, 0), [])
    assert Prediction(TEXT, [1], 1).after(50) == Prediction(TEXT, [1], 1).after(40)
    shares = [Tally().rate(BEGUN + place) for place in range(4)]
    assert shares[0] < shares[2]  # the longer the match, the likelier
    assert Prediction(TEXT, [1], 1).after(4) == list(zip(TEXT[:4], shares, strict=True))
    assert Prediction(TEXT, [1], 1).counts == (0, 40)


@pytest.mark.parametrize(
    ("parts", "right", "came"),
    [
        (([7], TEXT), 38, 40),  # put before: two tokens say where it is
        ((TEXT[:10], [7, 8], TEXT[10:]), 38, 40),
        ((TEXT[:10], [7], TEXT[11:]), 37, 39),
        ((TEXT[:10], TEXT[20:]), 28, 30),
        ((TEXT[:10], [7], TEXT[2:10]), 16, 10),  # said again: each counts once
        ((TEXT[:10], [7, 7, 7]), 10, 10),
        (([7], TEXT[38:]), 0, 2),
    ],
)
def test_it_is_found_again(parts, right, came):
    found, made = following(*parts)
    assert (found, made.counts) == (right, (came, 40 - came))


def test_of_several_places_the_next_one_is_meant():
    """And behind the last one, that one."""
    tokens = [9]
    made = Prediction((5, 6, 1, 5, 6, 2, 5, 6, 3), tokens, 1)
    for come, said in (((5, 6, 8), ()), ((5, 6), (2, 5, 6, 3)), ((2, 7, 5, 6), (3,)), ((9, 5, 6), (3,))):
        tokens += come
        made.catch_up()
        assert tuple(token for token, _ in made.after(9)) == said


def test_what_the_prompt_ends_with_did_not_come():
    """Two tokens say where an answer is, also where the first of them is the prompt's."""
    tokens = [1, 2, TEXT[10]]
    made = Prediction(TEXT, tokens, 3)
    tokens.append(TEXT[11])
    made.catch_up()
    assert (made.counts, made.after(1)[0][0]) == ((1, 39), TEXT[12])


def test_two_tokens_of_a_tail_say_where_it_is_and_one_that_is_not_there_says_nothing():
    tokens = [1, 2, 3]
    made = Prediction(TEXT, tokens, 3)
    shares = [Tally().rate(MIN_MATCH + place) for place in range(2)]  # however long the match was before
    assert made.after(2, TEXT[20:22]) == list(zip(TEXT[22:24], shares, strict=True))
    tokens.append(7)
    made.catch_up()
    assert made.after(len(TEXT) + 1) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=30), st.lists(st.integers(0, 3), max_size=40), st.integers(1, 9)
)
def test_what_comes_behind_a_tail_is_what_comes_when_it_has_come(text, answer, cut):
    tokens = [0]
    made = Prediction(tuple(text), tokens, 1)
    for end in range(0, len(answer), cut):
        tail = answer[end : end + cut]
        seen = [token for token, _ in made.after(5, tail[:1])]
        other = Prediction(tuple(text), [0, *answer[:end]], 1)
        other.catch_up()
        assert other.counts == made.counts
        assert other.after(5) == made.after(5)
        tokens += tail[:1]
        made.catch_up()
        assert [token for token, _ in made.after(5)] == seen
        tokens += tail[1:]
        made.catch_up()
    assert sum(made.counts) == len(text)
    assert made.counts[0] <= len(text)

"""Choosing on the host: the formulas against float64 and transformers, and drawing where nothing is changed."""

from __future__ import annotations

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.core.errors import RequestError, UnsupportedError
from coterie.device import Sampling
from coterie.engine.choice import Chooser, check_choice, logprobs_of
from coterie.engine.history import ROOM, History
from coterie.engine.request import ChoiceParams
from coterie.engine.speculate.last_choices import LastChoices
from coterie.graph.sampling import BIAS_ONLY, draw, repeat

V = 97
PROMPT = (3, 14, 15, 92, 65, 3)


def logits(seed):
    return (4 * np.random.default_rng(seed).standard_normal(V)).astype(np.float32)


def chooser(sampling=None, **params):
    return Chooser(ChoiceParams(**params), sampling or Sampling(), PROMPT, ())


def formula(z, params, answer):
    """What the next token is drawn from, in float64, token by token."""
    found = []
    for token, given_logit in enumerate(z.astype(np.float64)):
        factor = params.repetition_penalty if token in PROMPT or token in answer else 1
        logit = given_logit / factor if given_logit > 0 else given_logit * factor
        count = answer.count(token)
        penalty = count * params.frequency_penalty + (count > 0) * params.presence_penalty
        found.append(logit - penalty + dict(params.logit_bias).get(token, 0.0))
    return np.array(found)


@hypothesis.settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    repetition=st.floats(0.1, 10),
    bias=st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100), max_size=8),
)
def test_an_answer_is_chosen_by_the_formula(seed, presence, frequency, repetition, bias):
    params = ChoiceParams(None, presence, frequency, repetition, tuple(bias.items()))
    one, answer = Chooser(params, Sampling(), PROMPT, ()), []
    for position in range(12):
        z = logits(seed + position % 3)  # the same rows come again, so the penalties decide
        wanted = formula(z, params, answer)
        np.testing.assert_allclose(one.changed(z), wanted, rtol=1e-5, atol=2e-5)
        answer.append(one.choose(z, int(np.argmax(z)), position))
        assert wanted[answer[-1]] >= wanted.max() - 1e-4


@pytest.mark.parametrize("count", [1, ROOM - 1, ROOM, ROOM + 1, 4 * ROOM + 3])
def test_as_many_tokens_as_come_are_kept(count):
    """In a prompt, as biases and in an answer: each with what belongs to it, however often room is made."""
    tokens, biases = [7 * token for token in range(count)], [token / 8 for token in range(count)]
    asked, biased = History(ChoiceParams(repetition_penalty=2.0), tokens), tuple(zip(tokens, biases, strict=True))
    answered, adds = History(ChoiceParams(presence_penalty=1.0), ()), History(ChoiceParams(logit_bias=biased), ())
    for token in (*tokens, *tokens[::2]):
        answered.note(token)
    for history in (asked, adds, answered):
        np.testing.assert_array_equal(history.changes().ids_N, tokens)
    np.testing.assert_array_equal(asked.changes().times_N, 0)
    np.testing.assert_array_equal(adds.changes().times_N, BIAS_ONLY)
    np.testing.assert_array_equal(adds.changes().bias_N, np.float32(biases))
    np.testing.assert_array_equal(answered.changes().times_N, [2 - place % 2 for place in range(count)])


@hypothesis.settings(deadline=None)  # the first import of torch takes seconds
@given(seed=st.integers(0, 1000), penalty=st.floats(0.05, 20))
def test_repetition_is_penalized_as_transformers_does_it(seed, penalty):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    z, ids = logits(seed), np.unique(PROMPT)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([PROMPT]), torch.tensor(z[None]))
    repeat(z, ids, penalty)
    np.testing.assert_array_equal(z, theirs[0].numpy())


@pytest.mark.parametrize("settings", [Sampling(), Sampling(0.8, 12, 0.9, 0.01, seed=5)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("params", [{"top_logprobs": 3}, {"logit_bias": ((7, 0.0),)}])
def test_what_changes_nothing_draws_what_is_drawn(settings, params):
    one = chooser(settings, **params)
    for position in range(40):
        z = logits(position)
        before, drawn = z.copy(), draw(z, settings, position)
        assert one.choose(z, drawn, position) == drawn
        np.testing.assert_array_equal(z, before)  # the device's copy is not written to


class Some:
    """Lets these tokens through."""

    def __init__(self, tokens):
        self.tokens, self.told = tokens, []

    def allowed(self):
        return np.isin(np.arange(V - 1), self.tokens)

    def forced(self):
        return ()

    def accept(self, token):
        self.told.append(token)


@hypothesis.settings(deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(0, V - 2), min_size=1, max_size=V),
    st.builds(
        Sampling,
        st.sampled_from([0.0, 0.7, 3.0]),
        st.sampled_from([0, 1, 5, V - 1]),
        st.sampled_from([0.5, 0.9, 1.0]),
        st.sampled_from([0.0, 0.1]),
        st.integers(0, 99),
    ),
)
def test_drawing_among_what_may_come_is_drawing_where_nothing_else_has_a_chance(seed, tokens, sampling):
    mask = Some(tokens)
    one, other = (chooser(sampling, mask=mask, frequency_penalty=0.5) for _ in range(2))
    for position in range(8):
        z = np.round(logits(seed + position % 3), 1)  # with ties
        wanted = draw(other.changed(z), sampling, position)
        assert other.choose(z, 0, position) == one.choose(z, 0, position) == wanted
        assert wanted in tokens
    assert mask.told[::2] == mask.told[1::2]


class Led(Some):
    """Of which the first token is forced."""

    leaves = b"\1"

    def forced(self):
        return () if self.told else (self.tokens[0],)

    def choice_key(self):
        return self.leaves


def test_a_habit_learns_what_was_chosen_and_not_what_was_forced():
    mask = Led([7])
    made = chooser(mask=mask)
    made.last_choices = LastChoices()
    assert made.choose(None, 0, 0) == 7
    assert made.last_choices.next(mask, PROMPT[-1]) == []
    assert made.choose(logits(0), 0, 1) == 7
    assert [token for token, _ in made.last_choices.next(mask, PROMPT[-1])] == [7]
    mask.leaves = b"\2"
    assert [token for token, _ in made.last_choices.next(mask, 7)] == [7], "behind the token before"
    assert made.last_choices.next(mask, PROMPT[-1]) == []


def test_a_row_that_is_no_number_draws_no_token():
    mask = Some([3, 9])
    z = logits(0)
    z[9] = np.nan
    assert chooser(mask=mask).choose(z, 0, 0) == -1


def test_only_logprobs_keep_the_devices_token():
    assert chooser(top_logprobs=0).choose(logits(0), 5, 0) == 5


@pytest.mark.parametrize("count", [0, 1, 5, V + 3])
def test_logprobs_are_a_log_softmax_of_the_models_logits(count):
    z = np.round(logits(1))  # ties, of which the lower id is first
    one = chooser(top_logprobs=min(count, 20), logit_bias=((9, 100.0),))
    token = one.choose(z, 0, 0)
    assert token == 9
    (seen,) = one.take_logprobs()
    assert one.take_logprobs() == ()
    found = logprobs_of(z, 9, count)
    assert (found.token, found.logprob) == (9, seen.logprob)
    total = math.fsum(math.exp(float(x)) for x in z)
    order = sorted(range(V), key=lambda i: (-z[i], i))[:count]
    assert [i for i, _ in found.top] == order
    for i, logprob in (*found.top, (found.token, found.logprob)):
        assert logprob == pytest.approx(float(z[i]) - math.log(total), rel=1e-12, abs=1e-12)


def test_logprobs_are_what_torch_says():
    torch = pytest.importorskip("torch")
    z = logits(4)
    theirs = torch.log_softmax(torch.tensor(z, dtype=torch.float64), 0)
    values, ids = theirs.topk(20)
    found = logprobs_of(z, 11, 20)
    assert found.logprob == pytest.approx(float(theirs[11]), rel=1e-12)
    assert [i for i, _ in found.top] == ids.tolist()
    np.testing.assert_allclose([p for _, p in found.top], values.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"top_logprobs": 21}, "top_logprobs is 21"),
        ({"top_logprobs": -1}, "top_logprobs is -1"),
        ({"presence_penalty": 2.5}, r"presence_penalty is 2\.5.*-2 to 2"),
        ({"frequency_penalty": -3.0}, r"frequency_penalty is -3"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is nan"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0.*0\.01 to 100"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
        ({"logit_bias": ((3, 101.0),)}, "logit_bias of 3 is 101"),
        ({"logit_bias": ((-3, 1.0),)}, "logit_bias of -3"),
    ],
)
def test_values_out_of_range_are_refused_by_name(fields, named):
    with pytest.raises(RequestError, match=named):
        ChoiceParams(**fields)


def test_what_an_expert_or_a_device_cannot_choose_is_refused():
    check_choice(ChoiceParams(logit_bias=((V - 1, 1.0),)), V, False)
    with pytest.raises(RequestError, match=f"token {V} but the vocabulary has {V}"):
        check_choice(ChoiceParams(logit_bias=((V, 1.0),)), V, False)
    check_choice(ChoiceParams(), V, True)
    with pytest.raises(UnsupportedError, match="tokens are synthetic"):
        check_choice(ChoiceParams(top_logprobs=0), V, True)

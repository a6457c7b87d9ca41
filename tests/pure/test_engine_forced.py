"""Guesses for answers that are chosen on the host: the same tokens, logprobs, texts and errors as one token a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import engine_world
import numpy as np
import pytest
from engine_world import VOCAB, Words, ask, world
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_choice import Form, NumbersDevice

from coterie.core.errors import RequestError
from coterie.engine.policy import GUESSED_BYTES, MAX_GUESSES, Policy
from coterie.engine.request import ChoiceParams, SamplingParams
from coterie.engine.speculate.last_choices import EXPECTED, KEPT, LastChoices
from coterie.engine.speculate.propose import propose

END = 11


@dataclass
class Menu:
    """What may come depends on the newest token and on how many came: often one token, at times few, or any.

    `length`: so many tokens, or an end. `broken`: behind so many none may come.
    """

    seed: int
    length: int = 99
    broken: int = 99
    told: tuple = ()

    def allowed(self):
        count = len(self.told)
        if count >= self.broken:
            raise RequestError("form", "allows no token", "give another")
        rng = np.random.default_rng([self.seed, count % 5, *self.told[-1:]])
        kind, found = rng.integers(4), np.zeros(VOCAB, bool)
        found[rng.integers(0, VOCAB, (1, 1, 3, VOCAB)[kind])] = True
        if kind > 1:
            found[END] = True
        return found

    def accept(self, token):
        assert self.allowed()[token]
        self.told += (token,)

    def forced(self):
        follower, found = replace(self), ()
        while not follower.complete and len(follower.told) < self.broken and follower.allowed().sum() == 1:
            found += (int(follower.allowed().argmax()),)
            follower.accept(found[-1])
            if len(found) == 1 + self.seed % 20:  # not all that is forced need be known
                break
        return found

    def choice_key(self):
        known = not self.complete and len(self.told) < self.broken and self.allowed().sum() < VOCAB
        return self.allowed().tobytes() if known else None

    def copy(self):
        return replace(self)

    def accept_prefix(self, tokens):
        for place, token in enumerate(tokens):
            if self.complete or len(self.told) >= self.broken or not self.allowed()[token]:
                return place
            self.accept(token)
        return len(tokens)

    @property
    def complete(self):
        return len(self.told) >= self.length


def logits(context, name):
    """Few contexts, so that much is said again."""
    return np.random.default_rng([context[-1] % 2, *map(ord, name)]).standard_normal(VOCAB).astype(np.float32)


@pytest.fixture(autouse=True)
def _device(monkeypatch):
    monkeypatch.setattr(engine_world, "TellingDevice", NumbersDevice)
    monkeypatch.setattr("test_engine_choice.logits", logits)


def outcomes(monkeypatch, requests, guesses, **policy):
    """Of each request its tokens, logprobs, text, why it ended and its error; and the engine's metrics."""
    made = world({"a": 4}, near_blocks=16, kv_blocks=200, policy=Policy(max_guesses=guesses, **policy))
    monkeypatch.setattr(engine_world, "next_token", made.device.next_of)
    outputs = {request.request_id: [] for request in requests}
    for request in requests:
        mask = request.choice.mask
        fresh = replace(request.choice, mask=None if mask is None else replace(mask))
        made.engine.submit(replace(request, choice=fresh))
    while not made.engine.idle:
        for output in made.engine.step():
            outputs[output.request_id].append(output)
        made.engine.check_integrity()
    ends = {name: (its[-1].finish_reason, str(its[-1].error)) for name, its in outputs.items()}
    said = {
        name: (
            tuple(chain.from_iterable(output.token_ids for output in its)),
            tuple(chain.from_iterable(output.logprobs for output in its)),
            "".join(output.text for output in its),
        )
        for name, its in outputs.items()
    }
    return {name: (*said[name], *ends[name]) for name in outputs}, made.engine.metrics


masks = st.builds(Menu, st.integers(0, 40), st.sampled_from([99, 7, 20]), st.sampled_from([99, 99, 12]))
choices = st.builds(
    ChoiceParams,
    top_logprobs=st.sampled_from([None, 0, 3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    logit_bias=st.sampled_from([(), ((5, 1.5),)]),
    mask=st.none() | masks,
)
samplings = st.builds(SamplingParams, st.sampled_from([0.0, 0.6]), seed=st.integers(0, 99))


@st.composite
def asked(draw):
    made = []
    for number in range(draw(st.integers(1, 4))):
        prompt = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9))
        stop = draw(st.sampled_from([(), (), ("aa", "cfc"), ("bd",)]))
        fields = {"choice": draw(choices), "sampling": draw(samplings), "stop": stop, "detokenizer": Words()}
        fields |= {"ignore_end": False, "end_ids": (END,) * draw(st.integers(0, 1))}
        made.append(ask(f"r{number}", "a", prompt, draw(st.integers(1, 30)), **fields))
    return made


@settings(max_examples=60, deadline=None)
@given(asked(), st.sampled_from([1, 3, MAX_GUESSES]), st.integers(1, 6))
def test_whatever_is_asked_the_answer_is_that_of_one_token_a_step(requests, guesses, max_batch):
    with pytest.MonkeyPatch.context() as patch:
        plain, before = outcomes(patch, requests, 0, max_batch=max_batch)
        guessed, after = outcomes(patch, requests, guesses, max_batch=max_batch)
    assert guessed == plain
    assert before.guessed_tokens == 0
    assert after.steps <= before.steps
    assert after.drawn_tokens == before.drawn_tokens


def test_what_is_forced_costs_no_steps_of_its_own_and_reads_no_logits(monkeypatch):
    """Also of an expert that is so small that nothing is looked up; at most 16 tokens are put into a step."""
    monkeypatch.setattr(Policy, "guesses_of", lambda self, size, spec: MAX_GUESSES * (size == GUESSED_BYTES))
    for limit, last in ((30, 23), (30, 24), (19, 24), (30, 17), (30, 18)):
        made = world({"a": 4}, near_blocks=16)
        monkeypatch.setattr(engine_world, "next_token", made.device.next_of)
        form, tokens = Form(*range(1, 1 + last)), ()
        made.engine.submit(ask("r", "a", (1, 2), limit, choice=ChoiceParams(mask=form), ignore_end=False))
        while not made.engine.idle:
            for output in made.engine.step():
                tokens += output.token_ids
        count = min(limit, last)
        assert tokens == tuple(range(1, 1 + count))
        assert made.device.reads == []
        sizes = [binding.rows.sizes.T for _, _, binding, _ in made.device.runs]
        # The prompt, whose step draws one; 16; and the others at once, however many they are.
        assert sizes == {17: [2, 16], 18: [2, 16, 2], 19: [2, 16, 2], 23: [2, 16, 7], 24: [2, 16, 8]}[count]


class Says:
    """A source of these tokens, if what came is what is expected."""

    def __init__(self, tokens, share, tail=()):
        self.tokens, self.share, self.tail = tokens, share, list(tail)

    def after(self, most, tail=()):
        return [(token, self.share) for token in self.tokens[:most]] if list(tail) == self.tail else []


class Only:
    """Lets through just these tokens, a None standing for any; before a hole nothing is forced."""

    def __init__(self, *tokens):
        self.tokens = tokens

    def forced(self):
        return tuple(self.tokens[: (*self.tokens, None).index(None)])

    def choice_key(self):
        return bytes([self.tokens.count(None)]) if self.tokens else None

    def copy(self):
        return Only(*self.tokens)

    def accept_prefix(self, tokens):
        pairs = zip(tokens, self.tokens, strict=False)
        count = next((i for i, (a, b) in enumerate(pairs) if b not in (a, None)), min(len(tokens), len(self.tokens)))
        self.tokens = self.tokens[count:]
        return count


def test_forced_and_likely_tokens_take_turns():
    mask = Only(1, 2, None, None, 5, 6, None, 8, 9)
    sources = [Says([3, 4, 7], 0.5, [1, 2]), Says([3, 4, 5, 7], 0.8, [1, 2]), Says([7, 8], 0.9, [1, 2, 3, 4, 5, 6])]
    seen = propose(sources, mask, 15)
    assert seen.tokens == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert seen.chances == pytest.approx([1, 1, 0.8, 0.64, 0.512, 0.512, 0.4608, 0.41472, 0.41472])
    assert mask.tokens[:2] == (1, 2)
    for most in range(1, 9):
        assert propose(sources, mask, most).tokens == seen.tokens[:most]
    assert propose((), mask, 15).tokens == [1, 2]
    assert propose(sources, Only(), 15).tokens == propose(sources, Only(None), 15).tokens == []
    assert propose([Says([3, 4, 5], 0.4)], None, 15).tokens == [3, 4, 5]
    assert propose([Says([3] * 15, 0.9)], Only(*[None] * 20), 15).tokens == [3] * 15
    assert mask.choice_key() == b"\3"
    unlikely = Says([3], 0.01), Says([4], 0.9, [3])
    assert propose(unlikely, Only(None, None), 15).tokens == [3]  # so unlikely that nobody looks on


def test_a_form_is_gone_on_with_as_it_was_before():
    """By what could come, or else by the token before: whichever was right more often."""
    last_choices = LastChoices()
    assert last_choices.next(Only(None), 7) == []
    last_choices.learn(b"\1", 7, 30)
    last_choices.learn(None, 7, 31)  # where anything could come nothing is learnt
    assert last_choices.next(Only(), 7) == []
    assert last_choices.next(Only(None), 0) == last_choices.next(Only(None, None), 7) == [(30, EXPECTED)]
    for token in (30, 30, 31):
        last_choices.learn(b"\1", 8, token)
        last_choices.learn(b"\2", 7, 40)
    last_choices.learn(b"\2", 7, 40)
    assert last_choices.next(Only(None), 0) == [(31, pytest.approx((2 * EXPECTED + 2) / 5))]
    assert last_choices.next(Only(None), 7) == [(40, pytest.approx((2 * EXPECTED + 3) / 6))]
    for _ in range(3):
        last_choices.learn(b"\1", 9, 31)
    assert last_choices.next(Only(None), 7) == [(31, pytest.approx((2 * EXPECTED + 5) / 8))]
    # Where it is surer than others its token comes first, and they go on behind it.
    sources = [Says([4], 0.4, [1]), Says([6], 0.9, [1, 40, 5])]
    seen = propose(sources, Only(1, None, 5, None), 15, last_choices, 3)
    assert seen.tokens == [1, 40, 5, 6]
    assert seen.chances == pytest.approx([1, 4.4 / 5, 4.4 / 5, 0.9 * 4.4 / 5])
    assert propose([Says([4], 0.9)], Only(None), 15, last_choices, 7).tokens == [4]
    assert propose([], Only(None), 15, last_choices, 7).tokens == [31]
    before = LastChoices()
    before.learn(b"\7", 5, 40)
    assert propose([], Only(5, None), 15, before, 3).tokens == [5, 40]  # behind 5, which is foreseen itself
    assert propose([Says([3], 0.5), Says([4], 0.5)], None, 15).tokens == [3]  # of two that are as sure the first
    for place in range(2 * KEPT):
        last_choices.learn(b"\7" + place.to_bytes(2, "little"), place, 50)
    assert len(last_choices._done) == KEPT
    assert last_choices.next(Only(None), 7) == [(31, pytest.approx((2 * EXPECTED + 5) / 8))]

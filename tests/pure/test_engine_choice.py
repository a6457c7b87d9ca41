"""The engine where some requests of a batch are chosen on the host: beside others, with every way to end, and reuse."""

from __future__ import annotations

from dataclasses import replace

import engine_world
import numpy as np
import pytest
from engine_world import VOCAB, TellingDevice, Words, ask, text_of, world

from coterie.core.errors import RequestError, UnsupportedError
from coterie.device import Sampling
from coterie.engine.choice import Chooser, logprobs_of
from coterie.engine.request import ChoiceParams, SamplingParams
from coterie.graph.sampling import draw

CHOSEN = ChoiceParams(top_logprobs=4, frequency_penalty=1.5, presence_penalty=0.5, logit_bias=((11, 2.0),))


def logits(context, name):
    """The logits behind a context, as an expert of that name has them; few values, so that tokens come again."""
    seed = [context[-1] % 3, *map(ord, name)]
    return np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)


class NumbersDevice(TellingDevice):
    """Draws from logits, of which it has those of its last run."""

    def __post_init__(self):
        super().__post_init__()
        self.rows, self.reads = [], []

    def synthetic(self):
        return False

    def _compute(self, exe, binding, steps):
        self.rows, self.settings = [], iter([s for _ in range(steps) for s in binding.rows.sampling])
        return super()._compute(exe, binding, steps)

    def next_of(self, context, name):
        self.rows.append(logits(context, name))
        return draw(self.rows[-1], next(self.settings), len(context) - 1)

    def logits(self, event, rows):
        ran, _, _, steps = self.runs[-1]
        assert event == ran
        assert steps == 1
        self.reads.append(list(rows))
        return np.stack([self.rows[row] for row in rows])


class ChangingDevice(NumbersDevice):
    """Changes logits by itself; of a run of several steps what a row drew counts in the next."""

    def changes_logits(self):
        return True

    def _compute(self, exe, binding, steps):
        self.drawn, self.sizes = [], binding.rows.sizes
        return super()._compute(exe, binding, steps)

    def next_of(self, context, name):
        self.rows.append(logits(context, name))
        settings, row = next(self.settings), len(self.drawn) % self.sizes.R
        if settings.changes is not None:
            later = (*settings.changes.later_tokens, *self.drawn[row :: self.sizes.R])
            settings = replace(settings, changes=replace(settings.changes, later_tokens=later))
        self.drawn.append(draw(self.rows[-1], settings, len(context) - 1))
        return self.drawn[-1]


@pytest.fixture(params=[NumbersDevice, ChangingDevice], ids=["host", "device"])
def small(request, monkeypatch):
    monkeypatch.setattr(engine_world, "TellingDevice", request.param)
    made = world({"a": 4}, near_blocks=16, max_batch=4)
    monkeypatch.setattr(engine_world, "next_token", made.device.next_of)
    return made


def run(made, *requests):
    """All outputs by request, once nothing is left to do."""
    outputs = {request.request_id: [] for request in requests}
    for request in requests:
        made.engine.submit(request)
    while not made.engine.idle:
        for output in made.engine.step():
            outputs[output.request_id].append(output)
        made.engine.check_integrity()
    return outputs


def tokens_of(outputs):
    return [token for output in outputs for token in output.token_ids]


def expected(request):
    """The answer and its logprobs, one token after the other, by the formula."""
    context, answer, found, params = list(request.prompt_ids), [], [], request.choice
    s = request.sampling
    settings = Sampling(s.temperature, s.top_k, s.top_p, s.min_p, s.seed)
    for _ in range(request.max_tokens):
        z = logits(context, request.expert_id)
        changed = z.copy()
        for token in set(answer):
            changed[token] -= np.float32(params.presence_penalty + params.frequency_penalty * answer.count(token))
        for token, bias in params.logit_bias:
            changed[token] += np.float32(bias)
        token = draw(changed, settings, len(context) - 1)
        found.append(logprobs_of(z, token, params.top_logprobs or 0))
        context.append(token)
        answer.append(token)
        if token in request.end_ids and not request.ignore_end:
            break
    return answer, found


WARM = SamplingParams(temperature=0.7, top_p=0.95, seed=3)


@pytest.mark.parametrize("sampling", [SamplingParams(), WARM], ids=["greedy", "sampled"])
def test_chosen_and_drawn_rows_share_a_batch(small, sampling):
    chosen = ask("chosen", "a", (1, 2, 3), 12, choice=CHOSEN, sampling=sampling)
    drawn = ask("drawn", "a", (4, 5), 9, sampling=sampling)
    reported = ask("reported", "a", (7,), 6, choice=ChoiceParams(top_logprobs=0), sampling=sampling)
    outputs = run(small, chosen, drawn, reported)
    for request in (chosen, drawn, reported):
        answer, found = expected(request)
        assert tokens_of(outputs[request.request_id]) == answer
        if request.choice.needs_logits:
            assert [one for output in outputs[request.request_id] for one in output.logprobs] == found
        assert outputs[request.request_id][-1].finish_reason == "length"
    assert expected(chosen)[0] != expected(ask("plain", "a", (1, 2, 3), 12, sampling=sampling))[0]
    assert not any(output.logprobs for output in outputs["drawn"])
    assert [0, 2] in small.device.reads  # of all rows only those two
    assert max(map(len, small.device.reads)) == 2
    own, changes = (sampling.temperature, sampling.seed), small.device.changes_logits()
    settings = [
        [(row.temperature, row.seed, row.changes is not None) for row in binding.rows.sampling]
        for _, _, binding, _ in small.device.runs
    ]
    first = (*own, True) if changes else (0.0, 0, False)  # which is not looked at
    assert [first, (*own, False), (*own, False)] in settings


def scored(request):
    """What the tokens of a prompt but its first were worth, by the formula."""
    ids, top = list(request.prompt_ids), request.choice.top_logprobs
    return [logprobs_of(logits(ids[:n], request.expert_id), ids[n], top) for n in range(1, len(ids))]


def test_prompts_are_scored_in_as_many_steps_as_their_rows_need(small):
    """Four rows a step, of which each sequence has one; what comes of the prompt is as without."""
    score = ChoiceParams(top_logprobs=2, score_prompt=True)
    requests = [ask("long", "a", range(3, 18), 5, choice=score, reuse=False), ask("drawn", "a", (4, 5), 9)]
    requests += [
        ask("short", "a", (9, 8, 7), 2, choice=score, reuse=False),
        ask("one", "a", (6,), 3, choice=score, reuse=False),
    ]
    outputs = run(small, *requests)
    for request in requests:
        answer, found = expected(request)
        assert tokens_of(outputs[request.request_id]) == answer
        if request.choice.needs_logits:
            told = [one for output in outputs[request.request_id] for one in output.logprobs]
            assert told == scored(request) + found
    first = outputs["long"][0]
    assert (len(first.token_ids), len(first.logprobs)) == (1, 15)
    sizes = [binding.rows.sizes for _, _, binding, _ in small.device.runs]
    assert max(size.R for size in sizes) == 4
    assert sum(size.T > size.B for size in sizes) > 3


def test_prompts_that_are_scored_together_share_the_rows_of_a_step(small):
    score = ChoiceParams(top_logprobs=0, score_prompt=True)
    requests = [ask(name, "a", range(n, n + 9), 2, choice=score, reuse=False) for n, name in enumerate("xyz")]
    outputs = run(small, *requests)
    for request in requests:
        told = [one for output in outputs[request.request_id] for one in output.logprobs]
        assert told == scored(request) + expected(request)[1]
    assert max(binding.rows.sizes.R for _, _, binding, _ in small.device.runs) == 4


def test_a_scored_prompt_is_computed_though_it_is_known(small):
    plain, again = ask("plain", "a", range(20), 1), ask("again", "a", range(20), 1)
    assert run(small, plain)["plain"][-1].timings.cached_tokens == 0
    assert run(small, again)["again"][-1].timings.cached_tokens > 0
    request = ask("scored", "a", range(20), 1, choice=ChoiceParams(top_logprobs=0, score_prompt=True), reuse=False)
    outputs = run(small, request)["scored"]
    assert outputs[-1].timings.cached_tokens == 0
    assert list(outputs[-1].logprobs) == scored(request) + expected(request)[1]


def test_scoring_wants_logprobs_and_shares_nothing():
    with pytest.raises(RequestError, match="no logprobs are asked for"):
        ChoiceParams(score_prompt=True)
    with pytest.raises(RequestError, match="all of it is computed"):
        ask("r", "a", choice=ChoiceParams(top_logprobs=0, score_prompt=True))


def test_who_asks_for_nothing_runs_many_steps_and_reads_nothing(small):
    run(small, ask("drawn", "a", (4, 5), 9))
    assert max(steps for *_, steps in small.device.runs) > 1
    assert small.device.reads == []


def test_penalties_and_biases_alone_run_many_steps_where_the_device_changes_logits(small):
    changes = small.device.changes_logits()
    penalised = ChoiceParams(frequency_penalty=1.5, presence_penalty=0.5, repetition_penalty=1.3)
    biased = ChoiceParams(logit_bias=((11, 2.0), (3, -100.0)))
    one, other = ask("one", "a", (1, 2, 3), 12, choice=penalised), ask("other", "a", (4, 5), 9, choice=biased)
    outputs = run(small, one, other)
    for request, wanted in ((one, penalised), (other, biased)):
        assert tokens_of(outputs[request.request_id]) == by_host(request, wanted)
    assert (max(steps for *_, steps in small.device.runs) > 1) == changes
    assert bool(small.device.reads) != changes


def by_host(request, params):
    """The answer, chosen token by token from the logits."""
    one, context = Chooser(params, Sampling(), request.prompt_ids, ()), list(request.prompt_ids)
    for _ in range(request.max_tokens):
        context.append(one.choose(logits(context, request.expert_id), -1, len(context) - 1))
    return context[len(request.prompt_ids) :]


def test_end_tokens_end_a_chosen_answer(small):
    free, _ = expected(ask("free", "a", choice=CHOSEN, max_tokens=12))
    end = free[4]
    request = ask("one", "a", choice=CHOSEN, max_tokens=12, end_ids=(end,), ignore_end=False)
    outputs = run(small, request)["one"]
    assert tokens_of(outputs) == free[: free.index(end) + 1] == expected(request)[0]
    assert outputs[-1].finish_reason == "stop"


def test_an_end_token_that_only_the_device_drew_ends_nothing(small):
    drawn = expected(ask("drawn", "a", max_tokens=1))[0][0]
    forbidden = ChoiceParams(logit_bias=((drawn, -100.0),))
    request = ask("one", "a", max_tokens=10, choice=forbidden, end_ids=(drawn,), ignore_end=False)
    outputs = run(small, request)["one"]
    assert len(tokens_of(outputs)) == 10
    assert drawn not in tokens_of(outputs)


def test_stop_strings_end_a_chosen_answer(small):
    free, _ = expected(ask("free", "a", choice=CHOSEN, max_tokens=12))
    stop = text_of(free)[5:7]
    request = ask("one", "a", choice=CHOSEN, max_tokens=12, stop=(stop,), detokenizer=Words())
    outputs = run(small, request)["one"]
    text = "".join(output.text for output in outputs)
    assert text == text_of(free)[: text_of(free).index(stop)]
    assert outputs[-1].finish_reason == "stop"


def test_a_later_turn_reuses_what_was_chosen(small):
    first = ask("first", "a", (1, 2, 3, 4, 5, 6, 7, 8), 12, choice=CHOSEN)
    answer = tokens_of(run(small, first)["first"])
    second = ask("second", "a", (*first.prompt_ids, *answer, 9), 5, choice=CHOSEN)
    outputs = run(small, second)["second"]  # the device fails where KV state is not of these tokens
    assert tokens_of(outputs) == expected(second)[0]
    assert outputs[-1].timings.cached_tokens > len(first.prompt_ids)


class Form:
    """Holds an answer to these tokens, one after the other; none may come where there is a hole."""

    def __init__(self, *tokens):
        self.tokens, self.told = list(tokens), []

    def allowed(self):
        token = self.tokens[len(self.told)]
        if token is None:
            raise RequestError("form", "allows no token", "give another")
        return np.arange(token + 1) == token

    def accept(self, token):
        self.told.append(token)

    def forced(self):
        hole = (*self.tokens, None).index(None)
        return tuple(self.tokens[len(self.told) : hole])

    def choice_key(self):
        return None

    def copy(self):
        made = Form(*self.tokens)
        made.told += self.told
        return made

    def accept_prefix(self, tokens):
        forced = self.forced()
        count = next(
            (place for place, token in enumerate(tokens) if (token,) != forced[place : place + 1]), len(tokens)
        )
        self.told += tokens[:count]
        return count

    @property
    def complete(self):
        return len(self.told) == len(self.tokens)


def test_a_mask_leads_its_answer_and_ends_it_where_nothing_may_follow(small):
    form = Form(7, 3, 9)
    outputs = run(small, ask("one", "a", ignore_end=False, max_tokens=12, choice=ChoiceParams(mask=form)))["one"]
    assert tokens_of(outputs) == form.told == [7, 3, 9]
    assert outputs[-1].finish_reason == "stop"


def test_a_mask_is_not_told_of_an_end_and_nothing_follows_one(small):
    form = Form(7, 11, 9)
    ends = ask("one", "a", ignore_end=False, end_ids=(11,), max_tokens=12, choice=ChoiceParams(mask=form))
    assert tokens_of(run(small, ends)["one"]) == [7, 11]
    assert form.told == [7]


def test_a_mask_that_allows_nothing_fails_its_own_answer_alone(small):
    stuck = ask("stuck", "a", (7, 8), ignore_end=False, max_tokens=9, choice=ChoiceParams(mask=Form(7, 3, None)))
    chosen, drawn = ask("chosen", "a", max_tokens=9, choice=CHOSEN), ask("drawn", "a", (4, 5), 9)
    outputs = run(small, stuck, chosen, drawn)
    assert tokens_of(outputs["stuck"]) == [7, 3]
    assert "allows no token" in str(outputs["stuck"][-1].error)
    for request in (chosen, drawn):
        assert tokens_of(outputs[request.request_id]) == expected(request)[0]


def test_a_cancelled_answer_reports_no_logprobs_again(small):
    small.engine.submit(ask("one", "a", max_tokens=12, choice=CHOSEN))
    seen = []
    while len(seen) < 3:
        seen += small.engine.step()
    small.engine.cancel("one")
    (last,) = small.engine.step()
    assert (last.finish_reason, last.token_ids, last.logprobs) == ("cancelled", (), ())


def test_a_failed_step_fails_who_is_chosen_for_too(small):
    small.device.broken.add("run")
    outputs = run(small, ask("one", "a", choice=CHOSEN))["one"]
    assert "trapped" in str(outputs[-1].error)
    assert small.device.reads == []


def test_a_device_that_makes_tokens_up_refuses():
    made = world({"a": 4}, near_blocks=16)
    with pytest.raises(UnsupportedError, match="tokens are synthetic"):
        made.engine.submit(ask("one", "a", choice=CHOSEN))
    assert made.engine.idle

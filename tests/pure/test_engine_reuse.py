"""Requests that begin alike: what an expert has computed once is not computed again, and tokens are those of one alone.

The device of engine_world draws each token from its whole context, read through the block table: a wrong block, or one
that somebody else wrote into, is a wrong token or a failed assertion.
"""

from __future__ import annotations

import pytest
from engine_world import alone, ask, kinds, run_all, world
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.engine.policy import Policy

SIZE = 8  # tokens in a block of the expert below


def one_expert(kv_blocks=64, **policy):
    w = world({"a": 4}, 4, kv_blocks, **policy)
    assert w.pool.tokens_per_block(w.experts["a"].kv) == SIZE
    return w


def serve(w, *requests):
    for request in requests:
        w.engine.submit(request)
    results = run_all(w)
    for request in requests:
        assert results[request.request_id].tokens == alone(request)
    return [results[request.request_id].last.timings.cached_tokens for request in requests]


def computed(w):
    """How many tokens each step took."""
    return [tokens for _, tokens, _ in kinds(w, "run")]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 24, 25])
def test_a_prompt_is_computed_from_the_first_block_that_is_not_there(length):
    w = one_expert(max_steps=1)
    prompt = tuple(range(1, length + 1))
    assert serve(w, ask("r", "a", prompt, 1)) == [0]
    cached = (length - 1) // SIZE * SIZE
    assert serve(w, ask("s", "a", prompt, 3)) == [cached]
    assert computed(w) == [length, length - cached, 1, 1]
    assert kinds(w, "reuse") == ([("s", cached)] if cached else [])
    assert (w.engine.metrics.prompt_tokens, w.engine.metrics.cached_tokens) == (2 * length, cached)


def test_a_conversation_goes_on_behind_its_own_answers():
    w, said, expected = one_expert(), (1, 2, 3), 0
    for turn in range(4):
        request = ask(f"r{turn}", "a", said, 5)
        assert serve(w, request) == [expected]
        expected = (len(said) + 4) // SIZE * SIZE  # all but the last token of the answer were fed back
        said += (*alone(request), 40 + turn)
    assert expected == 24


def test_the_next_request_of_another_expert_shares_nothing():
    w = world({"a": 4, "b": 4}, 8)
    prompt = tuple(range(20))
    assert serve(w, ask("r", "a", prompt)) == [0]
    assert serve(w, ask("s", "b", prompt)) == [0]
    assert serve(w, ask("t", "a", prompt)) == [16]


def test_one_that_comes_later_shares_what_is_still_running():
    w, prompt = one_expert(), tuple(range(20))
    w.engine.submit(ask("r", "a", prompt, 12))
    while not kinds(w, "run"):
        w.engine.step()
    assert serve(w, ask("s", "a", (*prompt, 5, 6), 3)) == [16]


def test_prompts_that_wait_for_their_turn_share_what_is_computed_meanwhile():
    w = one_expert(max_batch=4, max_step_tokens=16, max_steps=1)
    prompt = tuple(range(20))
    assert serve(w, *[ask(f"r{n}", "a", (*prompt, n), 2) for n in range(3)]) == [0, 16, 16]
    assert computed(w)[0] == 16
    assert sum(computed(w)) == 21 + 5 + 5 + 3


def test_a_prompt_that_another_one_computes_mostly_in_this_very_step_waits_for_it():
    w = one_expert(max_batch=4, max_step_tokens=64, max_steps=1)
    head = tuple(range(20))
    alike = [ask(f"r{n}", "a", (*head, n), 2) for n in range(2)]
    longer = ask("r2", "a", (*head[:8], *range(30, 40)), 2)  # a block of its 18 tokens is no half
    assert serve(w, alike[0], alike[1], longer) == [0, 16, 0]
    assert computed(w) == [21 + 18, 5 + 2, 1]


def test_a_prompt_waits_for_one_that_takes_several_steps_and_shares_only_finished_ones():
    w = one_expert(max_batch=4, max_step_tokens=16, max_steps=1)
    head = tuple(range(25))
    assert serve(w, *[ask(f"r{n}", "a", (*head, n), 1) for n in range(3)]) == [0, 24, 24]
    assert computed(w) == [16, 10, 4]


def test_one_that_does_not_wait_shares_no_block_of_the_same_step():
    w = one_expert(max_batch=4, max_step_tokens=16, max_steps=1)
    head = tuple(range(24))
    requests = [ask("r", "a", (*head, 1), 1), ask("s", "a", (*head, *range(30, 44)), 1)]
    assert serve(w, *requests) == [0, 16], "a block of 22 tokens is no half, and it was not there"


def test_nobody_waits_for_the_same_tokens_behind_others():
    w = one_expert(max_batch=4, max_step_tokens=64)
    assert serve(w, ask("q", "a", range(9), 1)) == [0]
    middle = range(20, 28)
    assert serve(w, ask("r", "a", (*range(30, 38), *middle, 1), 1), ask("s", "a", (*range(8), *middle, 1), 1)) == [0, 8]
    assert computed(w) == [9, 17 + 9]


def test_nobody_waits_for_made_up_prompts():
    w = one_expert(max_batch=4, max_step_tokens=64)
    prompt = tuple(range(20))
    assert serve(w, ask("r", "a", prompt, 1, reuse=False), ask("s", "a", prompt, 1)) == [0, 0]
    assert computed(w) == [40]


@pytest.mark.parametrize("stopped", ["first", "second"])
def test_one_of_two_that_share_is_stopped(stopped):
    w, prompt = one_expert(kv_blocks=9, max_steps=1), tuple(range(20))
    requests = {name: ask(name, "a", prompt, 10) for name in ("first", "second")}
    begun = dict.fromkeys(requests, ())
    for name, request in requests.items():
        w.engine.submit(request)
        while not begun[name]:
            for output in w.engine.step():
                begun[output.request_id] += output.token_ids
    assert kinds(w, "reuse") == [("second", 16)]
    w.engine.cancel(stopped)
    stranger = ask("stranger", "a", range(30, 45), 20)  # there is room for it once the other one is gone
    w.engine.submit(stranger)
    results = run_all(w)
    assert results[stopped].last.finish_reason == "cancelled"
    (other,) = set(requests) - {stopped}
    assert begun[other] + results[other].tokens == alone(requests[other])
    assert results["stranger"].tokens == alone(stranger)
    assert serve(w, ask("again", "a", prompt, 2)) == [16]


def test_what_a_stopped_request_had_not_computed_is_not_shared():
    w = one_expert(max_batch=2, max_step_tokens=10)
    prompt = tuple(range(30))
    w.engine.submit(ask("r", "a", prompt))
    while not kinds(w, "run"):
        w.engine.step()
    w.engine.cancel("r")
    assert run_all(w)["r"].last.finish_reason == "cancelled"
    assert serve(w, ask("s", "a", prompt)) == [8]


def test_after_a_failure_everything_is_computed_again():
    w, prompt = one_expert(), tuple(range(20))
    assert serve(w, ask("r", "a", prompt)) == [0]
    w.device.broken.add("run")
    w.engine.submit(ask("s", "a", prompt))
    assert run_all(w)["s"].last.finish_reason == "error"
    w.device.broken.clear()
    assert serve(w, ask("t", "a", prompt)) == [0]
    assert serve(w, ask("u", "a", prompt)) == [16]


def test_what_an_expert_computed_before_its_weights_could_not_be_read_is_not_trusted():
    w = world({"a": 4, "b": 4}, 4)
    prompt = tuple(range(20))
    serve(w, ask("r", "a", prompt), ask("s", "b", prompt))
    w.device.broken.add("a")
    w.engine.submit(ask("t", "a", prompt))
    assert run_all(w)["t"].last.finish_reason == "error"
    w.device.broken.clear()
    assert serve(w, ask("u", "a", prompt)) == [0]


def test_state_outlives_the_weights():
    w = world({"a": 4, "b": 4}, 4)
    prompt = tuple(range(20))
    serve(w, ask("r", "a", prompt), ask("s", "b", prompt))
    assert serve(w, ask("t", "a", prompt)) == [16]
    assert [who for (who,) in kinds(w, "fetch")] == ["a", "b", "a"]


def test_blocks_that_are_needed_are_taken_from_what_was_used_longest_ago():
    w = one_expert(kv_blocks=6)
    for name, first in (("r", 0), ("s", 20)):
        assert serve(w, ask(name, "a", range(first, first + 17), 1)) == [0]
    assert serve(w, ask("t", "a", range(17), 1)) == [16]
    assert serve(w, ask("u", "a", range(30, 47), 8)) == [0]  # three blocks and one free: the second's go
    assert serve(w, ask("v", "a", range(17), 1)) == [16]
    assert serve(w, ask("w", "a", range(20, 37), 1)) == [0]


def test_made_up_prompts_share_nothing():
    w, prompt = one_expert(), tuple(range(20))
    assert serve(w, ask("r", "a", prompt, reuse=False)) == [0]
    assert serve(w, ask("s", "a", prompt)) == [0]
    assert serve(w, ask("t", "a", prompt, reuse=False)) == [0]
    assert serve(w, ask("u", "a", prompt)) == [16]


def test_a_pool_that_does_not_reuse_shares_nothing():
    w, prompt = one_expert(), tuple(range(20))
    w.pool.reuses = False
    assert serve(w, ask("r", "a", prompt), ask("s", "a", prompt)) == [0, 0]
    assert serve(w, ask("t", "a", prompt)) == [0]


heads = st.sampled_from([(), (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)])
asked = st.lists(
    st.tuples(
        st.sampled_from("abc"), heads, st.lists(st.integers(1, 2), min_size=1, max_size=6), st.integers(1, 12),
        st.sampled_from(["", "", "", "follow", "cancel", "break", "alone"]),
    ),
    min_size=1,
    max_size=24,
)  # fmt: skip
policies = st.builds(
    lambda batch, extra, **settings: Policy(max_batch=batch, max_step_tokens=batch + extra, **settings),
    schedule=st.sampled_from(["grouped", "fcfs"]),
    batch=st.integers(1, 8),
    extra=st.integers(1, 16),
    overlap=st.booleans(),
    max_steps=st.integers(1, 4),
)


@settings(max_examples=120, deadline=None)
@given(asked, policies, st.integers(6, 30), st.integers(1, 4))
def test_whatever_is_shared_tokens_are_those_of_one_alone(items, policy, kv_blocks, arrivals):
    w = world({"a": 2, "b": 3, "c": 4}, 7, kv_blocks, policy)
    requests, tokens, ends = {}, {}, {}

    def step():
        for output in w.engine.step():
            name = output.request_id
            tokens[name] = tokens.get(name, ()) + output.token_ids
            if output.finish_reason is not None:
                ends[name] = output
        w.engine.check_integrity()

    for number, (expert, head, tail, max_tokens, what) in enumerate(items):
        before = requests.get(f"r{number - 1}") if what == "follow" else None
        who, begin = expert, head
        if before is not None:  # the next turn of the conversation, whether the last one was answered or not
            who, begin = before.expert_id, before.prompt_ids + alone(before)
        prompt = (*begin, *tail)[:39]
        need = -(-(min(len(prompt) + max_tokens, 40) - 1) // w.pool.tokens_per_block(w.experts[who].kv))
        if need > kv_blocks:
            continue
        request = requests[f"r{number}"] = ask(f"r{number}", who, prompt, max_tokens, reuse=what != "alone")
        w.engine.submit(request)
        if number % arrivals == 0:
            step()
        if what == "cancel":
            w.engine.cancel(f"r{number // 2}")
        if what == "break":
            w.device.broken.add("run")
            step()
            w.device.broken.clear()
    for _ in range(3000):
        if w.engine.idle:
            break
        step()
    assert set(ends) == set(requests)
    for name, output in ends.items():
        whole = alone(requests[name])
        if output.finish_reason == "length":
            assert tokens[name] == whole
        else:
            assert tokens[name] == whole[: len(tokens[name])]
        assert output.timings.cached_tokens < len(requests[name].prompt_ids)
        if not requests[name].reuse:
            assert output.timings.cached_tokens == 0
    w.engine.step()
    assert w.pool.free_blocks == w.pool.num_blocks


@settings(max_examples=40, deadline=None)
@given(asked, policies, st.integers(1, 4))
def test_where_nothing_is_shared_everything_is_decided_as_without(items, policy, arrivals):
    """Prompts of one token, short ones and long ones, but none that begins as another one does."""
    logs = []
    for reuses in (True, False):
        w = world({"a": 2, "b": 3, "c": 4}, 7, 30, policy)
        w.pool.reuses = reuses
        for number, (expert, head, tail, max_tokens, _) in enumerate(items):
            w.engine.submit(ask(f"r{number}", expert, (20 + number, *head, *tail)[: 1 + number % 20], max_tokens))
            if number % arrivals == 0:
                w.engine.step()
        run_all(w)
        logs.append(list(w.engine.decisions))
    assert logs[0] == logs[1]

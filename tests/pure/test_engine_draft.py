"""Drafts: an expert's answers are the same whoever guesses for it, and nobody waits, or makes room, for who guesses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from drafts import LARGE, OTHER, TWIN, drafted, drafting, priced
from engine_world import alone, ask, kinds, run_all, world
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_serving import policies, requests

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.core.errors import CapacityError
from coterie.engine.policy import Policy
from coterie.engine.request import ChoiceParams
from coterie.engine.sequence import Sequence
from coterie.engine.speculate.draft import MAX_DRAFTED, AcceptanceRate, Draft
from coterie.engine.speculate.guess import Price


@pytest.fixture(autouse=True)
def _priced(monkeypatch):
    priced(monkeypatch)


def test_drafts_save_steps_and_change_no_token():
    asked = ask("r", LARGE, (1, 2, 0), 36)
    steps = {}
    for small in ("", OTHER, TWIN):
        w = drafting(small, max_steps=1)
        w.engine.submit(asked)
        got = run_all(w)["r"]
        assert got.tokens == alone(asked)
        steps[small], counts = w.engine.metrics.steps, drafted(w)
        timings = got.last.timings
        assert (timings.guessed_tokens, timings.accepted_tokens) == counts
        assert {entry[0] for entry in kinds(w, "draft")} == ({small} if small else set())
    assert counts[0] == counts[1] > 20
    assert steps[TWIN] < 14 < steps[OTHER] <= steps[""] == 36


def test_what_is_seldom_right_is_given_up():
    w = drafting(OTHER, max_steps=1)
    w.engine.submit(ask("r", LARGE, (1, 2, 0), 37))
    run_all(w)
    guessed, right = drafted(w)
    assert 0 < right < guessed / 2
    assert guessed < 30
    assert {entry[0] for entry in list(w.engine.decisions)[-9:-1]} == {"run"}


@settings(max_examples=40, deadline=None)
@given(requests, policies, st.integers(21, 32), st.integers(8, 40), st.integers(1, 4), st.sampled_from([TWIN, OTHER]))
def test_everyone_is_served_as_if_alone(items, policy, near, kv_blocks, arrivals, small):
    """Whatever is evicted, cancelled, waits for KV blocks or shares them."""
    w = drafting(small, near, kv_blocks, policy=replace(policy, max_guesses=7))
    names, asked, got, gone = {"a": LARGE, "b": TWIN, "c": OTHER, "d": LARGE}, [], {}, set()
    for number, (expert, prompt, max_tokens, ends) in enumerate(items):
        how = {"end_ids": (2,) * (number % 3), "ignore_end": not ends}
        request = ask(f"r{number}", names[expert], [token % 3 for token in prompt], 4 * max_tokens, **how)
        try:
            w.engine.submit(request)
        except CapacityError:
            continue
        asked.append(request)
        if number % 5 == 4:
            w.engine.cancel(request.request_id)
            gone.add(request.request_id)
        if number % arrivals == 0:
            for output in w.engine.step():
                got.setdefault(output.request_id, []).append(output.token_ids)
    for name, result in run_all(w).items():
        got.setdefault(name, []).append(result.tokens)
    for request in asked:
        whole = alone(request)
        tokens = sum(got[request.request_id], ())
        assert tokens == whole[: len(tokens)]
        assert len(tokens) == len(whole) or request.request_id in gone
    assert w.pool.free_blocks == w.pool.num_blocks


def test_several_at_once_are_guessed_for_together():
    asked = [ask(f"r{number}", LARGE, (number % 3, 1, 2, number), 30) for number in range(3)]
    w = drafting(max_steps=1)
    for request in asked:
        w.engine.submit(request)
    got = run_all(w)
    assert all(got[request.request_id].tokens == alone(request) for request in asked)
    assert w.engine.metrics.steps < 20
    assert any(rows == 3 for _, _, rows in kinds(w, "draft"))


@pytest.mark.parametrize(("most", "count", "times"), [(9, 1, 5), (40, 3, 5), (512, 150, 2)])
def test_no_step_of_a_draft_is_larger_than_the_policy_lets_steps_be(most, count, times, monkeypatch):
    """So much memory is reserved for values; and where sequences are many, all come on. Rows are free."""
    of = Price.of
    monkeypatch.setattr(Price, "of", lambda expert, balance: replace(of(expert, balance), row=0.0, few=0.0))
    asked = [ask(f"r{number}", LARGE, (number % 3, 1, 2) * times, 22) for number in range(count)]
    policy = Policy(max_batch=min(most - 1, 300), max_step_tokens=most, max_guesses=7, max_steps=1)
    w = drafting(kv_blocks=4096, policy=policy)
    for request in asked:
        w.engine.submit(request)
    got = run_all(w)
    assert all(got[request.request_id].tokens == alone(request) for request in asked)
    drafts = kinds(w, "draft")
    assert max(tokens for _, tokens, _ in drafts) <= most
    assert max(rows for _, _, rows in drafts) == count
    assert drafted(w)[0] > 0


def test_full_batches_are_left_alone():
    w = drafting(max_batch=4, max_step_tokens=64)
    for number in range(4):
        w.engine.submit(ask(f"r{number}", LARGE, (number % 3, 1, 2), 20))
    run_all(w)
    assert drafted(w) == (0, 0)


def test_a_draft_that_goes_midway_is_missed_and_comes_back_where_there_is_room():
    asked = ask("r", LARGE, (1, 2, 0), 36)
    w = drafting(max_steps=1)
    w.engine.submit(asked)
    got = ()
    while len(got) < 12:
        got += sum([output.token_ids for output in w.engine.step()], ())
    before = drafted(w)[0]
    assert before
    w.engine.control.unload(TWIN)
    got += run_all(w)["r"].tokens
    assert got == alone(asked)
    assert drafted(w)[0] > before
    assert kinds(w, "fetch").count((TWIN,)) == 2


@pytest.mark.parametrize("ends", ["renewed", "failed"])
def test_a_draft_that_drafts_no_more_lacks_nothing(ends):
    w = world({LARGE: 20, TWIN: 1, "other": 4}, 24, policy=Policy(max_guesses=7), drafts={LARGE: TWIN})
    for name in ("other", LARGE):
        w.engine.submit(ask(name, name, (1, 2), 20))
        run_all(w)
    assert w.engine.drafts.lacks
    getattr(w.engine.drafts, ends)(LARGE)
    assert w.engine.drafts.lacks
    getattr(w.engine.drafts, ends)(TWIN)
    assert not w.engine.drafts.lacks


def test_nobody_is_evicted_for_a_draft(caplog):
    w = world({LARGE: 20, TWIN: 1, "other": 4}, 24, policy=Policy(max_guesses=7), drafts={LARGE: TWIN})
    for name in ("other", LARGE):
        w.engine.submit(ask(name, name, (1, 2), 20))
        run_all(w)
    assert set(w.cache.residents) == {"other", LARGE}
    assert not kinds(w, "evict")
    assert drafted(w) == (0, 0)
    (lack,) = w.engine.drafts.lacks.values()
    assert (lack.demand_bytes, lack.bound_bytes) == (BLOCK_BYTES, 0)
    assert str(lack).startswith(f"[{LARGE}: draft] {TWIN}, beside whom dram holds, needs 4.00 KiB but 0 B can be had")
    assert f"set --near to at least {25 * BLOCK_BYTES} B" in str(lack)
    w.engine.submit(ask("again", LARGE, (1, 2), 20))
    run_all(w)
    assert caplog.messages == [f"nothing is drafted: {lack}"]
    # Where somebody has left, it comes in, and lacks nothing.
    w.cache.forget("other")
    w.engine.submit(ask("then", LARGE, (1, 2), 30))
    run_all(w)
    assert drafted(w)[0] > 0
    assert not w.engine.drafts.lacks
    assert len(caplog.messages) == 1


def test_as_much_memory_as_it_says_is_enough():
    for blocks, guesses in ((24, False), (25, True)):
        w = world({LARGE: 20, TWIN: 1, "other": 4}, blocks, policy=Policy(max_guesses=7), drafts={LARGE: TWIN})
        for name in ("other", LARGE):
            w.engine.submit(ask(name, name, (1, 2), 30))
            run_all(w)
        assert (drafted(w)[0] > 0) == guesses


def test_who_wants_blocks_of_a_draft_has_them_at_once():
    w = drafting(kv_blocks=64, max_steps=1)
    first = ask("first", LARGE, (1, 2, 0), 36)
    w.engine.submit(first)
    tokens = {"first": (), "second": ()}

    def step():
        for output in w.engine.step():
            tokens[output.request_id] += output.token_ids

    while not drafted(w)[0]:
        step()
    free = w.pool.free_blocks
    assert free < w.pool.num_blocks - w.pool.blocks_for(38, w.experts[LARGE].kv)
    # One that needs more than is free, but not more than there is without the draft's.
    w.pool.allocate(1000, free - 1)
    second = ask("second", LARGE, (2, 1), 8)
    w.engine.submit(second)
    step()
    assert kinds(w, "admit")[-1] == ("second",)
    while not w.engine.idle:
        step()
    assert tokens == {"first": alone(first), "second": alone(second)}
    w.pool.free(1000)
    assert w.pool.free_blocks == w.pool.num_blocks
    w.engine.check_integrity()


def test_without_blocks_for_it_nothing_is_drafted_which_is_said(caplog):
    own, small = (drafting().pool.blocks_for(38, drafting().experts[name].kv) for name in (LARGE, TWIN))
    for spare in (small - 1, small):
        w = drafting(kv_blocks=64)
        w.pool.allocate(1000, 64 - own - spare)
        w.engine.submit(ask("r", LARGE, (1, 2, 0), 36))
        while not w.engine.idle:
            w.engine.step()
        assert (drafted(w)[0] > 0) == (spare == small)
        lacks = [str(lack) for lack in w.engine.drafts.lacks.values()]
        assert [f"nothing is drafted: {lack}" for lack in lacks] == caplog.messages
        assert len(lacks) == (spare < small)
        if lacks:
            assert f"the KV state of {TWIN} needs" in lacks[0]
            assert f"set --kv to at least {65 * w.pool.block_bytes} B" in lacks[0]
        caplog.clear()


@pytest.mark.parametrize("context", [16, 24])
def test_a_draft_goes_as_far_as_its_own_context(context):
    w = drafting(max_steps=1)
    w.experts[TWIN] = replace(w.experts[TWIN], max_context=context)
    asked = ask("r", LARGE, (1, 2, 0), 36)
    w.engine.submit(asked)
    assert run_all(w)["r"].tokens == alone(asked)
    lengths = [max(binding.rows.lengths_B) + steps - 1 for _, exe, binding, steps in w.device.runs if TWIN in exe.names]
    assert context - 2 * MAX_DRAFTED <= max(lengths) <= context
    assert w.engine.metrics.steps > (36 - context) + context // (MAX_DRAFTED + 1)


def test_tokens_that_one_of_them_has_not_are_not_given_to_it():
    asked = ask("r", LARGE, (1, 2, 0), 30)
    for name, few in ((TWIN, 2), (LARGE, 2)):
        w = drafting(max_steps=1)
        w.experts[name] = replace(w.experts[name], vocab_size=few)
        asked = ask("r", LARGE, (1, 1, 0), 30)
        w.engine.submit(asked)
        assert run_all(w)["r"].tokens == alone(asked)


@pytest.mark.parametrize("fault", ["step", "load"])
def test_a_draft_that_fails_fails_nobody(fault):
    w = drafting(max_steps=1)
    if fault == "step":
        w.device.bad = TWIN
    else:
        w.device.broken.add(TWIN)
    asked = ask("r", LARGE, (1, 2, 0), 30)
    w.engine.submit(asked)
    got = run_all(w)["r"]
    assert got.tokens == alone(asked)
    assert got.last.finish_reason == "length"
    assert drafted(w) == (0, 0)
    assert len(kinds(w, "fetch")) == 2  # each once
    w.device.bad = ""
    w.device.broken.clear()
    w.engine.renewed(TWIN)
    w.engine.submit(replace(asked, request_id="again"))
    run_all(w)
    assert drafted(w)[0] > 0


def test_a_draft_whose_load_failed_drafts_again_once_somebody_has_loaded_it():
    w = drafting()
    w.device.broken.add(TWIN)
    w.engine.submit(ask("r", LARGE, (1, 2, 0), 30))
    run_all(w)
    w.device.broken.clear()
    w.engine.submit(ask("after", LARGE, (2, 2, 0), 30))
    run_all(w)
    assert drafted(w) == (0, 0)  # nobody else has tried whether it can be read now
    w.engine.submit(ask("own", TWIN, (1, 2), 3))
    run_all(w)
    w.engine.submit(ask("then", LARGE, (0, 2, 0), 30))
    assert run_all(w)["then"].tokens == alone(ask("then", LARGE, (0, 2, 0), 30))
    assert drafted(w)[0] > 0


def test_a_load_of_a_draft_that_broke_off_is_no_lack_of_memory_while_its_first_piece_is_still_written():
    w = drafting(OTHER, max_steps=1)
    w.device.refuse_after, w.device.stalled = 4, {OTHER}  # three pieces are the large one's
    asked = ask("r", LARGE, (1, 2, 0), 36)
    w.engine.submit(asked)
    got = ()
    while len(got) < 12:
        got += sum([output.token_ids for output in w.engine.step()], ())
    assert kinds(w, "refuse") == [(OTHER,)]
    assert not w.engine.drafts.lacks
    w.device.refuse_after, w.device.stalled = None, set()
    assert got + run_all(w)["r"].tokens == alone(asked)
    assert drafted(w)[0] > 0


def test_a_draft_shares_what_it_has_read():
    """The next turn of a conversation is read from where the last one ended."""
    w = drafting(max_steps=1)
    first = ask("first", LARGE, (1, 2, 0, 1, 2, 0, 0), 14)
    w.engine.submit(first)
    tokens = run_all(w)["first"].tokens
    count = len(kinds(w, "draft"))
    again = ask("again", LARGE, (*first.prompt_ids, *tokens, 1), 14)
    w.engine.submit(again)
    assert run_all(w)["again"].tokens == alone(again)
    assert max(tokens for _, tokens, _ in kinds(w, "draft")[count:]) < len(again.prompt_ids) - 8


def test_nothing_is_drafted_where_nothing_may_be_guessed():
    asked = ask("r", LARGE, (1, 2, 0), 20)
    w = drafting(policy=Policy(max_guesses=0))
    w.engine.submit(asked)
    run_all(w)
    assert w.cache.residents == {LARGE}
    w = drafting()
    w.engine.submit(replace(asked, choice=ChoiceParams(top_logprobs=0)))  # TellingDevice has no logits
    w.engine.cancel("r")
    run_all(w)
    assert drafted(w) == (0, 0)


def test_a_draft_follows_what_was_drawn():
    own = Sequence(ask("r", TWIN, (1, 2, 3), 20), 40, 0.0)
    draft = Draft(LARGE, own, AcceptanceRate(), agreed=3)
    own.tokens += [7, 8, 9]
    own.computed, draft.base, draft.guessed = 5, 3, 3
    assert draft.follow([1, 2, 3, 7, 5]) == (1, 2)  # the third tells of nothing: it stood behind a wrong one
    assert (own.tokens, own.computed, draft.guessed) == ([1, 2, 3, 7, 5], 4, 0)
    own.tokens += [6, 6]
    own.computed, draft.base, draft.guessed = 6, 5, 2
    assert draft.follow([1, 2, 3, 7, 5, 6, 6, 4]) == (2, 2)
    assert (own.tokens[5:], own.computed) == ([6, 6, 4], 6)
    assert draft.follow([1, 2, 3, 7, 5, 6, 6, 4]) == (0, 0)
    assert own.computed == 6


def test_an_answer_that_begins_again_is_drafted_from_its_beginning():
    """As where its expert's files were touched: what was drawn is drawn once more, and is the same."""
    w = drafting(max_steps=1)
    asked, got = ask("r", LARGE, (1, 2, 0), 36), ()
    w.engine.submit(asked)
    while len(got) < 12:
        got += sum([output.token_ids for output in w.engine.step()], ())
    (sequence,) = w.engine.queue.running[LARGE].values()
    w.engine.renewed(LARGE)
    assert sequence.begin_again()
    w.engine.reuse.end(sequence, failed=True)
    w.engine.reuse.admit(w.experts[LARGE], sequence)
    before = drafted(w)[0]
    assert got + run_all(w)["r"].tokens == alone(asked)
    assert drafted(w)[0] > before + 12

"""Priorities: who goes before whom, who pauses for it, and that nobody behind waits for ever."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_world import alone, ask, kinds, run_all, world
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core.errors import RequestError
from coterie.engine.sequence import Sequence


def urgent(request_id, expert="a", priority=-1, **more):
    return replace(ask(request_id, expert, **more), priority=priority)


def admitted(w):
    return [name for (name,) in kinds(w, "admit")]


def test_a_lower_number_is_admitted_first_and_equal_ones_as_they_came():
    w = world({"a": 4}, near_blocks=4, max_batch=1)
    for name, priority in (("late", 3), ("r0", 0), ("r1", 0), ("soon", -2), ("r2", 0)):
        w.engine.submit(urgent(name, priority=priority))
    run_all(w)
    assert admitted(w) == ["soon", "r0", "r1", "r2", "late"]


def test_a_full_batch_makes_a_place_and_the_youngest_behind_pauses():
    w = world({"a": 4}, near_blocks=4, kv_blocks=400, max_batch=2)
    for name in ("r0", "r1"):
        w.engine.submit(ask(name, "a", max_tokens=20))
    while w.engine.metrics.drawn_tokens < 6:
        w.engine.step()
    w.engine.submit(urgent("chat", max_tokens=4))
    seen = {"r0": 0, "r1": 0, "chat": 0}
    while "chat" not in [name for (name, _) in kinds(w, "finish")]:
        for output in w.engine.step():
            seen[output.request_id] += len(output.token_ids)
    assert seen == {"r0": 4, "r1": 0, "chat": 4}  # its first token is that of the very next step
    run_all(w)
    assert w.engine.metrics.drawn_tokens == 44
    assert not kinds(w, "pause")  # it kept its KV blocks


def test_kv_blocks_are_given_up_by_the_youngest_behind_who_goes_on_with_the_same_tokens():
    w = world({"a": 4}, near_blocks=4, kv_blocks=9, max_steps=1)
    requests = [ask(name, "a", max_tokens=24) for name in ("r0", "r1")]
    tokens = {request.request_id: [] for request in requests}
    tokens["chat"], ended = [], {}
    for request in requests:
        w.engine.submit(request)
    for _ in range(6):
        for output in w.engine.step():
            tokens[output.request_id] += output.token_ids
    assert admitted(w) == ["r0", "r1"]
    w.engine.submit(urgent("chat", max_tokens=8))
    while not w.engine.idle:
        for output in w.engine.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
            ended[output.request_id] = output.timings
        w.engine.check_integrity()
    assert kinds(w, "pause") == [("r1",)]
    assert (ended["r1"].queue_admissions, ended["r1"].overtaken) == (1, 0)  # of before it began
    assert admitted(w) == ["r0", "r1", "chat", "r1"]
    for request in (*requests, urgent("chat", max_tokens=8)):
        assert tokens[request.request_id] == list(alone(request))
    metrics, ranks = w.engine.metrics, w.engine.metrics.by_priority
    assert metrics.admitted == 3
    assert {rank: its.pauses for rank, its in ranks.items()} == {"urgent": 0, "usual": 1, "behind": 0}
    for rank, names in (("urgent", ["chat"]), ("usual", ["r0", "r1"]), ("behind", [])):  # r1 waited once for each
        waited = [ended[name].scheduled_s - ended[name].arrival_s for name in names]
        assert (ranks[rank].queued.total, ranks[rank].queued.sum_s) == (len(names), pytest.approx(sum(waited)))
        assert ranks[rank].ttft.sum_s == pytest.approx(sum(ended[name].ttft_s for name in names))
    assert (metrics.ttft.total, sum(metrics.ttft.counts)) == (3, 3)
    assert metrics.ttft.sum_s == pytest.approx(sum(timings.ttft_s for timings in ended.values()))


def test_nobody_pauses_where_that_would_not_make_room():
    w = world({"a": 4}, near_blocks=4, kv_blocks=9)
    w.engine.submit(urgent("equal", max_tokens=40))
    w.engine.submit(ask("behind", "a", max_tokens=4))
    for _ in range(4):
        w.engine.step()
    w.engine.submit(urgent("chat", max_tokens=40))
    run_all(w)
    assert not kinds(w, "pause")


def test_nobody_pauses_for_who_has_no_place_in_a_step_either():
    w = world({"a": 4, "b": 4}, near_blocks=8, kv_blocks=6, max_batch=1)
    w.engine.submit(ask("behind", "b", max_tokens=20))
    for _ in range(3):
        w.engine.step()
    for name in ("chat0", "chat1"):
        w.engine.submit(urgent(name, max_tokens=12))
    free = []
    while not any(name == "chat0" for (name, _) in kinds(w, "finish")):
        w.engine.step()
        free.append(w.pool.free_blocks < w.engine.queue.oldest.blocks if w.engine.queue.oldest else False)
        assert not kinds(w, "pause")
    assert any(free)
    run_all(w)


def test_an_expert_that_is_wanted_sooner_takes_the_place_of_one_within_its_turn():
    found = {}
    for priority in (0, -1):
        w = world({"a": 4, "b": 4}, near_blocks=4, kv_blocks=400, turn_steps=50)
        w.engine.submit(ask("batch", "a", max_tokens=40))
        while not w.engine.metrics.drawn_tokens:
            w.engine.step()
        w.engine.submit(urgent("chat", "b", priority))
        run_all(w)
        found[priority] = [name for (name, _) in kinds(w, "finish")], len(kinds(w, "fetch"))
    assert found == {0: (["batch", "chat"], 2), -1: (["chat", "batch"], 3)}


def test_resident_experts_behind_run_when_nobody_is_in_front_or_one_of_them_was_raised():
    for turn_steps, order in ((100, "b" * 37 + "a" * 30), (8, "b" * 8 + "aaaabbbb" * 7)):
        w = world({"a": 4, "b": 4}, near_blocks=8, kv_blocks=4000, turn_steps=turn_steps, max_steps=1)
        w.engine.submit(ask("batch", "a", max_tokens=30))
        w.engine.submit(urgent("chat", "b", max_tokens=37))
        run_all(w)
        ran = "".join(expert for (expert, _, _) in kinds(w, "run"))
        assert ran.startswith(order), ran


def test_a_first_token_does_not_wait_for_a_quantum_of_those_behind():
    w = world({"a": 4, "b": 4}, near_blocks=8, kv_blocks=4000)
    w.engine.submit(ask("batch", "a", max_tokens=30))
    for _ in range(5):
        w.engine.step()
    w.engine.submit(urgent("chat", "b", max_tokens=2))
    while not w.engine.queue.running.get("b"):
        w.engine.step()
    assert kinds(w, "run")[-1][0] == "b"


@pytest.mark.parametrize("experts", [{"a": 4}, {"a": 4, "b": 4}])
def test_somebody_behind_is_raised_now_and_then_however_many_come(experts):
    w = world(experts, near_blocks=4, kv_blocks=400, max_batch=1, turn_steps=6)
    last = list(experts)[-1]
    for number in range(3):
        w.engine.submit(ask(f"batch{number}", "a", max_tokens=2))
    for number in range(400):
        w.engine.submit(urgent(f"chat{number}", last, max_tokens=2))
        w.engine.step()
        ended = [name for (name, _) in kinds(w, "finish") if name.startswith("batch")]
        if len(ended) == 3:
            break
    assert ended == ["batch0", "batch1", "batch2"]
    assert [name for (name,) in kinds(w, "raise")] == ended


def test_who_was_raised_is_raised_again_when_still_better_ones_come():
    w = world({"a": 4}, near_blocks=4, kv_blocks=400, max_batch=1, turn_steps=6)
    w.engine.submit(urgent("batch", priority=2, max_tokens=2))
    for number in range(400):
        w.engine.submit(urgent(f"chat{number}", priority=0 if kinds(w, "raise") else 1, max_tokens=2))
        w.engine.step()
        if ("batch", "length") in kinds(w, "finish"):
            break
    assert ("batch", "length") in kinds(w, "finish")
    assert kinds(w, "raise") == [("batch",), ("batch",)]


def test_as_many_priorities_as_requests_leave_nothing_behind_and_little_to_look_at():
    w = world({"a": 2, "b": 2}, near_blocks=4, kv_blocks=400, max_batch=2)
    for number in range(40):
        w.engine.submit(urgent(f"r{number}", "ab"[number % 2], priority=number * 7 % 40))
    while w.engine.queue.num_waiting > 20:
        w.engine.step()
        firsts = w.engine.queue.firsts(2)
        assert firsts[0] is w.engine.queue.oldest
        assert {s.request.expert_id for s in firsts} == {"a", "b"}
        assert len(firsts) <= 4
    run_all(w)
    assert not w.engine.queue._overtakers


def test_a_prompt_behind_waits_while_a_better_one_is_read():
    w = world({"a": 4}, near_blocks=4, kv_blocks=400, max_step_tokens=20, max_batch=4)
    w.engine.submit(replace(ask("long", "a"), prompt_ids=tuple(range(30))))
    while not kinds(w, "run"):
        w.engine.step()
    w.engine.submit(replace(urgent("chat", "a"), prompt_ids=(1, 2, 3)))
    w.engine.step()
    assert [tokens for (_, tokens, _) in kinds(w, "run")] == [20, 3]


def test_one_clients_share_and_line_go_by_priority():
    w = world({"a": 4}, near_blocks=4, max_batch=2)
    for number in range(6):
        w.engine.submit(replace(ask(f"batch{number}", "a"), client="one", priority=1))
    w.engine.submit(replace(ask("other", "a"), client="two"))
    assert len(w.engine.admission) == 4
    w.engine.submit(replace(ask("chat", "a"), client="one"))
    run_all(w)
    assert admitted(w) == ["other", "chat", *[f"batch{number}" for number in range(6)]]


def test_who_paused_is_not_sent_back_in_line_and_who_had_not_begun_has_not_paused():
    w = world({"a": 4}, near_blocks=4, kv_blocks=9, max_batch=2, max_steps=1)
    for name in ("r0", "r1"):
        w.engine.submit(replace(ask(name, "a", max_tokens=24), client="one"))
    for _ in range(6):
        w.engine.step()
    for name in ("chat0", "chat1"):
        w.engine.submit(replace(urgent(name, max_tokens=8), client="one"))
    w.engine.step()
    paused = [name for (name,) in kinds(w, "pause")]
    assert paused
    for number in range(3):
        w.engine.submit(replace(urgent(f"late{number}", max_tokens=2), client="one"))
    w.engine.submit(replace(ask("other", "a"), client="two"))
    held = w.engine.admission.held["one"]
    assert held
    assert not set(paused) & set(held)
    results = run_all(w)
    for name in ("r0", "r1"):
        assert results[name].last.finish_reason == "length"
    sequence = Sequence(ask("r", "a"), 40, 0.0)
    sequence.pause()
    assert not sequence.paused
    sequence.computed = 1
    sequence.pause()
    assert sequence.paused


def test_a_priority_is_a_whole_number():
    with pytest.raises(RequestError, match=r"priority.* is 0\.5; give a whole number"):
        urgent("r", priority=0.5)


def test_who_paused_can_be_cancelled_and_begins_again_where_its_weights_may_be_others():
    w = world({"a": 4}, near_blocks=4, kv_blocks=9, max_steps=1)
    for name in ("r0", "r1"):
        w.engine.submit(ask(name, "a", max_tokens=24))
    for _ in range(6):
        w.engine.step()
    w.engine.submit(urgent("chat", max_tokens=8))
    w.engine.step()
    assert kinds(w, "pause") == [("r1",)]
    (paused,) = w.engine.queue.waiting["a"].values()
    drawn = paused.tokens[3:]
    assert paused.begin_again()
    assert (paused.tokens, paused.owed, len(drawn) > 2) == ([1, 2, 3], drawn, True)
    w.engine.cancel("r1")
    results = run_all(w)
    assert results["r1"].last.finish_reason == "cancelled"
    assert results["r0"].last.finish_reason == results["chat"].last.finish_reason == "length"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.integers(1, 12), st.integers(0, 4)),
        min_size=1,
        max_size=16,
    ),
    st.integers(1, 4),
    st.integers(8, 40),
)
def test_whoever_goes_first_all_answers_are_those_that_each_has_alone(asked, max_batch, kv_blocks):
    w = world({"a": 3, "b": 3, "c": 2}, near_blocks=6, kv_blocks=kv_blocks, max_batch=max_batch, turn_steps=4)
    tokens = {}
    for number, (expert, priority, count, steps) in enumerate(asked):
        w.engine.submit(urgent(f"r{number}", expert, priority, max_tokens=count))
        for output in [output for _ in range(steps) for output in w.engine.step()]:
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
    for _ in range(3000):
        if w.engine.idle:
            break
        for output in w.engine.step():
            assert output.error is None
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
        w.engine.check_integrity()
    assert w.engine.idle
    for number, (expert, priority, count, _) in enumerate(asked):
        assert tokens[f"r{number}"] == list(alone(urgent(f"r{number}", expert, priority, max_tokens=count)))
    assert w.engine.metrics.admitted == len(asked)
    assert not w.engine.queue.priorities

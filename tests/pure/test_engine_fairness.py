"""Who runs when: switches saved, nobody starved, cold experts that do not stall hot ones, prefetch, the baseline."""

from __future__ import annotations

import pytest
from engine_world import ask, kinds, run_all, world
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.engine.policy import Policy
from coterie.engine.scheduler import grouped
from coterie.engine.view import Fetch, First, Group, Residence, Run, View, Wait, Waiting


def interleaved(w, count=12):
    for number in range(count):
        w.engine.submit(ask(f"r{number}", "ab"[number % 2]))
    return run_all(w)


def test_grouping_saves_switches_over_first_come_first_served():
    switches = {}
    for schedule in ("fcfs", "grouped"):
        w = world({"a": 4, "b": 4}, near_blocks=4, schedule=schedule)
        interleaved(w)
        switches[schedule] = w.engine.metrics.switches
    assert switches == {"fcfs": 12, "grouped": 2}


def test_first_come_first_served_runs_neighbours_of_one_expert_together():
    w = world({"a": 4, "b": 4}, near_blocks=8, schedule="fcfs")
    for number, expert in enumerate("aabba"):
        w.engine.submit(ask(f"r{number}", expert))
    run_all(w)
    assert [name for (name,) in kinds(w, "admit")] == ["r0", "r1", "r2", "r3", "r4"]
    assert [expert for (expert, _, _) in kinds(w, "run")] == ["a"] * 4 + ["b"] * 4 + ["a"] * 4


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_the_age_bound_is_reached_and_not_passed(bound):
    w = world({"a": 4, "b": 4}, near_blocks=4, age_bound=bound, turn_steps=1000)
    results = interleaved(w)
    assert max(r.last.timings.overtaken for r in results.values()) == bound


def test_a_stream_of_requests_for_one_expert_does_not_starve_another():
    w = world({"a": 4, "b": 4}, near_blocks=4, age_bound=5, max_batch=2, turn_steps=1000)
    w.engine.submit(ask("a0", "a"))
    w.engine.submit(ask("b", "b"))
    finished = set()
    for number in range(1, 200):
        w.engine.submit(ask(f"a{number}", "a"))
        finished |= {o.request_id for o in w.engine.step() if o.finish_reason}
        if "b" in finished:
            break
    assert "b" in finished
    assert len(kinds(w, "admit")) < 12


def test_a_stream_of_newcomers_does_not_stop_an_answer_of_another_expert():
    w = world({"a": 4, "b": 4}, near_blocks=8, kv_blocks=4000)
    w.engine.submit(ask("long", "b", max_tokens=40))
    finished = set()
    for number in range(400):  # one in each step, as fast as they are answered
        w.engine.step()
        w.engine.submit(ask(f"a{number}", "a", max_tokens=4))
        finished |= {request_id for (request_id, _) in kinds(w, "finish")}
        if "long" in finished:
            break
    assert "long" in finished
    order = "".join(expert for (expert, _, _) in kinds(w, "run"))
    assert max(map(len, order.split("b"))) <= 2 * 2 * 4 + 4  # two rounds of two quanta, and one


def test_a_long_sequence_gives_its_place_up_when_its_turn_is_over_and_is_resumed():
    w = world({"a": 4, "b": 4}, near_blocks=4, turn_steps=6)
    w.engine.submit(ask("long", "a", max_tokens=30))
    w.engine.submit(ask("short", "b", max_tokens=3))
    results = run_all(w)
    assert [who for (who, _) in kinds(w, "finish")] == ["short", "long"]
    assert kinds(w, "fetch") == [("a",), ("b",), ("a",)]
    assert [tokens for (expert, tokens, _) in kinds(w, "run") if expert == "a"] == [3] + [1] * 29
    assert len(results["long"].tokens) == 30


def test_an_idle_expert_goes_before_one_at_work_even_if_it_was_used_later():
    w = world({"busy": 3, "idle": 3, "new": 3}, near_blocks=6, turn_steps=1)
    w.engine.submit(ask("long", "busy", max_tokens=30))
    w.engine.step()
    w.engine.submit(ask("short", "idle", max_tokens=1))
    while not kinds(w, "finish"):
        w.engine.step()
    w.engine.submit(ask("next", "new"))
    run_all(w)
    assert kinds(w, "evict") == [("idle", "dram")]


def test_resident_experts_share_the_steps():
    w = world({"a": 4, "b": 4}, near_blocks=8, quantum_steps=2)
    w.engine.submit(ask("r", "a", max_tokens=8))
    w.engine.submit(ask("s", "b", max_tokens=8))
    run_all(w)
    order = "".join(expert for (expert, _, _) in kinds(w, "run"))
    assert "aabbaabb" in order


def test_a_cold_expert_does_not_stall_a_hot_one():
    w = world({"hot": 3, "cold": 3}, near_blocks=6)
    w.engine.submit(ask("h", "hot", max_tokens=30))
    while not w.engine.metrics.drawn_tokens:
        w.engine.step()
    w.device.stalled = {"cold"}
    w.engine.submit(ask("c", "cold"))
    before = w.engine.metrics.steps
    for _ in range(10):
        w.engine.step()
    assert w.engine.metrics.steps == before + 10
    assert w.engine.metrics.switches == 2
    w.device.stalled = set()
    run_all(w)


def test_without_overlap_a_wanted_expert_runs_next():
    w = world({"hot": 3, "cold": 3}, near_blocks=6, overlap=False)
    w.engine.submit(ask("h", "hot", max_tokens=30))
    w.engine.step()
    w.engine.submit(ask("c", "cold"))
    w.engine.step()
    assert kinds(w, "run")[-1][0] == "cold"


@pytest.mark.parametrize(("prefetch", "under_way"), [(0, 1), (1, 2), (2, 3)])
def test_prefetch_is_how_many_more_may_be_under_way(prefetch, under_way):
    w = world({"a": 3, "b": 3, "c": 3}, near_blocks=9, prefetch=prefetch)
    for expert in "abc":
        w.engine.submit(ask(expert, expert))
    w.engine.step()
    assert w.engine.metrics.switches == under_way


def test_prefetch_brings_experts_whose_requests_may_not_start_yet():
    switches = []
    for prefetch in (0, 1):
        w = world({"a": 3, "b": 3, "c": 3}, near_blocks=9, kv_blocks=8, prefetch=prefetch)
        w.engine.submit(ask("a", "a", max_tokens=30))
        while not w.engine.metrics.drawn_tokens:
            w.engine.step()
        w.engine.submit(ask("b", "b", max_tokens=30))
        w.engine.step()
        switches.append(w.engine.metrics.switches)
    assert switches == [1, 2]


def test_a_large_expert_gets_its_room_among_many_small_ones():
    w = world({"big": 6, **dict.fromkeys("abcdef", 2)}, near_blocks=6, turn_steps=4)
    for number in range(30):
        w.engine.submit(ask(f"r{number}", "abcdef"[number % 6], max_tokens=10))
        if number == 8:
            w.engine.submit(ask("big", "big"))
    results = run_all(w)
    finished = [who for (who, _) in kinds(w, "finish")]
    assert results["big"].last.finish_reason == "length"
    assert finished.index("big") < 24


def group(name, residence, *numbers, running=0, **fields):
    waiting = tuple(Waiting(number, 1) for number in numbers)
    fields.setdefault("num_waiting", len(numbers))
    fields.setdefault("oldest", min(numbers, default=0))
    return Group(name, residence, waiting, running=running, **fields)


def view(*groups, free_blocks=9, overtaken=0, **fields):
    """A view of these groups; `overtaken` is of the oldest waiting request."""
    waiting = sorted((g.waiting[0].number, g.expert_id) for g in groups if g.waiting)
    firsts = tuple(First(name, number, 0 if i else overtaken) for i, (number, name) in enumerate(waiting[:2]))
    fields.setdefault("arrived", 10)
    return View(groups, free_blocks, firsts, **fields)


A, R, S, T = Residence.ABSENT, Residence.READY, Residence.STARTED, Residence.ARRIVING


@pytest.mark.parametrize(
    ("given", "decision"),
    [
        (view(), Wait()),
        (view(group("a", A, 0)), Fetch("a")),
        (view(group("a", A, 0), refused=frozenset("a")), Wait()),
        (view(group("a", T, 0), under_way=1), Wait()),
        (view(group("a", S, 0), under_way=1), Run("a", (0,))),
        (view(group("a", S, 0), group("b", R, 1), under_way=1), Run("b", (1,))),
        (view(group("a", R, 0, 1, 2), free_blocks=2), Run("a", (0, 1))),
        (view(group("a", R, 0, 1, 2, running=31)), Run("a", (0,))),
        (view(group("a", R, running=1), group("b", A, 5)), Fetch("b", frozenset("a"), frozenset("a"))),
        (view(group("a", R, running=1, turn_steps=999), group("b", A, 5)), Fetch("b", frozenset(), frozenset("a"))),
        # The age bound, of 32 here: one more may go before b's request, then none.
        (view(group("a", R, 3, 6, 7), group("b", R, 5), overtaken=0), Run("a", (3, 6, 7))),
        (view(group("a", R, 6, 7, 8, num_waiting=9), group("b", R, 5), overtaken=31), Run("a", (6,))),
        (view(group("a", R, 6, 7, 8, num_waiting=9), group("b", R, 5), overtaken=32), Run("b", (5,))),
        # In turn, by quanta of 4; an expert that has not begun goes before, while fewer than 6 share the steps.
        (view(group("a", R, running=1, last_run=9), group("b", R, running=1), current="a", streak=1), Run("a", ())),
        (view(group("a", R, running=1, last_run=9), group("b", R, running=1), current="a", streak=4), Run("b", ())),
        (view(group("a", R, running=1), group("b", R, 1), current="a", streak=4), Run("b", (1,))),
        (view(*(group(c, R, running=1) for c in "abcdef"), group("g", R, 1)), Run("a", ())),
        # Behind a quantum who can be admitted goes before; of several the one that weighs more.
        (view(group("a", R, running=1), group("b", R, 9, running=1), current="a", streak=3), Run("a", ())),
        (
            view(group("a", R, running=1), group("b", R, 9, running=1, last_run=9), current="a", streak=4),
            Run("b", (9,)),
        ),
        (view(group("a", R, running=1), group("b", R, 9, running=32), current="b", streak=4), Run("a", ())),
        # But for so long: two rounds of two quanta.
        (view(group("a", R, running=1), group("b", R, 9, running=1, last_run=15)), Run("b", (9,))),
        (view(group("a", R, running=1), group("b", R, 9, running=1, last_run=16)), Run("a", ())),
        (view(group("a", R, 8, running=1), group("b", R, 2), current="a", streak=4), Run("b", (2,))),
        (view(*(group(c, R, running=1) for c in "abcdef"), group("g", R, 1), current="a", streak=4), Run("a", ())),
        # Weight: requests times the square of the oldest one's age; of those that weigh the same the older.
        (view(group("a", A, 6), group("b", A, 7, 8, 9)), Fetch("b")),
        (view(group("a", A, 2), group("b", A, 7, 8, 9)), Fetch("a")),
        (view(group("a", A, 2, num_waiting=9), group("b", A, 1)), Fetch("a")),
        (view(group("a", A, 6, num_waiting=4), group("b", A, 2)), Fetch("b")),
        # Beyond 1.4 times the requests that are here, 7, age alone counts.
        (view(group("a", A, 4, num_waiting=6), group("b", A, 3), arrived=12), Fetch("a")),
        (view(group("a", A, 4, num_waiting=6), group("b", A, 3), arrived=13), Fetch("b")),
        (view(group("a", A, 4, num_waiting=6), group("b", A, 3), arrived=20), Fetch("b")),
        # Nothing more is fetched while what is there, with work that weighs no less, has not begun.
        (view(group("a", R, 2), group("b", A, 3)), Run("a", (2,))),
        (view(group("a", R, 3), group("b", A, 2)), Fetch("b", frozenset("a"), frozenset("a"))),
    ],
)
def test_decisions_one_by_one(given, decision):
    assert grouped(given, Policy(prefetch=0, age_bound=32)) == decision


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60),
    st.integers(0, 5),
    st.sampled_from([4, 6, 9]),
    st.integers(4, 12),
    st.integers(1, 3),
    st.integers(0, 2),
)
def test_small_memories_never_stop_the_engine(experts, bound, near, kv_blocks, turns, prefetch):
    sizes = {name: 1 + index % 4 for index, name in enumerate("abcdef")}
    policy = Policy(
        age_bound=bound, max_batch=4, max_step_tokens=7, turn_steps=3, max_active_experts=turns, prefetch=prefetch
    )
    w = world(sizes, near, kv_blocks, policy)
    for number, expert in enumerate(experts):
        w.engine.submit(ask(f"r{number}", expert, prompt=range(1 + number % 9), max_tokens=1 + number % 7))
    results = run_all(w)
    assert {r.last.finish_reason for r in results.values()} == {"length"}
    assert len(results) == len(experts)
    assert max(r.last.timings.overtaken for r in results.values()) <= bound
    assert w.engine.metrics.max_overtaken <= bound

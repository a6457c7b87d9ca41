"""Placements: every expert somewhere, nothing too full, the load even; and what is said when it cannot be done."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core.errors import CapacityError, UsageError
from coterie.plan.check import Judged, check
from coterie.plan.mix import mix_named
from coterie.plan.place import Placement, place
from coterie.plan.size import min_for_memory
from coterie.plan.slo import Slo
from coterie.plan.workload import Load, lengths_named, make_workload

GB = 10**9


def check_legal(placement, sizes, room):
    assert placement.share.sum(axis=1) == pytest.approx(1)
    assert (placement.share >= 0).all()
    for held in placement.held:
        assert sum(sizes[expert] for expert in held) <= room * (1 + 1e-9)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 3), st.booleans())
@settings(max_examples=20, deadline=None)
def test_every_expert_is_somewhere_and_no_machine_is_too_full(experts, machines, slack, solver):
    sizes = [4] * experts
    room = 4 * (-(-experts // machines) + slack)
    load = np.random.default_rng(experts).random(experts)
    placement = place(sizes, load, machines, room, solver)
    check_legal(placement, sizes, room)
    assert placement.machines == machines


def test_the_solver_is_no_worse_than_greed_and_both_split_what_is_too_much_for_one():
    load = np.array([8.0, 1.0, 1.0, 1.0, 1.0])
    greedy, solved = (place([1] * 5, load, 3, 4, solver=solver) for solver in (False, True))
    assert solved.method == "milp"
    assert greedy.method == "greedy"
    for placement in (greedy, solved):
        assert 0 in placement.replicated
        assert placement.loads(load).max() <= 4.6  # a third of 12 is 4
    assert solved.loads(load).max() <= greedy.loads(load).max() * (1 + 1e-6)


def test_no_clock_says_how_far_the_solver_goes_and_nothing_that_it_writes_is_seen(monkeypatch, capfd):
    optimize = pytest.importorskip("scipy.optimize")
    limits, solve = [], optimize.milp

    def spy(*args, options, **rest):
        limits.append(set(options))
        os.write(1, b"as HiGHS does where it repairs an answer")
        return solve(*args, options=options, **rest)

    monkeypatch.setattr(optimize, "milp", spy)
    load = 1 / np.arange(1, 11)
    first, again = (place([1] * 10, load, 9, 4) for _ in range(2))
    assert limits == [{"node_limit", "mip_rel_gap"}] * 2
    assert first.method == "milp"
    assert first.share.tolist() == again.share.tolist()
    os.write(1, b"ours")
    assert capfd.readouterr().out == "ours"


@given(st.integers(1, 10), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_machine_that_is_split_has_less_to_do_and_nobody_more(experts, machines, seed):
    rng = np.random.default_rng(seed)
    load, room = rng.random(experts), 4 * experts
    before = place([4] * experts, load, machines, room, solver=False)
    busy = int(rng.integers(machines))
    after = before.split_machine(busy, load)
    check_legal(after, [4] * experts, room)
    assert after.machines == machines + 1
    others = [m for m in range(machines) if m != busy]
    assert (after.share[:, others] == before.share[:, others]).all()
    assert after.share[:, busy] + after.share[:, -1] == pytest.approx(before.share[:, busy])
    assert (after.share <= np.column_stack([before.share, before.share[:, busy]])).all()
    held = np.flatnonzero(before.share[:, busy])
    if len(held) > 1:  # who had several experts has some of them, each as it was
        assert not np.flatnonzero(after.share[:, busy] * after.share[:, -1]).size
        assert max(after.loads(load)[[busy, -1]]) < before.loads(load)[busy]
    elif len(held) == 1:
        assert after.loads(load)[[busy, -1]] == pytest.approx(before.loads(load)[busy] / 2)


def test_copies_cost_so_that_nobody_is_copied_for_nothing():
    placement = place([1] * 4, np.ones(4), 2, 4)
    assert placement.replicated == ()
    assert placement.loads(np.ones(4)).tolist() == pytest.approx([2, 2])


def test_a_problem_too_large_for_the_solver_says_that_greed_was_used():
    placement = place([1] * 400, np.ones(400), 8, 100)
    assert placement.method == "greedy"
    assert "400 experts on 8 machines are more than the solver manages" in placement.why
    check_legal(placement, [1] * 400, 100)


def test_a_load_that_is_even_needs_no_solver(monkeypatch):
    monkeypatch.setattr("coterie.plan.place._milp", None)
    placement = place([1] * 30, np.ones(30), 3, 12)
    assert (placement.method, placement.why) == ("greedy", "no solver can even the load out by more than 1%")
    assert placement.loads(np.ones(30)).tolist() == pytest.approx([10] * 3)


@pytest.mark.parametrize(
    ("sizes", "load", "room", "machines"),
    [
        ([7, 7, 3], [0.28, 0.70, 0.02], 11, 2),  # three copies of the second would leave no piece of 7
        ([5, 3, 7, 10, 10, 3], [0.02, 0.05, 0.01, 0.91, 0.005, 0.005], 17, 3),
        ([2, 1, 5, 5, 7], [0.05, 0.24, 0.47, 0.01, 0.23], 9, 4),
    ],
)
def test_what_so_many_machines_hold_more_hold_too(sizes, load, room, machines):
    for count in range(machines, machines + 5):
        placement = place(sizes, np.array(load), count, room, solver=False)
        check_legal(placement, sizes, room)
        assert placement.machines == count


def test_one_machine_needs_no_solver():
    placement = place([1] * 3, np.ones(3), 1, 3)
    assert (placement.method, placement.why) == ("greedy", "one machine leaves nothing to choose")
    check_legal(placement, [1] * 3, 3)


def test_a_check_that_comes_to_no_end_is_one_sentence(monkeypatch):
    judged(monkeypatch, lambda count: 0.25)
    with pytest.raises(UsageError, match=r"after 20 counts of machines .* 3 keep it for 25.0%, 4 keep it"):
        check(None, None, Slo(ttft_s=1.0), 3, 1, lambda count: count)


def judged(monkeypatch, kept):
    """Let the simulation say this of a count."""
    monkeypatch.setattr(
        "coterie.plan.check.judge", lambda case, workload, slo, count: Judged(count, kept(count), None, "")
    )


@given(st.integers(1, 300), st.integers(1, 200), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_the_check_finds_the_smallest_count_from_any_estimate(planned, needed, held):
    with pytest.MonkeyPatch.context() as patch:
        judged(patch, lambda count: 0.99 if count >= needed else 0.5)
        least = min(1 + held, planned)
        said = check(None, None, Slo(ttft_s=1.0), planned, least, lambda count: count)
    assert said.machines == max(needed, least)
    assert min(said.judged) >= least
    assert said.machines == least or said.judged[said.machines - 1].attained < 0.95
    assert said.agrees == (planned == said.machines)


def test_requests_are_split_in_proportion_and_each_goes_somewhere():
    names = tuple("abc")
    lengths = lengths_named("9", "x")
    made = make_workload(Load(900, mix_named("uniform"), lengths, lengths, rate=1.0), names)
    placement = Placement(np.array([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]]), "milp")
    parts = placement.split(made)
    assert sorted(np.concatenate(parts).tolist()) == list(range(900))
    assert set(made.expert_index[parts[0]]) == {0, 1}
    for expert, share in ((0, 1.0), (1, 0.25)):
        mine = np.flatnonzero(made.expert_index == expert)
        assert np.isin(mine, parts[0]).sum() == pytest.approx(share * len(mine), abs=1)


@pytest.mark.parametrize(
    ("sizes", "room", "sentence"),
    [
        ([5 * GB, GB], 4 * GB, r"placement on 2 machines\] the largest expert needs 4.66 GiB but 3.73 GiB"),
        ([3 * GB] * 5, 7 * GB, r"one copy of every expert needs 13.97 GiB but 13.04 GiB can be had; 3 machines"),
        ([3 * GB] * 4 + [2 * GB], 7 * GB, r"\[placement on 2 machines\] "),
    ],
)
def test_what_no_solver_can_place(sizes, room, sentence):
    with pytest.raises(CapacityError, match=sentence):
        place(sizes, np.ones(len(sizes)), 2, room)


@pytest.mark.parametrize(
    ("experts", "dgx", "sn40l"),
    [(10, 1, 1), (50, 2, 1), (100, 3, 1), (140, 4, 1), (190, 5, 1), (420, 10, 1), (870, 20, 1), (880, 20, 2)],
)
def test_the_papers_own_footprint(experts, dgx, sn40l):
    """Figure 13: 14 GB an expert; 640 GB of HBM for the experts and a router, 12288 GB of DDR for the experts."""
    assert min_for_memory((experts + 1) * 14 * GB, 640 * GB) == dgx
    assert min_for_memory(experts * 14 * GB, 12288 * GB) == sn40l

"""Modelled time on bare resources: fair shares, sharing over time, gates, failures; worked out by hand."""

from __future__ import annotations

import gc
from dataclasses import replace
from math import inf

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coterie.devices.modelled.fluid import Flow, FluidClock, Phase, Work, fair_rates, merged

NEAR = 1e-9  # relative: what sums of floats may lose


def flow(amount, *resources):
    return Flow(float(amount), dict.fromkeys(resources, 1.0))


def drain(clock):
    while clock.advance():
        pass


def test_two_flows_share_evenly():
    assert fair_rates([{"a": 1.0}, {"a": 1.0}], {"a": 10.0}) == [5.0, 5.0]


def test_a_flow_held_back_elsewhere_leaves_its_share_to_others():
    assert fair_rates([{"a": 1.0, "thin": 1.0}, {"a": 1.0}], {"a": 10.0, "thin": 2.0}) == [2.0, 8.0]


def test_a_flow_that_uses_a_resource_twice_drains_at_half_its_rate():
    assert fair_rates([{"a": 2.0}], {"a": 10.0}) == [5.0]


def test_a_flow_that_uses_nothing_takes_no_time():
    assert fair_rates([{}, {"a": 1.0}], {"a": 10.0}) == [inf, 10.0]
    clock = FluidClock({"a": 10.0})
    free = clock.issue("x", [], [Phase(0.5, (flow(7), flow(10, "a")))])
    beside = clock.issue("y", [], [Phase(flows=(flow(7),))])
    drain(clock)
    assert free.end_s == pytest.approx(1.5, rel=NEAR)
    assert beside.end_s == 0.0
    assert clock.usage["a"].drawn == pytest.approx(10.0, rel=NEAR)


def test_the_clock_keeps_no_finished_work():
    gc.collect()
    before = sum(type(item) is Work for item in gc.get_objects())
    clock = FluidClock({"a": 10.0, "b": 10.0})
    for _ in range(2500):
        first = clock.issue("x", [], [Phase(flows=(flow(1, "a"),))])
        last = clock.issue("y", [first], [Phase(flows=(flow(1, "b"),)), Phase(gate=first)])
        drain(clock)
    assert (first.number, last.number) == (4998, 4999)
    assert last.end_s == pytest.approx(500.0, rel=1e-6)
    assert sum(type(item) is Work for item in gc.get_objects()) - before == 2


def test_work_that_shares_is_retimed_when_the_other_ends():
    clock = FluidClock({"a": 10.0})
    short = clock.issue("x", [], [Phase(flows=(flow(10, "a"),))])
    long = clock.issue("y", [], [Phase(flows=(flow(30, "a"),))])
    drain(clock)
    assert short.end_s == pytest.approx(2.0, rel=NEAR)  # 10 at 5 per second
    assert long.end_s == pytest.approx(4.0, rel=NEAR)  # 10 at 5, then 20 at 10


def test_work_is_retimed_when_another_starts():
    clock = FluidClock({"a": 10.0})
    first = clock.issue("x", [], [Phase(flows=(flow(30, "a"),))])
    clock.advance(until=1.0)
    assert clock.now == 1.0
    second = clock.issue("y", [], [Phase(flows=(flow(10, "a"),))])
    drain(clock)
    assert second.end_s == pytest.approx(3.0, rel=NEAR)  # 10 at 5
    assert first.end_s == pytest.approx(4.0, rel=NEAR)  # 10 at 10, 10 at 5, 10 at 10


def test_flows_of_a_phase_drain_together_and_the_slowest_ends_it():
    clock = FluidClock({"flops": 4.0, "bytes": 10.0})
    work = clock.issue("x", [], [Phase(0.5, (flow(8, "flops"), flow(10, "bytes")))])
    drain(clock)
    assert work.end_s == pytest.approx(2.5, rel=NEAR)


def test_a_gate_stalls_its_lane_and_the_lane_goes_on():
    clock = FluidClock({"a": 1.0, "b": 1.0})
    copy = clock.issue("link", [], [Phase(flows=(flow(5, "b"),))])
    run = clock.issue("compute", [], [Phase(flows=(flow(2, "a"),)), Phase(flows=(flow(2, "a"),), gate=copy)])
    behind = clock.issue("compute", [], [Phase(flows=(flow(1, "a"),))])
    drain(clock)
    assert (run.start_s, run.end_s) == (0.0, pytest.approx(7.0, rel=NEAR))
    assert behind.start_s == run.end_s


def test_failures_pass_on_and_end_at_their_gate():
    clock = FluidClock({"a": 1.0, "b": 1.0})
    error = OSError("lost")
    bad = clock.issue("link", [], [Phase(flows=(flow(5, "b"),))], failure=error)
    gated = clock.issue("compute", [], [Phase(flows=(flow(2, "a"),)), Phase(flows=(flow(9, "a"),), gate=bad)])
    after = clock.issue("other", [gated], [Phase(flows=(flow(1, "a"),))])
    assert not bad.finished
    drain(clock)
    assert (bad.failure, gated.failure, after.failure) == (error, error, error)
    assert gated.end_s == after.start_s == after.end_s == bad.end_s == pytest.approx(5.0, rel=NEAR)
    assert clock.usage["a"].drawn == pytest.approx(2.0, rel=NEAR)


def test_work_without_amounts_is_done_when_it_is_issued():
    clock = FluidClock({"a": 1.0})
    assert clock.issue("x", [], [Phase(flows=(flow(0, "a"),))]).end_s == 0.0
    assert clock.issue("x", [], []).finished


# No deadline and no complaint about speed: other work shares the machine. The same examples on every run.
steady = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
CAPACITY = {"hbm": 100.0, "ddr": 40.0, "link": 30.0, "flops": 70.0}
LANES = ("compute", "up", "down")
amounts = st.one_of(st.just(0.0), st.floats(0.01, 1000.0))
flows = st.builds(
    Flow, amounts, st.dictionaries(st.sampled_from(sorted(CAPACITY)), st.sampled_from([0.5, 1.0, 2.0]), min_size=1)
)
phases = st.builds(Phase, st.sampled_from([0.0, 0.25]), st.lists(flows, max_size=3).map(tuple))


@st.composite
def plans(draw):
    """Works in order of issue: (lane, numbers awaited, [(phase, number of its gate)], fails)."""
    plan = []
    for number in range(draw(st.integers(1, 10))):
        earlier = st.lists(st.integers(0, number - 1), max_size=2) if number else st.just([])
        steps = draw(st.lists(phases, max_size=3))
        gates = draw(earlier)
        gated = [(step, gates[i] if i < len(gates) else None) for i, step in enumerate(steps)]
        plan.append((draw(st.sampled_from(LANES)), draw(earlier), gated, draw(st.integers(0, 7)) == 0))
    return plan


def issue(clock, plan):
    works = []
    for lane, after, steps, fails in plan:
        gated = [step if gate is None else replace(step, gate=works[gate]) for step, gate in steps]
        works.append(clock.issue(lane, [works[number] for number in after], gated, OSError(lane) if fails else None))
    return works


def play(plan, capacity=CAPACITY):
    clock = FluidClock(capacity)
    works = issue(clock, plan)
    drain(clock)
    return clock, works


@steady
@given(plans())
def test_random_work_is_conserved_ordered_and_ends(plan):
    clock, works = play(plan)
    asked = dict.fromkeys(CAPACITY, 0.0)
    for work, (lane, after, steps, _) in zip(works, plan, strict=True):
        assert work.finished
        assert 0 <= work.start_s <= work.end_s <= clock.now
        assert all(works[number].end_s <= work.start_s for number in after)
        before = [other for other, entry in zip(works[: work.number], plan, strict=False) if entry[0] == lane]
        assert all(other.end_s <= work.start_s for other in before)
        for step, _ in steps:
            for item in step.flows:
                for resource, share in item.uses.items():
                    asked[resource] += share * item.amount
    failed = any(work.failure for work in works)
    for resource, usage in clock.usage.items():
        assert usage.drawn / CAPACITY[resource] <= usage.busy_s * (1 + NEAR) + NEAR
        assert usage.busy_s <= clock.now * (1 + NEAR)
        assert usage.drawn <= asked[resource] * (1 + NEAR) + NEAR
        if not failed:
            assert usage.drawn == pytest.approx(asked[resource], rel=NEAR, abs=NEAR)


@steady
@given(plans(), st.lists(st.floats(0.001, 5.0), max_size=5))
def test_looking_often_changes_nothing_but_rounding(plan, looks):
    _, once = play(plan)
    clock = FluidClock(CAPACITY)
    works = issue(clock, plan)
    for look in looks:
        clock.advance(until=clock.now + look)
    drain(clock)
    for a, b in zip(once, works, strict=True):
        assert b.end_s == pytest.approx(a.end_s, rel=1e-6, abs=1e-6)


@steady
@given(plans())
def test_the_same_work_takes_the_same_time(plan):
    first, second = play(plan), play(plan)
    assert [(w.start_s, w.end_s) for w in first[1]] == [(w.start_s, w.end_s) for w in second[1]]
    assert first[0].usage == second[0].usage


@steady
@given(st.lists(phases, min_size=1, max_size=6), st.sampled_from(sorted(CAPACITY)), st.floats(1.0, 100.0))
def test_more_of_a_resource_is_never_slower_alone(steps, resource, factor):
    plan = [("compute", [], [(step, None) for step in steps], False)]
    slow = play(plan)[0].now
    fast = play(plan, {**CAPACITY, resource: CAPACITY[resource] * factor})[0].now
    assert fast <= slow * (1 + NEAR)


@steady
@given(
    st.lists(
        st.dictionaries(st.sampled_from(sorted(CAPACITY)), st.sampled_from([0.5, 1.0, 2.0]), min_size=1), max_size=6
    )
)
def test_shares_are_fair_and_waste_nothing(uses):
    rates = fair_rates(uses, CAPACITY)
    load = {name: sum(rate * use.get(name, 0.0) for rate, use in zip(rates, uses, strict=True)) for name in CAPACITY}
    assert all(load[name] <= CAPACITY[name] * (1 + NEAR) for name in CAPACITY)
    for rate, use in zip(rates, uses, strict=True):
        full = [name for name in use if load[name] >= CAPACITY[name] * (1 - NEAR)]
        assert full, "a flow could be faster"
        sharers = {name: [r for r, u in zip(rates, uses, strict=True) if name in u] for name in full}
        assert any(rate >= max(sharers[name]) * (1 - NEAR) for name in full), "a flow has less than its fair share"


@steady
@given(
    st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.0, 10.0), st.sampled_from([0.0, 0.5])), max_size=6), plans()
)
def test_knowing_times_alone_changes_nothing_but_rounding(parts, plan):
    """Phases that say how long they take alone end when they would without saying so, whatever else goes on.

    So do phases that were merged.
    """
    known, unknown = [], []
    for flops, size, delay_s in parts:
        both = (flow(flops, "flops"), flow(size, "hbm"))
        alone_s = max(flops / CAPACITY["flops"], size / CAPACITY["hbm"])
        known.append((Phase(delay_s, both, alone_s=alone_s), None))
        unknown.append((Phase(delay_s, both), None))
    whole = [(merged([phase for phase, _ in known]), None)] if known else []
    outcomes = [play([*plan, ("compute", [], part, False), *plan[:1]]) for part in (unknown, known, whole)]
    for other in outcomes[1:]:
        for a, b in zip(other[1], outcomes[0][1], strict=True):
            assert (a.start_s, a.end_s) == (pytest.approx(b.start_s, rel=1e-6), pytest.approx(b.end_s, rel=1e-6))
        for name in CAPACITY:
            a, b = other[0].usage[name], outcomes[0][0].usage[name]
            assert (a.drawn, a.busy_s) == (pytest.approx(b.drawn, abs=1e-6), pytest.approx(b.busy_s, abs=1e-6))


def test_only_plain_phases_that_know_their_time_are_merged():
    one = Phase(flows=(flow(1, "a"),), alone_s=0.1)
    for wrong in (Phase(flows=(flow(1, "a"),)), merged([one])):
        with pytest.raises(ValueError, match="merged"):
            merged([one, wrong])


def test_a_merged_phase_stops_where_one_looks():
    clock = FluidClock({"a": 10.0})
    parts = [Phase(1.0, (flow(10, "a"),), alone_s=1.0)] * 3
    work = clock.issue("x", [], [merged(parts)], cuts=(1,))
    while clock.now < 2.5:
        clock.advance(until=2.5)
    assert clock.usage["a"].drawn == pytest.approx(10.0)
    late = clock.issue("y", [], [Phase(flows=(flow(10, "a"),))])
    drain(clock)
    assert late.end_s == pytest.approx(4.0), "0.5 s alone, then each has half"
    assert work.end_s == pytest.approx(6.5)

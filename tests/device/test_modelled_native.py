"""The native clock gives what the Python one gives, to the bit: times, pieces, failures, and what was used."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.device.test_modelled_time import CAPACITY, LANES, amounts, drain, flow, plans, steady

from coterie.devices.modelled.clock import NATIVE, PLAIN
from coterie.devices.modelled.fluid import Phase, merged

if NATIVE is None:
    pytest.skip("the native clock was not built", allow_module_level=True)
KITS = (PLAIN, NATIVE)


def made(kit, phase):
    """A phase for a kit's clock."""
    if phase.parts is not None:
        return kit.parts([made(kit, part) for part in phase.parts.unique], phase.parts.places).merged()
    flows = tuple(kit.flow(item.amount, item.uses) for item in phase.flows)
    return kit.phase(phase.delay_s, flows, alone_s=phase.alone_s)


def issue(clock, kit, plan):
    works = []
    for lane, after, steps, fails in plan:
        phases = [made(kit, step) for step, _ in steps]
        gated = [p if at is None else p.gated(works[at]) for p, (_, at) in zip(phases, steps, strict=True)]
        failure = OSError(lane) if fails else None
        cuts = tuple(range(1, len(gated) + 1))
        works.append(clock.issue(lane, [works[number] for number in after], gated, failure, cuts))
    return works


def seen(clock, works):
    times = [(w.number, w.start_s, w.end_s, w.took_s, w.finished, w.pieces, repr(w.failure)) for w in works]
    used = {name: (given.drawn, given.busy_s) for name, given in clock.usage.items()}
    return clock.now, times, used, dict(clock.lane_busy_s)


def play(kit, plan, looks):
    """What is seen after each look, and at the end; each third look cuts the work of a lane short."""
    clock = kit.clock(CAPACITY)
    works, found = issue(clock, kit, plan), []
    for number, look in enumerate(looks):
        head = clock.head(LANES[number % len(LANES)])
        if head is not None and number % 3 == 2:
            head.cut_short()
        moved = clock.advance(clock.now + look) if number % 2 else clock.wait(works[-1:], clock.now + look)
        found.append((moved, seen(clock, works)))
    drain(clock)
    clock.idle_until(clock.now + 1.0)
    return [*found, clock.wait(works), seen(clock, works)]


whole = st.integers(0, 2**64 - 1)
places = st.integers(0, 2**40)


@given(st.lists(st.tuples(whole, places), max_size=4), st.sampled_from([1, 17, 32000, 2**31 - 1]), st.integers(1, 150))
def test_both_draw_the_same_tokens(drawing, vocab_size, steps):
    seeds, positions = [seed for seed, _ in drawing], [position for _, position in drawing]
    plain, native = (kit.draw(seeds, positions, vocab_size, steps) for kit in KITS)
    assert native.shape == plain.shape == (steps, len(drawing))
    assert native.dtype == plain.dtype
    assert native.tolist() == plain.tolist()


@steady
@given(st.lists(amounts, max_size=4), st.booleans())
def test_a_chain_is_works_that_wait_for_each_other(sizes, fails):
    """Native, in Python, and one by one; behind a work of another lane, which may fail."""
    found = []
    for kit in KITS:
        for at_once in (True, False):
            clock = kit.clock(CAPACITY)
            first = clock.issue("compute", [], [kit.phase(1.0)], OSError("lost") if fails else None)
            phases, works = [kit.phase(0.5, (kit.flow(size, {"hbm": 1.0}),)) for size in sizes], [first]
            if at_once:
                works += clock.issue_chain("a->b", [first], phases)
            else:
                for phase in phases:
                    works.append(clock.issue("a->b", works[-1:], [phase]))
            drain(clock)
            found.append(seen(clock, works))
    assert all(item == found[0] for item in found)


@st.composite
def merged_phases(draw):
    """Several kinds of parts in any order, often many, as layers are."""
    flops, hbm = amounts, amounts
    kinds = []
    for delay_s, a, b in draw(st.lists(st.tuples(st.sampled_from([0.0, 0.25]), flops, hbm), min_size=1, max_size=3)):
        alone_s = max(a / CAPACITY["flops"], b / CAPACITY["hbm"])
        kinds.append(Phase(delay_s, (flow(a, "flops"), flow(b, "hbm")), alone_s=alone_s))
    order = draw(st.lists(st.integers(0, len(kinds) - 1), min_size=1, max_size=5)) * draw(st.sampled_from([1, 2, 17]))
    return merged([kinds[number] for number in order])


@steady
@given(plans(), st.lists(merged_phases(), max_size=3), st.lists(st.floats(0.001, 20.0), max_size=8))
def test_any_work_takes_the_same_time_on_both_clocks(plan, steps, looks):
    gates = [None, 0 if len(plan) else None, None]
    plan = [*plan, ("compute", [], list(zip(steps, gates, strict=False)), False), *plan[:2]]
    plain, native = (play(kit, plan, looks) for kit in KITS)
    assert native == plain


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.name)
def test_pieces_of_a_step_and_another_head(kit):
    kinds = [kit.phase(delay, (kit.flow(amount, {"a": 1.0}),), alone_s=amount) for delay, amount in ((1, 2), (3, 4))]
    parts = kit.parts(kinds, (0, 1, 1, 0))
    assert (len(parts), parts[1].delay_s, parts[3].alone_s) == (4, 3.0, 2.0)
    assert parts.merged().alone_s == 3 + 7 + 7 + 3
    assert parts.merged(head=kinds[0].delayed(0.5)).alone_s == 3.5 + 7 + 7 + 3
    assert parts.merged(1, 3).alone_s == 14
    assert parts.merged(0, 2, kinds[1]).alone_s == 14
    with pytest.raises(ValueError, match="merged"):
        kit.parts([parts.merged()], (0,)).merged()
    with pytest.raises(ValueError, match="merged"):
        kit.parts([kit.phase(1.0)], (0,)).merged()


def test_a_place_that_is_no_phase_is_refused():
    with pytest.raises(ValueError, match="none of the phases"):
        NATIVE.parts([NATIVE.phase(1.0)], (1,))
    clock = NATIVE.clock({"a": 1.0})
    clock.issue("x", [], [NATIVE.phase(0.0, (NATIVE.flow(1.0, {"unheard of": 1.0}),))])
    with pytest.raises(IndexError, match="unheard of"):
        clock.advance()


def test_nothing_is_kept_of_finished_work_and_a_failure_can_be_collected():
    clock, kit = NATIVE.clock({"a": 10.0, "b": 10.0}), NATIVE
    kind = type(clock.issue("x", [], []))

    def works():
        gc.collect()
        return sum(type(item) is kind for item in gc.get_objects())

    before = works()
    for _ in range(500):
        first = clock.issue("x", [], [kit.phase(0.0, (kit.flow(1.0, {"a": 1.0}),))])
        last = clock.issue("y", [first], [kit.phase(gate=first)])
        drain(clock)
    assert works() - before == 2
    del first, last
    for _ in range(20):
        error = OSError("lost")
        work = clock.issue("x", [], [], error)
        work.failure.own = work  # as a traceback knows the frames that know the event
        del error, work
    assert works() == before

"""The engine on modelled machines, as the fair comparison uses it: its batches add up, and no grant makes it worse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coterie.core.shapes import Sizes
from coterie.plan.paper import fair
from coterie.plan.paper.arithmetic import DGX, SHORT
from coterie.plan.paper.fair import AHEAD, ARRIVAL, BATCH, GROUPED, LOADS, STEPS
from coterie.plan.paper.row import Kind, Method
from coterie.plan.paper.samba import MODEL, ORCHESTRATION, PROMPTS, expert, modelled_nodes, node_spec
from coterie.plan.paper.serve import Deployment, Load, serve

PAPERS = f"BS={BATCH}"


def deployment(name: str, policy: fair.Policy = ARRIVAL) -> Deployment:
    return Deployment(node_spec(name), ORCHESTRATION, policy)


def small(*batches: tuple[int, ...], used: tuple[int, ...] = tuple(range(8, 56))) -> Load:
    return Load(MODEL, 56, batches, PROMPTS[SHORT], SHORT, used)


@pytest.mark.parametrize("name", ["SN40L", "A100"])
def test_the_engine_takes_what_its_parts_take(name: str) -> None:
    """A router of 8 prompts, then 8 times a switch and an expert: the same as the sum, priced one by one, less what of
    each first step runs while later layers still arrive.
    """
    outcome = serve(deployment(name), LOADS[PAPERS]())
    assert outcome.switches == BATCH
    whole = modelled_nodes()[name].latency_ms(BATCH, SHORT, miss=True)
    hidden = 1e3 * BATCH * expert(name).step(Sizes.prefill(1, PROMPTS[SHORT])).seconds
    assert 0.99 * (whole - hidden) <= outcome.batch_s[0] * 1e3 <= 1.01 * whole


def test_resident_experts_are_not_copied_again() -> None:
    """A cold one costs its copy, less what of its first step runs while later layers still arrive."""
    asked = tuple(range(8))
    first, second = serve(deployment("SN40L"), small(asked, asked)).batch_s
    node = modelled_nodes()["SN40L"]
    saved = (first - second) * 1e3 / BATCH
    assert node.switch_ms - 1e3 * expert("SN40L").step(Sizes.prefill(1, 128)).seconds <= saved <= node.switch_ms
    warm = serve(deployment("SN40L"), small(asked, used=asked))
    assert warm.switches == 0
    assert warm.batch_s[0] == pytest.approx(second, rel=0.01)


def test_prefetch_hides_copies_and_grouping_shares_steps() -> None:
    cold = small(tuple(range(8)))
    waits, ahead = (serve(deployment("SN40L", policy), cold) for policy in (ARRIVAL, AHEAD))
    assert waits.switches == ahead.switches == 8
    assert ahead.batch_s[0] < waits.batch_s[0]
    mixed = small((0, 1, 0, 1, 0, 1, 0, 1))
    in_order, grouped = (serve(deployment("SN40L", policy), mixed) for policy in (AHEAD, GROUPED))
    assert grouped.switches <= in_order.switches
    assert grouped.batch_s[0] < in_order.batch_s[0]


def test_units_have_experts_of_their_own() -> None:
    """Two units with half the machine each: a batch for one unit's experts leaves the other idle."""
    half = replace(deployment("SN40L", AHEAD), units=2)
    even, mixed = serve(half, small((0, 2))), serve(half, small((0, 1)))
    assert even.switches == mixed.switches == 0  # 28 experts fit in a unit
    assert mixed.batch_s[0] < even.batch_s[0]


def test_the_arithmetic_grants_step_by_step() -> None:
    rows = [row for step in STEPS for row in fair._arithmetic_rows(step)]
    assert {row.kind for row in rows} == {Kind.FITTED}
    assert {row.method for row in rows} == {Method.CLOSED_FORM}
    for name in DGX:
        ratios = [row.ours for row in rows if row.row.endswith(name)]
        assert ratios == sorted(ratios, reverse=True)
        assert rows[DGX.index(name)].error == pytest.approx(0.0, abs=0.02)


def test_only_the_papers_own_case_stands_beside_a_published_value() -> None:
    for step in STEPS:
        for what in LOADS:
            row = fair._row(step, what, "A100", 6.6, 1.0, Kind.PREDICTED, Method.MACHINE)
            assert (row.published is not None) == (step is STEPS[0] and what == PAPERS)


def test_a_backlog_follows_its_mix() -> None:
    load = LOADS[f"backlog of {fair.BACKLOG}"]()
    (asked,) = load.batches
    assert len(asked) == fair.BACKLOG
    popular = set(load.used[-30:])
    assert sum(expert in popular for expert in asked) > fair.BACKLOG / 2
    assert load == LOADS[f"backlog of {fair.BACKLOG}"]()

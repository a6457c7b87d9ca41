"""What modelled devices remember instead of working it out again: each shortcut gives what the long way gives."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.graphs import decoder

from coterie.core.shapes import Sizes
from coterie.devices.modelled.fluid import Flow, Phase, merged
from coterie.devices.modelled.parts import Table
from coterie.devices.modelled.price import StepPricer
from coterie.devices.modelled.region import Pricing, RegionPricer, facts
from coterie.devices.modelled.shard import rank_program
from coterie.devices.modelled.share import Shares, fair_rates, left_over
from coterie.graph.closed import ClosedCost
from coterie.graph.compile import compile_graph
from coterie.graph.cost import reads_context, region_cost
from coterie.graph.eager.rewrite import expand
from coterie.graph.program import Program
from coterie.models.zoo import zoo_graph
from coterie.spec.load import load_machine
from coterie.spec.measured import Kernels, measured_rows

steady = settings(max_examples=40, deadline=None, derandomize=True)
PROGRAMS = {
    f"{name}, {rule_set}": (name, rule_set)
    for name in ("llama-2-7b", "bloom-176b", "falcon-40b", "mistral-7b")
    for rule_set in ("none", "cache", "section")
}
CAPACITY = {"a": 10.0, "b": 40.0, "c": 3.0}
uses = st.dictionaries(st.sampled_from(sorted(CAPACITY)), st.sampled_from([0.5, 1.0, 2.0]), min_size=1)


def sizes(tokens: int, batch: int, context: int) -> Sizes:
    return Sizes(tokens, batch, batch, batch * context, tokens * context)


def program(which: str) -> Program:
    name, rule_set = PROGRAMS[which]
    return compile_graph(zoo_graph(name), rule_set)


@pytest.mark.parametrize("which", PROGRAMS)
def test_what_reads_no_context_costs_the_same_in_any(which):
    made = program(which)
    free = [region for region in made.regions if not reads_context(made, region)]
    short, long = sizes(6, 3, 17), sizes(6, 3, 1234)
    assert [region_cost(made, r, short) for r in free] == [region_cost(made, r, long) for r in free]
    others = [region for region in made.regions if reads_context(made, region)]
    assert others, "attention reads it"
    assert all(region_cost(made, r, short) != region_cost(made, r, long) for r in others)


def test_kernels_of_pytorch_that_compute_every_score_read_the_context():
    made = compile_graph(expand(decoder()), "none")
    free = [region for region in made.regions if not reads_context(made, region)]
    assert len(free) < len(made.regions)
    for region in free:
        assert region_cost(made, region, sizes(4, 2, 9)) == region_cost(made, region, sizes(4, 2, 90))


@pytest.mark.parametrize("machine", ["sn40l-node", "dgx-h100", "dgx-a100"])
def test_remembered_regions_price_a_step_as_it_is_priced_anew(machine):
    spec = load_machine(machine)
    made = rank_program(spec, compile_graph(zoo_graph("llama-2-7b"), spec.rule_set))
    same, tiers, kept = facts(made).same, (spec.run_tier, spec.run_tier), StepPricer(spec, made, Pricing())
    for batch, tokens, context in ((1, 1, 130), (1, 1, 131), (2, 130, 140), (2, 130, 300), (1, 1, 130)):
        step = sizes(tokens, batch, context)
        found = list(kept.phases(step, tiers))
        assert found[1:] == [RegionPricer(spec, made, index, tiers, Pricing()).phase(step) for index in same][1:]
        assert found == list(StepPricer(spec, made, Pricing()).phases(step, tiers))
    assert kept._known, "some regions read no context"


@pytest.mark.parametrize("machine", ["sn40l-node", "dgx-h100", "dgx-a100"])
def test_closed_forms_price_random_steps_as_counting_does(machine, monkeypatch):
    spec, rng = load_machine(machine), random.Random(machine)
    made = rank_program(spec, compile_graph(zoo_graph("mistral-7b"), spec.rule_set))
    same, tiers = facts(made).same, (spec.run_tier, spec.run_tier)
    steps = []
    for _ in range(25):
        batch = rng.randint(1, 8)
        tokens = batch + rng.choice([0, 0, rng.randint(1, 500)])
        context = tokens + rng.randint(0, 6000 * batch)
        steps.append(Sizes(tokens, batch, rng.randint(1, batch), context, context * tokens // batch))
    kept = StepPricer(spec, made, Pricing())
    found = [list(kept.phases(step, tiers)) for step in steps]
    monkeypatch.setattr(ClosedCost, "of", lambda self, step: region_cost(self._program, self._region, step))
    for step, phases in zip(steps, found, strict=True):
        fresh = Pricing(kernels=Kernels(spec.kernels, measured_rows(spec.kernels)) if spec.kernels else None)
        for index in dict.fromkeys(same[1:]):
            assert phases[same.index(index, 1)] == RegionPricer(spec, made, index, tiers, fresh).phase(step)


@steady
@given(st.lists(uses, max_size=5), st.lists(st.sampled_from(sorted(CAPACITY)), min_size=1, max_size=3, unique=True))
def test_remembered_shares_are_the_shares(flows, names):
    shares = Shares(CAPACITY)
    for _ in range(2):
        shared = shares.of(flows)
        assert list(shared.rates) == fair_rates(flows, CAPACITY)
        free = left_over(CAPACITY, names, flows, shared.rates)
        assert shares.left(tuple(names), shared) == (None if free is None else tuple(free[name] for name in names))
        assert shared.drawn_per_s.keys() == {name for used in flows for name in used}
        for name, per_s in shared.drawn_per_s.items():
            each = (rate * used.get(name, 0.0) for used, rate in zip(flows, shared.rates, strict=True))
            assert per_s == pytest.approx(sum(each))
    assert shares.of(flows) is shares.of(flows)


@steady
@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.sampled_from([1, 1, 9]),
    st.floats(0.5, 10),
    st.floats(0.5, 40),
)
def test_a_table_of_kinds_sums_as_the_parts_do(kinds, order, times, free_a, free_b):
    unique = [
        Phase(delay, (Flow(a, {"a": 1.0}), Flow(b, {"b": 1.0})), alone_s=max(a / 10.0, b / 40.0))
        for delay, a, b in kinds
    ]
    places = tuple(number % len(unique) for number in order * times)
    parts, free = [unique[place] for place in places], {"a": free_a, "b": free_b, "c": 0.0}
    took = [
        part.delay_s + max(flow.amount / free[name] for name, flow in zip("ab", part.flows, strict=True))
        for part in parts
    ]
    table = Table.of(unique, places)
    left = tuple(free[name] for name in table.resources)
    assert table.ends_s(left) == table.ends_s(left) == pytest.approx(list(accumulate(took)))
    for number, sums in enumerate(table.sums):
        assert list(sums) == pytest.approx([0.0, *accumulate(part.flows[number].amount for part in parts)])
    whole = merged(parts)
    assert whole.alone_s == pytest.approx(sum(part.delay_s + part.alone_s for part in parts))
    assert dict(whole.drawn) == pytest.approx({name: table.sums[i][-1] for i, name in enumerate(table.resources)})
    assert whole.parts is not None
    assert list(whole.parts) == parts

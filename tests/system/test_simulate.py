"""Simulations on small made-up machines: what must hold of any run."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from coterie.composition.composition import load_composition
from coterie.composition.routers.llm import ROUTER
from coterie.core.errors import CapacityError, UsageError
from coterie.core.shapes import Sizes
from coterie.devices.modelled.clock import NATIVE, PLAIN
from coterie.devices.modelled.device import ModelledDevice
from coterie.devices.modelled.price import step_time
from coterie.engine.engine import Engine
from coterie.engine.experts import open_experts
from coterie.engine.policy import Policy
from coterie.graph.compile import compile_graph
from coterie.plan.mix import mix_named
from coterie.plan.outcome import outcome
from coterie.plan.prices import Demand, Pricer
from coterie.plan.setups import EQUAL, FCFS, OURS
from coterie.plan.simulate import Case, instruction_tokens, simulate
from coterie.plan.slo import parse_slo
from coterie.plan.workload import Load, lengths_named, make_workload
from coterie.spec.load import load_machine


def case(many, room=4, setup=OURS, machine="toy-tiers", **changes):
    """Room for so many experts in the run tier."""
    composition = load_composition(str(many))
    models = open_experts(composition, synthetic=True)
    near = room * models["e-0"].layout.size_bytes
    return replace(Case(composition, models, load_machine(machine), setup, near), **changes)


def workload(many, requests=60, mix="zipf", prompt="9", new="5", **loop):
    fixed = {"rate": 40.0} if "in_flight" not in loop else {}
    load = Load(requests, mix_named(mix), lengths_named(prompt, "x"), lengths_named(new, "x"), **{**fixed, **loop})
    return make_workload(load, load_composition(str(many)).names)


def test_one_request_takes_the_routers_steps_and_then_the_experts(many):
    made = case(many, setup=replace(OURS, policy=Policy(max_steps=1)))
    served = simulate(made, workload(many, 1))
    program = compile_graph(made.models[ROUTER].graph, made.spec.rule_set)
    prefill = step_time(made.spec, program, Sizes.prefill(1, 9)).seconds
    decode = [step_time(made.spec, program, Sizes.decode(1, 10 + step), starts_run=True).seconds for step in range(4)]
    assert served.routed_s[0] == pytest.approx(prefill + sum(decode[:2]), rel=1e-6)
    assert served.first_s[0] - served.routed_s[0] == pytest.approx(prefill, rel=1e-6)
    assert served.last_s[0] - served.first_s[0] == pytest.approx(sum(decode), rel=1e-6)
    assert served.hit.all()
    assert served.metrics.switches == 0


@pytest.mark.parametrize("setup", [OURS, FCFS])
@pytest.mark.parametrize("loop", [{"rate": 300.0}, {"rate": 5.0, "arrivals": "bursty"}, {"in_flight": 7}])
def test_what_holds_of_every_run(many, setup, loop):
    load = workload(many, **loop, new="uniform:1:6")
    served = simulate(case(many, setup=setup), load)
    assert (served.routed_s > 0).all()
    assert (served.first_s > served.routed_s).all()
    assert (served.last_s >= served.first_s).all()
    assert ((served.last_s > served.first_s) == (load.new_tokens > 1)).all()
    metrics = served.metrics
    assert metrics.admitted == sum(metrics.finished.values()) == 2 * len(load)
    assert metrics.drawn_tokens == load.new_tokens.sum() + 3 * len(load)
    assert metrics.failed_fetches == 0
    assert metrics.hits + metrics.misses == 2 * len(load)
    assert served.hit.sum() + metrics.misses == len(load)
    assert 0 < max(served.use.occupied.values()) <= 1 + 1e-9
    assert all(0 <= share <= 1 + 1e-9 for share in served.use.utilisation.values())
    if "rate" in loop:
        assert served.elapsed_s == pytest.approx((load.at_s + served.last_s).max(), rel=1e-9)


def test_the_router_stays_and_is_never_evicted(many):
    served = simulate(case(many, room=1, record=1 << 16), workload(many))
    moved = [piece.name for piece in served.trace.slices if piece.lane == "ddr->hbm"]
    # The warm-up brings it in once; every later move is an expert's.
    assert sum(name.startswith(ROUTER) for name in moved) == 0
    assert served.metrics.switches >= 12
    assert served.plan.router_bytes > 0


def test_the_same_workload_gives_the_same_times(many):
    first, second = (simulate(case(many), workload(many)) for _ in range(2))
    assert np.array_equal(first.last_s, second.last_s)


def test_nothing_that_a_simulation_makes_is_in_a_cycle(many):
    """So nobody looks for cycles meanwhile: what a longer one leaves to be found is what a shorter one does."""
    found = []
    for requests in (20, 20, 80):
        gc.collect()
        gc.freeze()  # what other tests imported need not be looked through again
        gc.disable()
        try:
            simulate(case(many), workload(many, requests))
            assert not gc.isenabled(), "as it was before"
            found.append(gc.collect())
        finally:
            gc.enable()
            gc.unfreeze()
    assert found[1] == found[2]
    looked = []
    simulate(case(many), workload(many, 5), lambda *_: looked.append(gc.isenabled()))
    assert looked
    assert not any(looked)
    assert gc.isenabled()


def test_somebody_is_told_how_far_it_is(many):
    told = []
    served = simulate(case(many), workload(many, 30), told.append)
    assert told == sorted(set(told))
    assert 20 < len(told) <= 30
    assert served.metrics.finished["length"] == 60


def test_grouping_saves_switches_under_load(many):
    load = workload(many, 100, in_flight=40)
    ours, paper = (simulate(case(many, setup=setup), load) for setup in (OURS, FCFS))
    assert ours.metrics.switches < paper.metrics.switches / 2
    assert ours.elapsed_s < paper.elapsed_s


def test_more_room_saves_switches(many):
    switches = [
        simulate(case(many, room=room), workload(many, 40, in_flight=12)).metrics.switches for room in (1, 4, 12)
    ]
    assert switches == sorted(switches, reverse=True)
    assert switches[-1] == 0 < switches[0]


def test_several_steps_at_once_end_when_somebody_arrives(many):
    load = workload(many, 40, new="30", rate=30.0, mix="uniform")
    # Where software costs nothing to begin a run, how many steps a run has makes no difference.
    spec, served = replace(load_machine("toy-tiers"), launch_host_s=0.0), {}
    for steps in (1, 8):
        setup = replace(OURS, policy=Policy(max_steps=steps))
        served[steps] = simulate(case(many, setup=setup, spec=spec), load)
    assert served[8].last_s == pytest.approx(served[1].last_s, rel=1e-6)
    assert served[8].first_s == pytest.approx(served[1].first_s, rel=1e-6)


RANKED = {"in_flight": 12, "low_priority_share": 0.7}  # and with short turns somebody behind is raised now and then
SHORT = replace(OURS, policy=Policy(turn_steps=9))


@pytest.mark.parametrize("setup", [OURS, FCFS, SHORT])
@pytest.mark.parametrize("loop", [{"rate": 400.0}, {"in_flight": 9}, RANKED])
def test_leaps_decide_what_single_steps_decide(many, setup, loop):
    load = workload(many, 50, new="uniform:2:25", **loop)
    spec = replace(load_machine("toy-tiers"), launch_host_s=0.0)
    single, leaping = (simulate(case(many, 2, setup, spec=spec, steps=steps), load) for steps in (0, 16))
    assert list(leaping.decisions) == list(single.decisions)
    assert leaping.last_s == pytest.approx(single.last_s, rel=1e-6)
    assert leaping.first_s == pytest.approx(single.first_s, rel=1e-6)
    assert leaping.metrics.switches > 5


@pytest.mark.parametrize("setup", [OURS, FCFS, SHORT])
@pytest.mark.parametrize("steps", [0, 16])
@pytest.mark.parametrize("loop", [{"rate": 400.0}, {"rate": 60.0, "arrivals": "bursty"}, {"in_flight": 9}, RANKED])
def test_a_decision_that_holds_for_several_steps_is_what_each_step_would_decide(many, setup, steps, loop, monkeypatch):
    load, made = workload(many, 50, new="uniform:2:25", **loop), case(many, 2, setup, steps=steps)
    remembered = simulate(made, load)
    asked, decide = [], Engine._decide

    def forget(engine):
        engine._repeats = 0
        asked.append(engine)
        return decide(engine)

    monkeypatch.setattr(Engine, "_decide", forget)
    anew = simulate(made, load)
    assert len(asked) > 100
    assert list(remembered.decisions) == list(anew.decisions)
    assert np.array_equal(remembered.last_s, anew.last_s)


def test_first_tokens_come_sooner_before_those_behind_who_lose_few_tokens(many):
    load = workload(many, 200, new="20", in_flight=24, low_priority_share=0.8)
    rows = [outcome("m", how.name, load, simulate(case(many, setup=how), load), None, 1.0) for how in (OURS, EQUAL)]
    ranked, equal = (row["priorities"] for row in rows)
    assert [its["requests"] for its in ranked.values()] == [len(its) for its in load.by_priority.values()]
    assert ranked[0]["ttft_p50_s"] < 0.5 * equal[0]["ttft_p50_s"]
    assert ranked[0]["ttft_p99_s"] < equal[0]["ttft_p99_s"]
    assert rows[0]["tokens_per_s"] > 0.7 * rows[1]["tokens_per_s"]


def test_a_promise_is_made_to_those_of_the_best_priority(many):
    load = workload(many, 60, new="5", in_flight=12, low_priority_share=0.5)
    served = simulate(case(many), load)
    limit = float(served.first_s[load.by_priority[0]].max())
    row = outcome("m", "coterie", load, served, parse_slo(f"ttft={limit * 1.0001}s"), 1.0)
    assert row["slo_kept"] == 1.0
    assert (served.first_s > limit).any()


@pytest.mark.skipif(NATIVE is None, reason="the native clock was not built")
@pytest.mark.parametrize("loop", [{"rate": 60.0}, {"in_flight": 9}])
def test_the_native_clock_changes_nothing(many, loop, monkeypatch):
    load = workload(many, 40, new="uniform:1:20", **loop)
    served = {}
    for kit in (NATIVE, PLAIN):
        monkeypatch.setattr("coterie.plan.simulate.ModelledDevice", partial(ModelledDevice, kit=kit))
        served[kit.name] = simulate(case(many, 2, steps=8), load)
    ours, theirs = served["native"], served["python"]
    assert list(ours.decisions) == list(theirs.decisions)
    assert all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("first_s", "last_s", "routed_s"))
    assert ours.use == theirs.use
    assert ours.metrics.switches > 5


@pytest.mark.long
def test_five_thousand_requests_take_less_than_a_minute():
    """In this process's own time, on 150 experts in a closed loop. The aim is twenty times as many."""
    composition = load_composition("samba-coe-150")
    models = open_experts(composition, synthetic=True)
    lengths = lengths_named("128", "x"), lengths_named("20", "x")
    load = make_workload(Load(5_000, mix_named("zipf"), *lengths, in_flight=2000), composition.names)
    begun = time.process_time()
    served = simulate(Case(composition, models, load_machine("sn40l-node"), OURS, steps=32), load)
    assert (served.last_s > 0).all()
    assert time.process_time() - begun < 60


def test_a_model_that_cannot_fit_says_by_how_much(many):
    with pytest.raises(CapacityError, match=r"the expert e-0 needs .* but 8.00 KiB can be had"):
        simulate(case(many, near_bytes=8192), workload(many))
    big = load_machine("toy-tiers")
    disk = replace(big.tiers[-1], capacity_bytes=100_000)
    with pytest.raises(CapacityError, match=r"toy-tiers: disk\] all experts needs"):
        simulate(case(many, spec=replace(big, tiers=(*big.tiers[:-1], disk))), workload(many))


def test_a_context_that_is_too_short(many):
    with pytest.raises(UsageError, match="the context holds 256; use --clip"):
        workload(many, prompt="300").within(256, clip=False)


def test_what_the_routers_model_reads_besides_the_prompt_counts(many, tmp_path):
    (tmp_path / "config.json").write_text((many.parent / "config.json").read_text())
    asking = tmp_path / "c.toml"

    def ask(question):
        asking.write_text(many.read_text().replace('"{prompt}"', f'"{question}"'))
        return case(asking)

    made = ask("{prompt}" + "x" * 160)
    served = simulate(replace(made, setup=replace(OURS, policy=Policy(max_steps=1))), workload(many, 1))
    program = compile_graph(made.models[ROUTER].graph, made.spec.rule_set)
    prefill = step_time(made.spec, program, Sizes.prefill(1, 9 + 40)).seconds
    decode = [step_time(made.spec, program, Sizes.decode(1, 50 + step), starts_run=True).seconds for step in range(2)]
    assert served.routed_s[0] == pytest.approx(prefill + sum(decode), rel=1e-6)
    demand = Demand(9, 5, 3, OURS.policy, instruction_tokens(made.composition))
    priced = Pricer(made.composition, made.models, demand).machine(made.spec)
    assert priced.router.prefill_s[0] == pytest.approx(prefill, rel=1e-6)
    assert priced.steps.prefill_s[0] < prefill
    with pytest.raises(UsageError, match=r"holds 256 tokens, but a prompt of 9 comes with 250 of a question"):
        simulate(ask("{prompt}" + "x" * 1000), workload(many, 1))

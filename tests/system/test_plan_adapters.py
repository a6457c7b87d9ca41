"""Plans of compositions with adapters: their bases on every machine, and what moves is the adapters alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from tests.system.commands import refused, run
from tests.system.tiny import write_adapter, write_expert

from coterie.composition.composition import Composition, load_composition
from coterie.core.errors import CapacityError
from coterie.engine.experts import open_experts
from coterie.memory.slab import round_up
from coterie.models.model import Model
from coterie.plan.candidates import Goal
from coterie.plan.capacity import state
from coterie.plan.mix import mix_named
from coterie.plan.outcome import tpots
from coterie.plan.prices import Demand, Pricer
from coterie.plan.setups import APART, OURS, Setup
from coterie.plan.simulate import Case, simulate
from coterie.plan.size import Answer, size
from coterie.plan.slo import Slo
from coterie.plan.together import groups_of
from coterie.plan.workload import Load, lengths_named, make_workload
from coterie.spec.load import load_machine
from coterie.spec.machine import MachineSpec

Opened: TypeAlias = tuple[Composition, Mapping[str, Model]]
DEMAND = Demand(9, 5, 0, OURS.policy)
COUNT = 6
LENGTHS = lengths_named("9", "x"), lengths_named("5", "x")


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six adapters, and their base as an expert too; all linear layers are adapted, so that an adapter is large."""
    root = tmp_path_factory.mktemp("office")
    write_expert(root / "models" / "base", 1)
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    tables = ['[[expert]]\nname = "base"\ncheckpoint = "models/base"\n']
    for number in range(COUNT):
        write_adapter(root / f"a-{number}", modules, seed=number)
        tables.append(f'[[expert]]\nname = "a-{number}"\ncheckpoint = "a-{number}"\nbase = "models/base"\n')
    (root / "office.toml").write_text('name = "office"\n' + "".join(tables))
    return root / "office.toml"


@pytest.fixture(scope="module")
def opened(office: Path) -> Opened:
    composition = load_composition(str(office))
    return composition, open_experts(composition, synthetic=False)


def machine_with(**tiers: int) -> MachineSpec:
    spec = load_machine("toy-tiers")
    changed = [replace(tier, capacity_bytes=tiers.get(tier.name, tier.capacity_bytes)) for tier in spec.tiers]
    return replace(spec, tiers=tuple(changed))


def answer(opened: Opened, rate: float, spec: MachineSpec | None = None, **slo: float) -> Answer:
    shares = np.full(COUNT + 1, 1 / (COUNT + 1))
    return size(spec or machine_with(), *opened, Goal(shares, rate, Slo(**{"ttft_s": 0.1, **slo}), DEMAND))


def test_what_moves_is_the_adapters_and_every_machine_has_the_base(opened: Opened) -> None:
    composition, models = opened
    base, own = models["base"].layout.size_bytes, round_up(models["a-0"].layout.size_bytes)
    machine = Pricer(composition, models, DEMAND).machine(machine_with())
    assert machine.sizes == [0, *[own] * COUNT]
    assert machine.bases_bytes == round_up(base)
    whole = {name: model for name, model in models.items() if name == "base"}
    alone = Pricer(replace(composition, experts=composition.experts[:1]), whole, DEMAND).machine(machine_with())
    assert machine.near_bytes == alone.near_bytes - round_up(base)
    assert machine.home_bytes == alone.home_bytes  # the files are on the disk below
    assert alone.sizes == [round_up(base)]
    # The base's bytes move once, before anything is asked: no request for it waits, however little room there is.
    found = state(replace(machine, near_bytes=0), DEMAND, np.array([5.0, *[0.0] * COUNT]), 0.95)
    assert (found.hit_rate, found.link) == (1.0, 0.0)
    others = state(replace(machine, near_bytes=0), DEMAND, np.array([0.0, *[0.5] * COUNT]), 0.95)
    assert others.hit_rate < 1e-9 < others.link


def test_adapters_fill_memory_by_their_own_bytes(opened: Opened) -> None:
    own = round_up(opened[1]["a-0"].layout.size_bytes)
    found = answer(opened, 5, machine_with(ddr=own * 2))
    assert found.placement.machines == 3
    assert found.bound.startswith("memory: 2 would lack")
    held = found.placement.held
    assert sorted(expert for experts in held for expert in experts if expert > 0) == [*range(1, COUNT + 1)]
    assert max(len([expert for expert in experts if expert > 0]) for experts in held) == 2


def test_a_base_that_leaves_no_room_is_said(opened: Opened) -> None:
    base = opened[1]["base"].layout.size_bytes
    with pytest.raises(CapacityError, match=r"toy-tiers\] the largest expert beside 68\.00 KiB of bases needs .* can"):
        answer(opened, 5, machine_with(hbm=base + 4096))


@pytest.mark.parametrize("setup", [OURS, APART], ids=["shared", "apart"])
@pytest.mark.parametrize(("near", "rate"), [(None, 300.0), (2, 150.0)])
def test_the_formulas_are_near_the_simulation(opened: Opened, near: int | None, rate: float, setup: Setup) -> None:
    """With all adapters in the run tier, and with room for two of six; in steps that they share, and apart."""
    composition, models = opened
    spec, demand = machine_with(), replace(DEMAND, policy=setup.policy)
    machine = Pricer(composition, models, demand).machine(spec)
    near_bytes = machine.near_bytes if near is None else near * machine.sizes[1]
    load = make_workload(Load(300, mix_named("uniform"), *LENGTHS, rate=rate), composition.names)
    served = simulate(Case(composition, models, spec, setup, near_bytes=near_bytes + machine.bases_bytes), load)
    rates = np.full(COUNT + 1, rate / (COUNT + 1))
    estimate = state(replace(machine, near_bytes=near_bytes), demand, rates, 0.95)
    assert estimate.ttft_s == pytest.approx(float(np.quantile(served.first_s, 0.95)), rel=0.5)
    assert estimate.tpot_s == pytest.approx(float(np.quantile(tpots(load, served), 0.95)), rel=0.4)
    assert estimate.hit_rate == pytest.approx(float(served.hit.mean()), abs=0.1)


def test_shared_steps_cost_less_and_the_more_so_the_fewer_adapters_are_in_them(opened: Opened) -> None:
    composition, models = opened
    machines = {
        setup.name: Pricer(composition, models, replace(DEMAND, policy=setup.policy)).machine(machine_with())
        for setup in (OURS, APART)
    }
    ours, apart = machines[OURS.name], machines[APART.name]
    assert apart.variant_group is None
    assert ours.variant_group is not None
    assert ours.variant_group.tolist() == [-1, *[0] * COUNT]  # the base has steps of its own
    assert ours.of(np.array([0, 3, 3])).variant_group.tolist() == [-1, 0, 0]
    rates = np.array([1.0, *[50.0] * COUNT])
    groups = groups_of(ours, rates)
    assert (groups.rates.tolist(), groups.of.tolist()) == ([1.0, 50.0 * COUNT], [0, *[1] * COUNT])
    busy = {name: state(machine, DEMAND, rates, 0.95).steps for name, machine in machines.items()}
    assert busy[OURS.name] < busy[APART.name]
    skewed = np.array([1.0, 295.0, *[1.0] * (COUNT - 1)])
    assert state(ours, DEMAND, skewed, 0.95).steps < busy[OURS.name]
    added = [groups_of(ours, r).for_batches(np.full(2, 8.0)).steps.more_s[1] for r in (rates, skewed)]
    assert groups.steps.more_s[1] < added[1] < added[0]
    one = groups.for_batches(np.full(2, 1.0)).steps.more_s[1] - groups.steps.more_s[1]
    assert one == pytest.approx(groups.own_s[1] * (1 - 1 / COUNT), rel=2e-3)  # another one's, five times of six


def test_the_command_plans_and_checks_them(office: Path) -> None:
    few = ("--prompt", "9", "--tokens", "5", "--requests", "200")
    plan = ("plan", office, "--machine", "toy-tiers", "--slo", "ttft=12ms", "--rate", "1500", *few)
    row: dict[str, Any]
    (row,) = json.loads(run(*plan, "--check", "--json").stdout)["rows"]
    found, kept = row["machines"], row["check"]["kept"]
    assert found == row["check"]["machines"] > 1
    assert kept[str(found)] >= 0.95 > kept[str(found - 1)]
    assert abs(found - row["estimate"]) <= 1
    assert row["bases_bytes"] == 68 * 1024
    assert sorted({name for names in row["placement"] for name in names}) == sorted(
        ["base", *(f"a-{n}" for n in range(COUNT))]
    )
    assert "of experts in the run tier beside 68.00 KiB of bases" in run(*plan).stdout
    assert all(count > 0 for count in [p["machines"] for p in row["curve"]])
    refused(run("plan", office, "--machine", "toy-tiers", "--slo", "ttft=1us", "--rate", "1", *few), "promise ttft=")
    assert math.isfinite(row["switch_s"])

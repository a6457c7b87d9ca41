"""What experts get of the run tier when nobody says: half of the system's memory, or all that a GPU has left."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.system.tiny import CONFIG

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.composition.routers.llm import ROUTER
from coterie.core.errors import CapacityError
from coterie.engine.assembly import Plan, Settings, plan
from coterie.memory.slab import round_up
from coterie.models.model import Model, synthetic_model
from coterie.spec.load import load_machine
from coterie.spec.machine import MachineSpec

MODEL = synthetic_model({**CONFIG, "hidden_size": 64}, "tiny")
SIZE = round_up(MODEL.layout.size_bytes)


def with_capacity(machine: str, capacity_bytes: int) -> MachineSpec:
    spec = load_machine(machine)
    tiers = tuple(replace(t, capacity_bytes=capacity_bytes) if t.name == spec.run_tier else t for t in spec.tiers)
    return replace(spec, tiers=tiers)


def many(count: int, router: bool = False) -> dict[str, Model]:
    models = {f"expert-{number}": MODEL for number in range(count)}
    return models | {ROUTER: MODEL} if router else models


def taken(made: Plan) -> int:
    return made.kv_bytes + made.router_bytes + made.work_bytes


def test_a_run_tier_with_host_memory_below_it_is_filled() -> None:
    capacity = 40 * SIZE + 3
    made = plan(many(1000), with_capacity("toy-tiers", capacity), Settings())
    assert capacity - taken(made) - BLOCK_BYTES < made.near_bytes <= capacity - taken(made)
    assert made.kv_bytes <= 0.2 * capacity


def test_the_systems_own_memory_is_halved() -> None:
    capacity = 40 * SIZE + 3
    made = plan(many(1000), with_capacity("toy", capacity), Settings())
    assert made.near_bytes == capacity // 2 // BLOCK_BYTES * BLOCK_BYTES


@settings(max_examples=40, deadline=None)
@given(
    capacity=st.integers(SIZE // 2, 60 * SIZE),
    count=st.integers(1, 80),
    router=st.booleans(),
    machine=st.sampled_from(["toy", "toy-tiers"]),
)
def test_what_is_planned_fits_and_is_no_more_than_all_experts(
    capacity: int, count: int, router: bool, machine: str
) -> None:
    spec = with_capacity(machine, capacity)
    try:
        made = plan(many(count, router), spec, Settings())
    except CapacityError:
        if machine == "toy-tiers":  # room for one expert would not have been enough either
            with pytest.raises(CapacityError):
                plan(many(count, router), spec, Settings(near_bytes=SIZE))
        return
    assert made.near_bytes + taken(made) <= capacity
    assert SIZE <= made.near_bytes <= count * SIZE


def test_what_was_asked_for_is_what_there_is() -> None:
    made = plan(many(9), with_capacity("toy-tiers", 100 * SIZE), Settings(near_bytes=3 * SIZE))
    assert made.near_bytes == 3 * SIZE
    with pytest.raises(CapacityError, match="together"):
        plan(many(999), with_capacity("toy-tiers", 40 * SIZE), Settings(near_bytes=40 * SIZE))

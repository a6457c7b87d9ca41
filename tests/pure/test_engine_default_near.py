"""What experts get of the run tier when nobody says: half of the system's memory, or all that a GPU has left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.system.tiny import CONFIG

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.composition.routers.llm import ROUTER
from coterie.core.errors import CapacityError, LargestExpertError
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


@pytest.mark.parametrize(("machine", "named"), [("toy", True), ("toy-tiers", True), ("toy-tiers", False)])
def test_a_base_is_counted_once_beside_its_adapters(machine: str, named: bool) -> None:
    """By default, up to the last block of the tier, and in what is asked for: near memory is for it and for them."""
    base, part = replace(MODEL, path=Path("/base")), SIZE // 8 // BLOCK_BYTES * BLOCK_BYTES
    small = replace(base, path=Path("/adapter"), layout=replace(base.layout, size_bytes=part), base=base)
    models = {f"adapter-{number}": small for number in range(8)} | ({"base": base} if named else {})
    made = plan(models, with_capacity(machine, 100 * SIZE), Settings())
    assert (made.near_bytes, made.bases_bytes) == (8 * part, SIZE)
    assert set(made.base_of.values()) == {next(iter(made.base_bytes))}
    least = SIZE + part
    given = Settings(near_bytes=least, kv_bytes=made.block_bytes)
    enough = least + made.block_bytes + made.work_bytes
    one = plan(models, with_capacity(machine, enough), given)
    assert (one.near_bytes, one.bases_bytes) == (part, SIZE)
    with pytest.raises(CapacityError, match="experts, bases, KV cache and the values of a step together"):
        plan(models, with_capacity(machine, enough - 1), given)
    with pytest.raises(CapacityError, match=rf"set --near to at least {least} B"):
        plan(models, with_capacity(machine, enough), replace(given, near_bytes=least - 1))


def test_who_has_no_room_beside_kv_state_is_named() -> None:
    """The largest gets what there is, beyond the usual share; where that is too little, --near is no lever."""
    large = replace(MODEL, layout=replace(MODEL.layout, size_bytes=9 * SIZE))
    models = many(3) | {"large": large}
    needed = plan(models, with_capacity("toy", 100 * SIZE), Settings(kv_bytes=SIZE))
    least = 9 * SIZE + taken(needed)
    assert plan(models, with_capacity("toy", least), Settings(kv_bytes=SIZE)).near_bytes == 9 * SIZE
    with pytest.raises(LargestExpertError, match=r"expert large needs .* lower --kv or leave large out") as refusal:
        plan(models, with_capacity("toy", least - BLOCK_BYTES), Settings(kv_bytes=SIZE))
    assert refusal.value.expert == "large"


def test_what_was_asked_for_is_what_there_is() -> None:
    made = plan(many(9), with_capacity("toy-tiers", 100 * SIZE), Settings(near_bytes=3 * SIZE))
    assert made.near_bytes == 3 * SIZE
    with pytest.raises(CapacityError, match="together"):
        plan(many(999), with_capacity("toy-tiers", 40 * SIZE), Settings(near_bytes=40 * SIZE))

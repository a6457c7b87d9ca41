"""Serves batches of prompts with the real engine on a modelled machine: each batch is routed, then answered.

    routers   the router's model reads every prompt of the batch
    experts   once all routes of the batch are known, each prompt is answered by its expert

A machine may be divided into units that run their own experts and router; a batch waits for the slowest unit.
Routes are given and tokens synthetic. Knows nothing about which machines or policies are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from coterie.composition.routers.llm import ROUTER
from coterie.devices.modelled.device import ModelledDevice, Orchestration
from coterie.engine.assembly import Parts, Plan, Settings, page_bytes, plan, warm_up, wire
from coterie.engine.policy import Policy
from coterie.engine.request import Request
from coterie.memory.slab import round_up
from coterie.models.model import Model
from coterie.models.zoo import zoo_model
from coterie.spec.machine import MachineSpec

KV_SEQUENCES = 64  # the KV cache holds as many prompts as any policy here runs at once


@dataclass(frozen=True, slots=True)
class Deployment:
    """How experts are served: machine, orchestration, policy, and number of separate units."""

    spec: MachineSpec
    orchestration: Orchestration
    policy: Policy
    units: int = 1


@dataclass(frozen=True, slots=True)
class Load:
    """The load: batches of expert numbers, one per prompt; input and output tokens, for router and experts alike.

    `used`: experts by time of last use; initially, as many of the most recent as fit are in the run tier.
    """

    model: str
    experts: int
    batches: tuple[tuple[int, ...], ...]
    prompt: int
    tokens: int
    used: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Time of each batch until its last answer, and the total number of expert switches."""

    batch_s: tuple[float, ...]
    switches: int


def serve(how: Deployment, load: Load) -> Outcome:
    """Serve all batches in sequence. Raises CapacityError if the experts do not fit."""
    units = [_Unit(how, load, unit) for unit in range(how.units)]
    batch_s = []
    for number, batch in enumerate(load.batches):
        start_s = max(unit.now for unit in units)
        prompts = list(enumerate(batch))
        for phase in ("route", "answer"):
            moment_s = max(unit.now for unit in units)
            for unit in units:
                mine = [
                    (place, expert)
                    for place, expert in prompts
                    if (place if phase == "route" else expert) % how.units == unit.number
                ]
                unit.run(moment_s, [unit.request(number, phase, place, expert) for place, expert in mine])
        batch_s.append(max(unit.now for unit in units) - start_s)
    return Outcome(tuple(batch_s), sum(unit.switches for unit in units))


class _Unit:
    """One engine with its share of the experts (expert mod units): all in the tier below, some in the run tier."""

    def __init__(self, how: Deployment, load: Load, number: int) -> None:
        self.number, self._load = number, load
        shape = zoo_model(load.model)
        mine = range(number, load.experts, how.units)
        models = {name: replace(shape, name=name) for name in (ROUTER, *map(_name, mine))}
        device = ModelledDevice(how.spec, orchestration=how.orchestration, mapped=True)
        made, settings = _planned(how, load, models)
        self._parts: Parts = wire(models, made, settings, device)
        self._device = self._parts.device
        self._warm_up(models, load)
        self._before = self._parts.cache.stats.misses

    @property
    def now(self) -> float:
        """Seconds on this unit's clock."""
        return self._device.now()

    @property
    def switches(self) -> int:
        """Switches since the warm-up."""
        return self._parts.cache.stats.misses - self._before

    def request(self, batch: int, phase: str, place: int, expert: int) -> Request:
        """The router's request (phase `route`) or the expert's."""
        who = ROUTER if phase == "route" else _name(expert)
        prompt = tuple(1 + (place + i) % 1000 for i in range(self._load.prompt))
        return Request(f"{phase} {batch}.{place}", who, prompt, self._load.tokens, ignore_end=True, reuse=False)

    def run(self, moment_s: float, requests: Iterable[Request]) -> None:
        """Advance the clock to `moment_s`, then serve these requests to the end."""
        while self._device.now() < moment_s:
            self._device.wait_any([], moment_s)
        engine = self._parts.engine
        for request in requests:
            engine.submit(request)
        while not engine.idle:
            for output in engine.step():
                if output.error is not None:
                    raise output.error

    def _warm_up(self, models: Mapping[str, Model], load: Load) -> None:
        """Load the router and the experts that will be requested, then those used most recently."""
        room = self._parts.plan.near_bytes // models[ROUTER].layout.size_bytes
        last = [expert for expert in load.used if _name(expert) in models][-room:]
        asked = sorted({expert for batch in load.batches for expert in batch if _name(expert) in models} - set(last))
        warm_up(self._parts, models, [ROUTER, *map(_name, (*asked, *last))])


def _name(expert: int) -> str:
    return f"expert-{expert}"


def _planned(how: Deployment, load: Load, models: Mapping[str, Model]) -> tuple[Plan, Settings]:
    """Split the run tier: router, KV cache for KV_SEQUENCES prompts, workspace, and experts in the rest."""
    shape = models[ROUTER]
    page, size = page_bytes(shape.kv), round_up(shape.layout.size_bytes)
    kv = KV_SEQUENCES * page * shape.kv.blocks_for(load.prompt + load.tokens, page)
    least = Settings(near_bytes=size, kv_bytes=kv, policy=how.policy)
    made = plan(models, how.spec, least)
    free = how.spec.tier(how.spec.run_tier).capacity_bytes - made.router_bytes - made.kv_bytes - made.work_bytes
    settings = replace(least, near_bytes=min(free, (len(models) - 1) * size))
    return plan(models, how.spec, settings), settings

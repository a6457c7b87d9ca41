"""Prices a step on a modelled machine: `step_time` for reports, `StepPricer` as phases for the device's clock.

    host software between steps, then the regions in sequence (region.py); identical layers are priced once

Knows nothing about lanes, events or what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from coterie.core.shapes import Sizes
from coterie.devices.modelled.clock import PLAIN, Kit
from coterie.devices.modelled.fluid import Phase, Work
from coterie.devices.modelled.kernels import is_fp8
from coterie.devices.modelled.region import Pricing, RegionPricer, facts, moved_bytes, rates
from coterie.devices.modelled.step import StepTime
from coterie.devices.modelled.transfer import alone, resources, tier_name
from coterie.devices.modelled.work import Parts
from coterie.graph.cost import region_cost
from coterie.graph.ops import COLLECTIVES
from coterie.graph.program import Program
from coterie.spec.machine import MachineSpec

MAX_PRICED_REGIONS = 1 << 15  # cache entries: phases of regions; bounds memory, not use


def step_time(
    spec: MachineSpec,
    program: Program,
    sizes: Sizes,
    *,
    orchestration: str = "device",
    starts_run: bool = True,
    allow_analytic: bool = True,
    mapped: bool = False,
) -> StepTime:
    """The time of a step on an otherwise idle machine, region by region, with weights and KV in the run tier.

    `starts_run`: the step is a run's first, whose start the host launches in any case; `mapped`: place sections on the
    machine's grid (dataflow/), and price them as whole regions only if they do not fit.
    Raises UsageError when the spec lacks a number that pricing needs, or when `allow_analytic` is False and a region
    is outside the measured range.
    """
    resources(spec)
    where = spec.run_tier, spec.run_tier
    pricing = Pricing(orchestration, analytic=allow_analytic, mapped=mapped)
    same = facts(program).same
    priced = {index: RegionPricer(spec, program, index, where, pricing).time(sizes) for index in dict.fromkeys(same)}
    rows = [
        replace(priced[index], region=region.name, stage=region.stage)
        for region, index in zip(program.regions, same, strict=True)
    ]
    if starts_run:
        rows[0] = replace(rows[0], launch_s=rows[0].launch_s + begins_s(spec, orchestration))
    return StepTime(tuple(rows), host_s(spec, sizes), floor_s(spec, sizes))


def roofline_s(spec: MachineSpec, program: Program, sizes: Sizes) -> float:
    """A lower bound on a step: per region, the longest of its flops and bytes per tier at physical peak rates."""
    total, own, same = 0.0, rates(spec, program), facts(program).same
    for index in dict.fromkeys(same):
        region = program.regions[index]
        if all(op.kind in COLLECTIVES for op in region.ops):
            continue
        cost = region_cost(program, region, sizes)
        moved = moved_bytes((spec.run_tier,) * 3, cost)
        seconds = [amount / own.bytes_per_s(spec, tier) for tier, amount in moved.items() if amount]
        flops_per_s = own.flops_per_s * (spec.fp8_times if is_fp8(program.graph, region) else 1.0)
        total += same.count(index) * max([cost.flops / flops_per_s, *seconds])
    return total


class StepPricer:
    """Prices the steps of one program on a machine: `step_time`, but as flows that concurrent work can slow down.

    Caches the phases of regions whose cost does not depend on context lengths.
    """

    def __init__(self, spec: MachineSpec, program: Program, pricing: Pricing, kit: Kit = PLAIN) -> None:
        self.program, self.begins_s = program, begins_s(spec, pricing.orchestration)
        self._spec, self._pricing, self._kit = spec, pricing, kit
        self._order = _Order.of(facts(program).same)
        self._regions: dict[tuple[str, str], list[tuple[RegionPricer, tuple[bool, bool] | None]]] = {}
        self._known: dict[tuple[int, int, int, int, tuple[str, str]], Phase] = {}

    def phases(self, sizes: Sizes, tiers: tuple[str, str], more_bytes: int = 0) -> Parts:
        """The regions of a step (not the first of a run) as phases; `tiers`: of weights and of KV.

        `more_bytes`: weights read beyond those of a single expert, as one more part at the end.
        Raises ValueError when a tier's bandwidth is unknown.
        """
        unique, known, kit = [], self._known, self._kit
        if len(known) >= MAX_PRICED_REGIONS:
            known.clear()
        for number, (region, reads) in enumerate(self._regions.get(tiers) or self._look_at(tiers)):
            if reads is None:
                unique.append(region.phase(sizes, kit))
                continue
            key = (number, sizes.T, sizes.B if reads[0] else 1, sizes.R if reads[1] else 1, tiers)
            if key not in known:
                known[key] = region.phase(sizes, kit)
            unique.append(known[key])
        spec, order = self._spec, self._order
        waits_s = host_s(spec, sizes)
        least_s = floor_s(spec, sizes)
        if least_s > 0:
            alone_s = kit.parts(unique, order.places).merged().alone_s
            waits_s += max(0.0, least_s - (alone_s or 0.0))
        begins = unique[0].delayed(waits_s)
        if more_bytes:
            return kit.parts([*unique, begins, self._reading(tiers[0], more_bytes)], (*order.headed, len(unique) + 1))
        return kit.parts([*unique, begins], order.headed)

    def _reading(self, tier: str, size_bytes: int) -> Phase:
        """A phase that only reads from a tier."""
        flow = self._kit.flow(float(size_bytes), alone(tier_name(tier)))
        return self._kit.phase(0.0, (flow,), alone_s=size_bytes / self._spec.tier(tier).achieved_bytes_per_s)

    def _look_at(self, tiers: tuple[str, str]) -> list[tuple[RegionPricer, tuple[bool, bool] | None]]:
        """A pricer per distinct region; for those that read no context, also whether their cost depends on B and R."""
        spec, program = self._spec, self.program
        for name in tiers:
            if spec.tier(name).bytes_per_s <= 0:
                raise ValueError(f"{spec.name} cannot run from {name}: its bandwidth is unknown")
        free = facts(program).context_free
        found = self._regions[tiers] = [
            (RegionPricer(spec, program, index, tiers, self._pricing), free.get(index)) for index in self._order.kinds
        ]
        return found


class _Order(NamedTuple):
    """The distinct regions of a program, and their order.

    `kinds`: the distinct regions. `places`: which of them each region is. `headed`: the same, but with the first region
    as one more kind at the end.
    """

    kinds: tuple[int, ...]
    places: tuple[int, ...]
    headed: tuple[int, ...]

    @classmethod
    def of(cls, same: tuple[int, ...]) -> _Order:
        """`same`: for each region, the index of the first that costs the same."""
        kinds = tuple(dict.fromkeys(same))
        number = {index: place for place, index in enumerate(kinds)}
        places = tuple([number[index] for index in same])
        return cls(kinds, places, (len(kinds), *places[1:]))


def host_s(spec: MachineSpec, sizes: Sizes) -> float:
    """Host time between two steps, plus the fixed cost of a step that contains prefill."""
    return spec.step_host_s + sizes.B * spec.step_sequence_s + (spec.prompt_start_s if sizes.T > sizes.B else 0.0)


def floor_s(spec: MachineSpec, sizes: Sizes) -> float:
    """Minimum host time to issue a step, which overlaps with the device's work."""
    return max(spec.step_floor_s, spec.prompt_floor_s) if sizes.T > sizes.B else spec.step_floor_s


def begins_s(spec: MachineSpec, orchestration: str) -> float:
    """Extra seconds at the start of a run.

    With `device` orchestration that includes a host launch; with `host`, every region has one anyway.
    """
    return spec.run_start_s + (spec.launch_s("host") if orchestration == "device" else 0.0)


def gated_by(spec: MachineSpec, pricing: Pricing) -> Pricing:
    """The pricing of steps whose weights are still arriving, where the spec names another orchestration for these."""
    same = spec.gated_launch in ("", pricing.orchestration)
    return pricing if same else replace(pricing, orchestration=spec.gated_launch)


def gated(program: Program, gates: Mapping[str, Work]) -> list[Work | None]:
    """The gate, if any, of each region of the first step: a stage's gate applies to its first region."""
    waiting = dict(gates)
    return [waiting.pop(region.stage, None) for region in program.regions]

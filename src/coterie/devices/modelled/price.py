"""What a step costs on a modelled machine, region by region: `step_time` for reports, phases for the device's clock.

    software between two steps, then region by region (region.py); equal layers are priced once

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

MAX_PRICED_REGIONS = 1 << 15  # whose phases are kept; a bound on memory, not on use


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
    """What a step with nothing beside it takes on a machine, region by region; weights and KV lie in the run tier.

    `starts_run`: software starts the first region even where the device starts the others; `mapped`: sections are laid
    out on the machine's grid (dataflow/), and priced as whole regions only where they do not fit.
    Raises UsageError when a needed number of the machine is unknown, or a region is outside what was measured and
    `allow_analytic` is False.
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
    """A lower bound of a step: per region the larger of flops and bytes over physical peaks, nothing else."""
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
    """Prices the steps of one program on a machine: `step_time` as flows that others can slow down.

    Keeps the phases of regions that cost the same in any context.
    """

    def __init__(self, spec: MachineSpec, program: Program, pricing: Pricing, kit: Kit = PLAIN) -> None:
        self.program, self.begins_s = program, begins_s(spec, pricing.orchestration)
        self._spec, self._pricing, self._kit = spec, pricing, kit
        self._order = _Order.of(facts(program).same)
        self._regions: dict[tuple[str, str], list[tuple[RegionPricer, tuple[bool, bool] | None]]] = {}
        self._known: dict[tuple[int, int, int, int, tuple[str, str]], Phase] = {}

    def phases(self, sizes: Sizes, tiers: tuple[str, str], more_bytes: int = 0) -> Parts:
        """Each region of a step that does not begin a run, as a phase; `tiers`: where weights and KV lie.

        Where a step reads `more_bytes` of weights than one expert has, a part at its end is for these.
        Raises ValueError when one of these tiers has no known bandwidth.
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
        """Reading so much of a tier, and nothing else."""
        flow = self._kit.flow(float(size_bytes), alone(tier_name(tier)))
        return self._kit.phase(0.0, (flow,), alone_s=size_bytes / self._spec.tier(tier).achieved_bytes_per_s)

    def _look_at(self, tiers: tuple[str, str]) -> list[tuple[RegionPricer, tuple[bool, bool] | None]]:
        """Each kind of region, and of one that reads no context whether it depends on B, and on R."""
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
    """Kinds of regions, and which of them each is; `headed`: with the first region a kind of its own behind them."""

    kinds: tuple[int, ...]
    places: tuple[int, ...]
    headed: tuple[int, ...]

    @classmethod
    def of(cls, same: tuple[int, ...]) -> _Order:
        """From the first region that costs the same as each."""
        kinds = tuple(dict.fromkeys(same))
        number = {index: place for place, index in enumerate(kinds)}
        places = tuple([number[index] for index in same])
        return cls(kinds, places, (len(kinds), *places[1:]))


def host_s(spec: MachineSpec, sizes: Sizes) -> float:
    """Software's work between two steps, and what a step takes besides its regions if it reads prompts."""
    return spec.step_host_s + sizes.B * spec.step_sequence_s + (spec.prompt_start_s if sizes.T > sizes.B else 0.0)


def floor_s(spec: MachineSpec, sizes: Sizes) -> float:
    """The least that software takes to issue a step, in which the device works too."""
    return max(spec.step_floor_s, spec.prompt_floor_s) if sizes.T > sizes.B else spec.step_floor_s


def begins_s(spec: MachineSpec, orchestration: str) -> float:
    """Seconds that beginning a run costs more: `device`: software starts it; `host`: it starts every region anyway."""
    return spec.run_start_s + (spec.launch_s("host") if orchestration == "device" else 0.0)


def gated_by(spec: MachineSpec, pricing: Pricing) -> Pricing:
    """How a step is priced whose weights are still coming: its kernels may be started by somebody else."""
    same = spec.gated_launch in ("", pricing.orchestration)
    return pricing if same else replace(pricing, orchestration=spec.gated_launch)


def gated(program: Program, gates: Mapping[str, Work]) -> list[Work | None]:
    """For each region of the first step, the work it must await: a stage's gate stands before its first region."""
    waiting = dict(gates)
    return [waiting.pop(region.stage, None) for region in program.regions]

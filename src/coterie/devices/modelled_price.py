"""What a step costs on a modelled machine, region by region: `step_time` for reports, phases for the device's clock.

    region   launch, then compute and each tier's bytes at once: max(flops / rate, bytes / rate), then exchanges
    rate     where kernels were measured: the physical peak times the share reached near there (modelled_kernels.py)
             elsewhere: the machine file's own achieved shares ("analytic")
    grid     a dataflow machine: intermediates stay in SRAM, exchanges stream beside the work, a pipeline fills

A program of one rank (graph/shard.py) is priced on one unit's rates and exchanges; a whole one on all units as if
they were one. Knows nothing about lanes, events or what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.dataflow.price import section_price
from coterie.devices.modelled_clock import PLAIN, Kit
from coterie.devices.modelled_exchange import exchange
from coterie.devices.modelled_kernels import ATTENTION, region_speed
from coterie.devices.modelled_step import RegionTime, StepTime
from coterie.devices.modelled_time import Phase, Work
from coterie.devices.modelled_transfer import COMPUTE, PEERS, alone, resources, tier_name
from coterie.devices.modelled_work import Parts
from coterie.graph.closed import ClosedCost
from coterie.graph.cost import Cost, collectives, reads_batch, reads_context, region_cost
from coterie.graph.fuse import SECTION
from coterie.graph.ir import Value
from coterie.graph.ops import COLLECTIVES
from coterie.graph.program import Program, Region
from coterie.spec.machine import MachineSpec
from coterie.spec.measured import ANALYTIC, Kernels

MAX_FACTS = 64
RegionKey: TypeAlias = tuple[int, int, int, int, tuple[str, str]]  # first region of its kind, T, B, R, tiers
_FACTS: dict[int, Facts] = {}
FULL_SECTION_OPS = 20  # ops that fill a grid: fused pipelines commonly hold 20 or more (the paper, section VIII)


@dataclass(frozen=True, slots=True)
class Pricing:
    """How regions are priced. `kernels`: speeds in place of all that were measured on the machine's GPU.

    Without `analytic` a region that no measured kernel is near is refused. `mapped` lays sections out on the machine's
    grid, stage by stage: up to a second for each new section, so for reports, not for the steps of a simulation.
    """

    orchestration: str = "device"
    kernels: Kernels | None = None
    analytic: bool = True
    mapped: bool = False


def step_time(
    spec: MachineSpec,
    program: Program,
    sizes: Sizes,
    *,
    orchestration: str = "device",
    tiers: tuple[str, str] | None = None,
    starts_run: bool = True,
    kernels: Kernels | None = None,
    allow_analytic: bool = True,
    mapped: bool = False,
) -> StepTime:
    """What a step with nothing beside it takes on a machine, region by region.

    `tiers`: where weights and KV lie (the run tier); `starts_run`: software starts the first region even where the
    device starts the others; `kernels`: measured speeds to use in place of all; `mapped`: sections are laid out on the
    machine's grid (dataflow/), and priced as whole regions only where they do not fit.
    Raises UsageError when a needed number of the machine is unknown, or a region is outside what was measured and
    `allow_analytic` is False.
    """
    resources(spec)
    where = tiers or (spec.run_tier, spec.run_tier)
    pricing = Pricing(orchestration, kernels, allow_analytic, mapped)
    same = facts(program).same
    priced = {index: region_time(spec, program, index, sizes, where, pricing) for index in dict.fromkeys(same)}
    rows = [
        replace(priced[index], region=region.name, stage=region.stage)
        for region, index in zip(program.regions, same, strict=True)
    ]
    if starts_run:
        rows[0] = replace(rows[0], launch_s=rows[0].launch_s + begins_s(spec, orchestration))
    return StepTime(tuple(rows), host_s(spec, sizes), spec.step_floor_s)


def region_time(
    spec: MachineSpec, program: Program, index: int, sizes: Sizes, tiers: tuple[str, str], pricing: Pricing
) -> RegionTime:
    """A region that does not begin a run; weights and KV are charged to `tiers`, the rest to the run tier."""
    region = program.regions[index]
    known = facts(program)
    rates, exchanging = _rates(spec, program), known.exchanging[known.same[index]]
    exchanges = [exchange(spec, wanted) for wanted in collectives(program, region, sizes)] if exchanging else []
    only_exchanges = exchanging == len(region.ops)
    # The time of an exchange by itself has the reading and writing of its operands in it.
    cost = Cost() if only_exchanges else known.costs[known.same[index]].of(sizes)
    moved = moved_bytes(spec, cost, tiers)
    speed = None
    if spec.kernels and rates.units == spec.units:
        speed = region_speed(spec, program, region, cost, sizes, kernels=pricing.kernels)
        if speed is None and not pricing.analytic and not only_exchanges and _has_matrices(region):
            fact = f"{region.name} with {sizes} is outside the kernels that were measured"
            raise UsageError(f"machine {spec.name}", fact, "allow analytic prices, or ask for sizes nearer to those")
    util = speed.util * spec.kernel_share if speed else 0.0
    compute_s = cost.flops / (rates.flops_per_s * (util or spec.flops_share))
    memory_s = {}
    for tier, amount in moved.items():
        share = util if util and tier == spec.run_tier else spec.tier(tier).share
        memory_s[tier] = amount / (rates.bytes_per_s(spec, tier) * share) if amount else 0.0
    exposed_s, fill_s = sum(item.seconds for item in exchanges), 0.0
    if spec.grid is not None:
        exposed_s = sum(item.latency_s for item in exchanges)
        if exchanges:
            memory_s[PEERS] = sum(item.bytes_s for item in exchanges)
        # A pipeline of one stage per op takes tiles of as many tokens as a PCU has lanes; the first fills it, while
        # weights arrive: T = (tiles + stages - 1) * compute / tiles, of which the part above memory's time shows.
        filled_s = compute_s * (1 + (len(region.ops) - 1) / max(1.0, sizes.T / spec.grid.lanes))
        fill_s = max(0.0, filled_s - max(compute_s, *memory_s.values()))
    laid_out = None
    if _is_laid_out(spec, rates, region, pricing):
        laid_out = section_price(spec, program.graph, region.ops, sizes)
    if laid_out is not None:
        compute_s, exposed_s = laid_out.compute_s, 0.0
        again = max(0, laid_out.memory_bytes - cost.total_bytes)
        memory_s[spec.run_tier] += again / (rates.bytes_per_s(spec, spec.run_tier) * spec.tier(spec.run_tier).share)
        if exchanges:
            memory_s[PEERS] = laid_out.exchange_s
        fill_s = max(0.0, compute_s + laid_out.fill_s - max(compute_s, *memory_s.values())) + laid_out.waits_s
    launch = launch_s(spec, pricing.orchestration, region)
    provenance = speed.provenance if speed else (exchanges[0].provenance if only_exchanges else ANALYTIC)
    again_s = laid_out.again_s if laid_out is not None else None
    found = region.name, region.kernel, region.stage, launch, compute_s, memory_s, exposed_s, fill_s, provenance
    return RegionTime(*found, again_s)


def _is_laid_out(spec: MachineSpec, rates: _Rates, region: Region, pricing: Pricing) -> bool:
    """One socket's section, on a machine with a grid, where mapping is asked for."""
    return pricing.mapped and spec.grid is not None and region.kernel == SECTION and rates.units == spec.units


@dataclass(frozen=True, slots=True)
class _Rates:
    """Physical rates that one program sees: of one unit for a rank's program, of all otherwise."""

    units: int
    flops_per_s: float

    def bytes_per_s(self, spec: MachineSpec, tier: str) -> float:
        found = spec.tier(tier)
        return found.bytes_per_s / (self.units if found.per_unit else 1)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a program's prices need of it whatever the sizes: the first region that costs the same as each; of how many
    ranks the program is one's (1: a whole program); of those first regions that cost the same in any context, whether
    they depend on B, and on R. `costs` of the first regions,
    and how many of their ops exchange.
    """

    program: Program
    same: tuple[int, ...]
    ranks: int
    context_free: Mapping[int, tuple[bool, bool]]
    costs: Mapping[int, ClosedCost]
    exchanging: Mapping[int, int]


def facts(program: Program) -> Facts:
    """The program's facts, kept for the programs asked about last (a program cannot be hashed, so by identity)."""
    found = _FACTS.get(id(program))
    if found is None or found.program is not program:
        if len(_FACTS) >= MAX_FACTS:
            _FACTS.clear()
        ops = (op for region in program.regions for op in region.ops if op.kind in COLLECTIVES)
        ranks = max((op.integer("ranks") for op in ops), default=1)
        same = alike(program)
        first = {index: program.regions[index] for index in dict.fromkeys(same)}
        free = {index: reads_batch(program, at) for index, at in first.items() if not reads_context(program, at)}
        costs = {index: ClosedCost(program, at) for index, at in first.items()}
        exchanging = {index: sum(op.kind in COLLECTIVES for op in at.ops) for index, at in first.items()}
        found = _FACTS[id(program)] = Facts(program, same, ranks, free, costs, exchanging)
    return found


def _rates(spec: MachineSpec, program: Program) -> _Rates:
    units = spec.units if facts(program).ranks > 1 or spec.units == 1 else 1
    return _Rates(units, spec.flops_per_s / units)


def _has_matrices(region: Region) -> bool:
    return any(op.kind == "linear" or op.kind in ATTENTION for op in region.ops)


def roofline_s(spec: MachineSpec, program: Program, sizes: Sizes, tiers: tuple[str, str] | None = None) -> float:
    """A lower bound of a step: per region the larger of flops and bytes over physical peaks, nothing else."""
    total, rates, same = 0.0, _rates(spec, program), facts(program).same
    for index in dict.fromkeys(same):
        region = program.regions[index]
        if all(op.kind in COLLECTIVES for op in region.ops):
            continue
        cost = region_cost(program, region, sizes)
        moved = moved_bytes(spec, cost, tiers or (spec.run_tier, spec.run_tier))
        seconds = [amount / rates.bytes_per_s(spec, tier) for tier, amount in moved.items() if amount]
        total += same.count(index) * max([cost.flops / rates.flops_per_s, *seconds])
    return total


def moved_bytes(spec: MachineSpec, cost: Cost, tiers: tuple[str, str]) -> dict[str, float]:
    """Bytes that a kernel moves, by tier."""
    moved: dict[str, float] = {}
    for tier, size_bytes in (
        (tiers[0], cost.weight_bytes),
        (tiers[1], cost.kv_read_bytes + cost.kv_write_bytes),
        (spec.run_tier, cost.input_bytes + cost.output_bytes),
    ):
        moved[tier] = moved.get(tier, 0.0) + size_bytes
    return moved


def alike(program: Program) -> tuple[int, ...]:
    """For each region, the first region that costs the same: equal but for the layer and the names of values."""
    values = program.graph.values
    first: dict[object, int] = {}
    found = []
    for region in program.regions:
        numbers: dict[str, int] = {}
        key: list[object] = [region.kernel]
        for op in region.ops:
            names = (*op.inputs, "->", *op.outputs)
            key.append((op.kind, repr(sorted((k, v) for k, v in op.attrs.items() if k != "layer"))))
            key += [(numbers.setdefault(name, len(numbers)), _type(values.get(name))) for name in names]
        key += [numbers.get(name) for name in (*region.inputs, "->", *region.outputs)]
        found.append(first.setdefault(tuple(key), region.index))
    return tuple(found)


def step_phases(
    spec: MachineSpec,
    program: Program,
    same: tuple[int, ...],
    sizes: Sizes,
    tiers: tuple[str, str],
    pricing: Pricing,
    known: dict[RegionKey, Phase] | None = None,
    kit: Kit = PLAIN,
) -> Parts:
    """Each region of a step that does not begin a run, as a phase: `step_time` as flows that others can slow down.

    A flow is as much of its resource as the region keeps busy. `known` keeps, for one program and pricing, phases of
    regions that cost the same in any context. Raises ValueError when one of these tiers has no known bandwidth.
    """
    for name in tiers:
        if spec.tier(name).bytes_per_s <= 0:
            raise ValueError(f"{spec.name} cannot run from {name}: its bandwidth is unknown")
    order, known, context_free = _order(same), {} if known is None else known, facts(program).context_free
    unique = []
    for index in order.kinds:
        if index not in context_free:
            unique.append(region_phase(spec, program, index, sizes, tiers, pricing, kit))
            continue
        by_b, by_r = context_free[index]
        key = (index, sizes.T, sizes.B if by_b else 1, sizes.R if by_r else 1, tiers)
        if key not in known:
            known[key] = region_phase(spec, program, index, sizes, tiers, pricing, kit)
        unique.append(known[key])
    waits_s = host_s(spec, sizes)
    if spec.step_floor_s > 0:
        alone_s = kit.parts(unique, order.places).merged().alone_s
        waits_s += max(0.0, spec.step_floor_s - (alone_s or 0.0))
    return kit.parts([*unique, unique[0].delayed(waits_s)], order.headed)


class _Order(NamedTuple):
    """Kinds of regions, and which of them each is; `headed`: with the first region a kind of its own behind them."""

    kinds: tuple[int, ...]
    places: tuple[int, ...]
    headed: tuple[int, ...]


@lru_cache(maxsize=MAX_FACTS)
def _order(same: tuple[int, ...]) -> _Order:
    kinds = tuple(dict.fromkeys(same))
    number = {index: place for place, index in enumerate(kinds)}
    places = tuple([number[index] for index in same])
    return _Order(kinds, places, (len(kinds), *places[1:]))


def region_phase(
    spec: MachineSpec,
    program: Program,
    index: int,
    sizes: Sizes,
    tiers: tuple[str, str],
    pricing: Pricing,
    kit: Kit = PLAIN,
) -> Phase:
    """A region that does not begin a run, as a phase."""
    row = region_time(spec, program, index, sizes, tiers, pricing)
    flows = [kit.flow(row.compute_s * spec.achieved_flops_per_s, alone(COMPUTE))]
    for name, seconds in row.memory_s.items():
        rate = 1.0 if name == PEERS else spec.tier(name).achieved_bytes_per_s
        flows.append(kit.flow(seconds * rate, alone(PEERS if name == PEERS else tier_name(name))))
    return kit.phase(row.launch_s + row.fill_s + row.collective_s, tuple(flows), alone_s=row.work_s)


def host_s(spec: MachineSpec, sizes: Sizes) -> float:
    """Software's work between two steps."""
    return spec.step_host_s + sizes.B * spec.step_sequence_s


def launch_s(spec: MachineSpec, orchestration: str, region: Region) -> float:
    """Seconds before a region that does not begin a run starts; a dataflow machine is configured for its ops first."""
    configured = min(1.0, len(region.ops) / FULL_SECTION_OPS) if spec.grid is not None else 0.0
    return spec.launch_s(orchestration, configured)


def begins_s(spec: MachineSpec, orchestration: str) -> float:
    """Seconds that beginning a run costs more: `device`: software starts it; `host`: it starts every region anyway."""
    return spec.launch_s("host") if orchestration == "device" else 0.0


def gated(program: Program, gates: Mapping[str, Work]) -> list[Work | None]:
    """For each region of the first step, the work it must await: a stage's gate stands before its first region."""
    waiting = dict(gates)
    return [waiting.pop(region.stage, None) for region in program.regions]


def _type(value: Value | None) -> object:
    return None if value is None else (value.shape, value.dtype, value.kind, value.density)

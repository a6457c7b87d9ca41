"""What one region costs on a modelled machine in any step: what no sizes change is looked up once.

    region   launch, then compute and each tier's bytes at once: max(flops / rate, bytes / rate), then exchanges
    rate     where kernels were measured: the physical peak times the share reached near there (kernels.py)
             else where the file carries over what other machines reach: a fixed time, and shares by family of kernels
             elsewhere: the machine file's own achieved shares ("analytic")
    cores    a machine without GPU: the thread that has most to do is waited for, and reads what one core can
    grid     a dataflow machine: intermediates stay in SRAM, exchanges stream beside the work, a pipeline fills

A program of one rank (graph/shard.py) is priced on one unit's rates and exchanges; a whole one on all units as if
they were one. Knows nothing about steps, lanes, events or what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.dataflow.price import section_price
from coterie.devices.modelled.clock import PLAIN, Kit
from coterie.devices.modelled.division import Division
from coterie.devices.modelled.exchange import exchange
from coterie.devices.modelled.fluid import Phase
from coterie.devices.modelled.kernels import RegionKernels, is_fp8
from coterie.devices.modelled.step import RegionTime
from coterie.devices.modelled.transfer import COMPUTE, PEERS, alone, tier_name
from coterie.graph.branch.ops import MATRIX_READERS
from coterie.graph.closed import ClosedCost
from coterie.graph.cost import Cost, collectives, reads_batch, reads_context
from coterie.graph.fuse import SECTION
from coterie.graph.ir import signature
from coterie.graph.ops import ATTENTION, COLLECTIVES
from coterie.graph.program import Program, Region
from coterie.spec.machine import KernelRates, MachineSpec
from coterie.spec.measured import ANALYTIC, CARRIED, Kernels

MAX_FACTS = 64
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


class RegionPricer:
    """Prices a region that does not begin a run; weights and KV are charged to `tiers`, the rest to the run tier."""

    def __init__(
        self, spec: MachineSpec, program: Program, index: int, tiers: tuple[str, str], pricing: Pricing
    ) -> None:
        region, known, own = program.regions[index], facts(program), rates(spec, program)
        self._spec, self._program, self._region, self._pricing = spec, program, region, pricing
        self._cost, self._units, self._flops_per_s = known.costs[known.same[index]], own.units, own.flops_per_s
        self._is_fp8 = spec.fp8_times != 1.0 and is_fp8(program.graph, region)
        if self._is_fp8:
            self._flops_per_s *= spec.fp8_times
        exchanging = known.exchanging[known.same[index]]
        self._exchanges, self._only_exchanges = exchanging > 0, exchanging == len(region.ops)
        self._charged = (*tiers, spec.run_tier)
        self._bytes_per_s = {name: own.bytes_per_s(spec, name) for name in self._charged}
        self._shares = {name: spec.tier(name).share for name in self._charged}
        measured = spec.kernels and own.units == spec.units
        self._kernels = RegionKernels(spec, program, region, pricing.kernels) if measured else None
        self._attends = any(op.kind in ATTENTION for op in region.ops)
        self._division = Division(program.graph, region) if spec.cores else None
        self._launch_s = launch_s(spec, pricing.orchestration, region)
        self._achieved = {PEERS: (1.0, alone(PEERS))}
        for name in self._charged:
            self._achieved[name] = spec.tier(name).achieved_bytes_per_s, alone(tier_name(name))

    def time(self, sizes: Sizes) -> RegionTime:
        """What it takes in a step with nothing beside it."""
        spec, region, run_tier = self._spec, self._region, self._charged[2]
        exchanges = []
        if self._exchanges:
            exchanges = [exchange(spec, wanted, sizes.T) for wanted in collectives(self._program, region, sizes)]
        # The time of an exchange by itself has the reading and writing of its operands in it.
        cost = Cost() if self._only_exchanges else self._cost.of(sizes)
        rates, provenance = self._rates(cost, sizes)
        over = self._division.longest_over_mean(sizes, spec.cores.threads) if self._division and spec.cores else 1.0
        compute_s = over * cost.flops / (self._flops_per_s * rates.flops_share)
        memory_s = {}
        for tier, amount in moved_bytes(self._charged, cost).items():
            share = rates.bytes_share if tier == run_tier else self._shares[tier]
            memory_s[tier] = amount / (self._bytes_per_s[tier] * share) if amount else 0.0
            if spec.cores and tier == run_tier:
                each_s = over * amount / (spec.cores.threads * spec.cores.bytes_per_s)
                memory_s[tier] = max(memory_s[tier], each_s)
        exposed_s, fill_s = sum([item.seconds for item in exchanges]), 0.0
        if spec.grid is not None:
            exposed_s = sum([item.latency_s for item in exchanges])
            if exchanges:
                memory_s[PEERS] = sum(item.bytes_s for item in exchanges)
            # A pipeline of one stage per op takes tiles of as many tokens as a PCU has lanes; the first fills it, while
            # weights arrive: T = (tiles + stages - 1) * compute / tiles, of which the part above memory's time shows.
            filled_s = compute_s * (1 + (len(region.ops) - 1) / max(1.0, sizes.T / spec.grid.lanes))
            fill_s = max(0.0, filled_s - max(compute_s, *memory_s.values()))
        laid_out = section_price(spec, self._program.graph, region.ops, sizes) if self._is_laid_out else None
        if laid_out is not None:
            compute_s, exposed_s = laid_out.compute_s, 0.0
            again = max(0, laid_out.memory_bytes - cost.total_bytes)
            memory_s[run_tier] += again / (self._bytes_per_s[run_tier] * self._shares[run_tier])
            if exchanges:
                memory_s[PEERS] = laid_out.exchange_s
            fill_s = max(0.0, compute_s + laid_out.fill_s - max(compute_s, *memory_s.values())) + laid_out.waits_s
        if self._only_exchanges:
            provenance = exchanges[0].provenance
        again_s = laid_out.again_s if laid_out is not None else None
        found = self._launch_s + rates.fixed_s, compute_s, memory_s, exposed_s, fill_s, provenance, again_s
        return RegionTime(region.name, region.kernel, region.stage, *found)

    def _rates(self, cost: Cost, sizes: Sizes) -> tuple[KernelRates, str]:
        """What the region's kernel reaches of the peaks, besides a fixed time, and how that is known.

        Raises UsageError for matrices that no measured kernel is near, unless prices may be analytic.
        """
        spec, region, carried = self._spec, self._region, self._spec.carried
        speed = self._kernels.speed(cost, sizes) if self._kernels is not None else None
        if speed is not None:
            share = speed.util * spec.kernel_share
            return KernelRates(0.0, share, share), speed.provenance
        if self._kernels is not None and not (self._pricing.analytic or self._only_exchanges) and _has_matrices(region):
            fact = f"{region.name} with {sizes} is outside the kernels that were measured"
            raise UsageError(f"machine {spec.name}", fact, "allow analytic prices, or ask for sizes nearer to those")
        if carried is None or self._only_exchanges:
            return KernelRates(0.0, spec.flops_share, self._shares[self._charged[2]]), ANALYTIC
        if not self._attends:
            return carried.gemm_fp8 if self._is_fp8 else carried.gemm, CARRIED
        return carried.prefill if sizes.T > sizes.B else carried.decode, CARRIED

    def phase(self, sizes: Sizes, kit: Kit = PLAIN) -> Phase:
        """The same as a phase: a flow is as much of its resource as the region keeps busy."""
        row = self.time(sizes)
        flows = [kit.flow(row.compute_s * self._spec.achieved_flops_per_s, alone(COMPUTE))]
        for name, seconds in row.memory_s.items():
            rate, uses = self._achieved[name]
            flows.append(kit.flow(seconds * rate, uses))
        return kit.phase(row.launch_s + row.fill_s + row.collective_s, tuple(flows), alone_s=row.work_s)

    @property
    def _is_laid_out(self) -> bool:
        """One socket's section, on a machine with a grid, where mapping is asked for."""
        spec, grid = self._spec, self._spec.grid is not None
        return self._pricing.mapped and grid and self._region.kernel == SECTION and self._units == spec.units


@dataclass(frozen=True, slots=True)
class Rates:
    """Physical rates that one program sees: of one unit for a rank's program, of all otherwise."""

    units: int
    flops_per_s: float

    def bytes_per_s(self, spec: MachineSpec, tier: str) -> float:
        """Of a tier."""
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


def rates(spec: MachineSpec, program: Program) -> Rates:
    """The rates that a program sees."""
    units = spec.units if facts(program).ranks > 1 or spec.units == 1 else 1
    return Rates(units, spec.flops_per_s / units)


def _has_matrices(region: Region) -> bool:
    return any(op.kind in ("linear", *ATTENTION, *MATRIX_READERS) for op in region.ops)


def moved_bytes(tiers: tuple[str, str, str], cost: Cost) -> dict[str, float]:
    """Bytes that a kernel moves, by tier; `tiers` are those of weights, of KV and of all else."""
    moved: dict[str, float] = {}
    for tier, size_bytes in (
        (tiers[0], cost.weight_bytes),
        (tiers[1], cost.kv_read_bytes + cost.kv_write_bytes),
        (tiers[2], cost.input_bytes + cost.output_bytes),
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
            key += [(numbers.setdefault(name, len(numbers)), signature(values.get(name))) for name in names]
        key += [numbers.get(name) for name in (*region.inputs, "->", *region.outputs)]
        found.append(first.setdefault(tuple(key), region.index))
    return tuple(found)


def launch_s(spec: MachineSpec, orchestration: str, region: Region) -> float:
    """Seconds before a region that does not begin a run starts; a dataflow machine is configured for its ops first."""
    configured = min(1.0, len(region.ops) / FULL_SECTION_OPS) if spec.grid is not None else 0.0
    return spec.launch_s(orchestration, configured)

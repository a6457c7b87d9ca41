"""Prices a region on a modelled machine, in any step; what does not depend on sizes is computed once.

    region   launch, then compute and memory traffic overlapped: max(flops / rate, bytes / rate), then exchanges
    rate     if its kernels were measured: the physical peak times the share reached at similar sizes (kernels.py)
             else if the machine file carries over efficiencies of other machines: a fixed time, and shares per family
             else the machine file's own achieved shares ("analytic")
    cores    a machine without GPU: the busiest thread sets the time, and its bandwidth is limited to one core's
    grid     a dataflow machine: intermediates stay in SRAM, exchanges overlap with the work, a pipeline has to fill

One rank's program (graph/shard.py) is priced at one unit's rates plus exchanges; a whole program as if all units were
a single one. Knows nothing about steps, lanes, events or what is computed.
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
    """How regions are priced. `kernels`: replaces the measurements of the machine's GPU.

    Without `analytic`, a region outside the measured range is refused. `mapped` places sections on the machine's grid,
    stage by stage: up to a second per new section, so for reports, not for the steps of a simulation.
    """

    orchestration: str = "device"
    kernels: Kernels | None = None
    analytic: bool = True
    mapped: bool = False


class RegionPricer:
    """Prices one region, without the extra cost of a run's start.

    Traffic of weights and KV is charged to `tiers`, all other to the run tier.
    """

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
        """Its time in a step on an otherwise idle machine."""
        spec, region, run_tier = self._spec, self._region, self._charged[2]
        exchanges = []
        if self._exchanges:
            exchanges = [exchange(spec, wanted, sizes.T) for wanted in collectives(self._program, region, sizes)]
        # The time of a lone exchange includes reading and writing its operands.
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
            # A pipeline with one stage per op processes tiles of as many tokens as a PCU has lanes. It fills while
            # weights arrive: T = (tiles + stages - 1) * compute / tiles, of which the excess over memory time shows.
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
        repeat_s = laid_out.repeat_s if laid_out is not None else None
        found = self._launch_s + rates.fixed_s, compute_s, memory_s, exposed_s, fill_s, provenance, repeat_s
        return RegionTime(region.name, region.kernel, region.stage, *found)

    def _rates(self, cost: Cost, sizes: Sizes) -> tuple[KernelRates, str]:
        """The shares of the peaks that the region's kernel reaches, its fixed time, and their provenance.

        Raises UsageError for products outside the measured range, unless analytic prices are allowed.
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
        """`time` as a phase: each flow's amount is its time at the resource's achieved rate."""
        row = self.time(sizes)
        flows = [kit.flow(row.compute_s * self._spec.achieved_flops_per_s, alone(COMPUTE))]
        for name, seconds in row.memory_s.items():
            rate, uses = self._achieved[name]
            flows.append(kit.flow(seconds * rate, uses))
        return kit.phase(row.launch_s + row.fill_s + row.collective_s, tuple(flows), alone_s=row.work_s)

    @property
    def _is_laid_out(self) -> bool:
        """Whether to place it on the grid: a section of a socket's program, when mapping was requested."""
        spec, grid = self._spec, self._spec.grid is not None
        return self._pricing.mapped and grid and self._region.kernel == SECTION and self._units == spec.units


@dataclass(frozen=True, slots=True)
class Rates:
    """Peak rates for a program: a rank's program gets one unit's, any other those of all units together.

    `units` divides the machine's totals: 1 for the latter.
    """

    units: int
    flops_per_s: float

    def bytes_per_s(self, spec: MachineSpec, tier: str) -> float:
        """A tier's peak bandwidth."""
        found = spec.tier(tier)
        return found.bytes_per_s / (self.units if found.per_unit else 1)


@dataclass(frozen=True, slots=True)
class Facts:
    """Size-independent facts about a program. `same`: for each region, the first region that costs the same.

    `ranks`: the ranks that it was sharded for; 1 for a whole program. The rest is by those first regions:
    `context_free`: for those whose cost does not depend on context lengths, whether it depends on B, and on R; `costs`;
    `exchanging`: number of collective ops.
    """

    program: Program
    same: tuple[int, ...]
    ranks: int
    context_free: Mapping[int, tuple[bool, bool]]
    costs: Mapping[int, ClosedCost]
    exchanging: Mapping[int, int]


def facts(program: Program) -> Facts:
    """The program's facts, cached by identity, since programs are not hashable."""
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
    """The peak rates for a program."""
    units = spec.units if facts(program).ranks > 1 or spec.units == 1 else 1
    return Rates(units, spec.flops_per_s / units)


def _has_matrices(region: Region) -> bool:
    return any(op.kind in ("linear", *ATTENTION, *MATRIX_READERS) for op in region.ops)


def moved_bytes(tiers: tuple[str, str, str], cost: Cost) -> dict[str, float]:
    """Bytes that a kernel moves, by tier; `tiers`: of weights, of KV and of everything else."""
    moved: dict[str, float] = {}
    for tier, size_bytes in (
        (tiers[0], cost.weight_bytes),
        (tiers[1], cost.kv_read_bytes + cost.kv_write_bytes),
        (tiers[2], cost.input_bytes + cost.output_bytes),
    ):
        moved[tier] = moved.get(tier, 0.0) + size_bytes
    return moved


def alike(program: Program) -> tuple[int, ...]:
    """For each region, the first that costs the same: equal up to the layer number and the names of values."""
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
    """Launch time of a region, without a run's start; on a dataflow machine it includes reconfiguration, by ops."""
    configured = min(1.0, len(region.ops) / FULL_SECTION_OPS) if spec.grid is not None else 0.0
    return spec.launch_s(orchestration, configured)

"""What work costs on a modelled machine: regions and transfers as phases that drain the machine's resources.

    region    launch, then flops of `compute` and bytes of tiers at once: max(flops / peak, bytes / bandwidth)
    transfer  latency, then bytes of the link and of both its tiers at the slowest of their rates

All rates are achieved ones: the physical number times the share that software was seen to reach.

Knows nothing about lanes, events or what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.devices.modelled_time import Flow, Phase, Work
from coterie.graph.cost import Cost, region_cost
from coterie.graph.ir import Value
from coterie.graph.program import Program
from coterie.spec.machine import Link, MachineSpec

COMPUTE = "compute"


def resources(spec: MachineSpec) -> dict[str, float]:
    """Units per second of everything that work can draw on; tiers of unknown bandwidth bound nothing.

    Raises UsageError when a number without which nothing can be priced is unknown.
    """
    where = f"machine {spec.name}"
    remedy = "give a measured or published number with its source, or replay recorded durations"
    if spec.flops_per_s <= 0:
        raise UsageError(where, "its peak FLOP/s is unknown", remedy)
    if spec.tier(spec.run_tier).bytes_per_s <= 0:
        raise UsageError(where, f"the bandwidth of {spec.run_tier} is unknown", remedy)
    found = {COMPUTE: spec.achieved_flops_per_s}
    found.update({_tier(tier.name): tier.achieved_bytes_per_s for tier in spec.tiers if tier.bytes_per_s > 0})
    for link in spec.links:
        if link.bytes_per_s <= 0:
            raise UsageError(where, f"the bandwidth of the link {link.src} -> {link.dst} is unknown", remedy)
        found[_link(link)] = link.achieved_bytes_per_s
    return found


def route(spec: MachineSpec, src: str, dst: str) -> tuple[Link, ...]:
    """The links that bytes take: the direct one, else tier by tier. Raises KeyError if one is missing."""
    names = [tier.name for tier in spec.tiers]
    if src == dst or any((link.src, link.dst) == (src, dst) for link in spec.links):
        return () if src == dst else (spec.link(src, dst),)
    low, high = names.index(src), names.index(dst)
    step = 1 if low < high else -1
    hops = names[low : high + step : step] if high + step >= 0 else names[low::step]
    return tuple(spec.link(a, b) for a, b in pairwise(hops))


def transfer(spec: MachineSpec, src: str, dst: str, size_bytes: int) -> Phase:
    """A copy of `size_bytes`: a tier in between is written and read; within one tier, the same.

    Raises UsageError within a tier of unknown bandwidth, KeyError when no links lead from `src` to `dst`.
    """
    links = route(spec, src, dst)
    uses: dict[str, float] = {}
    for link in links:
        uses[_link(link)] = 1.0
    ends = [(link.src, link.dst) for link in links] or [(src, dst)]
    for tier in (name for pair in ends for name in pair):
        if spec.tier(tier).bytes_per_s > 0:
            uses[_tier(tier)] = uses.get(_tier(tier), 0.0) + 1.0
    if not uses:
        fact = f"the bandwidth of {src} is unknown, so a copy within it has no price"
        raise UsageError(spec.name, fact, "give the tier a bandwidth in the machine's file")
    return Phase(sum(link.latency_s for link in links), (Flow(float(size_bytes), uses),))


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


@dataclass(frozen=True, slots=True)
class RegionTime:
    """One region of a step: launch, then the longest of compute and each tier's bytes, then what collectives expose.

    `bound` names what takes longest; `provenance` says where its speed is from: measured, interpolated, transferred
    or analytic (the machine file's own numbers).
    """

    region: str
    kernel: str
    stage: str
    launch_s: float
    compute_s: float
    memory_s: Mapping[str, float]
    collective_s: float
    provenance: str

    @property
    def work_s(self) -> float:
        """Compute and memory at once."""
        return max(self.compute_s, *self.memory_s.values())

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.launch_s + self.work_s + self.collective_s

    @property
    def bound(self) -> str:
        """`launch`, `compute`, `collective` or the name of a tier."""
        parts = {"compute": self.compute_s, **self.memory_s, "launch": self.launch_s, "collective": self.collective_s}
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step: its regions in order, and what software does between two steps."""

    rows: tuple[RegionTime, ...]
    host_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.host_s + sum(row.seconds for row in self.rows)


def step_time(
    spec: MachineSpec,
    program: Program,
    sizes: Sizes,
    *,
    orchestration: str = "device",
    tiers: tuple[str, str] | None = None,
    starts_run: bool = True,
) -> StepTime:
    """What a step with nothing beside it takes on a machine, region by region.

    `tiers`: where weights and KV lie (the run tier); `starts_run`: software starts the first region even where the
    device starts the others. Raises UsageError when a needed number of the machine is unknown.
    """
    resources(spec)
    where = tiers or (spec.run_tier, spec.run_tier)
    priced = {index: region_time(spec, program, index, sizes, where) for index in dict.fromkeys(alike(program))}
    rows = []
    for region, index in zip(program.regions, alike(program), strict=True):
        start_s = launch_s(spec, orchestration, first=starts_run and region.index == 0)
        rows.append(replace(priced[index], region=region.name, stage=region.stage, launch_s=start_s))
    return StepTime(tuple(rows), spec.step_host_s)


def region_time(spec: MachineSpec, program: Program, index: int, sizes: Sizes, tiers: tuple[str, str]) -> RegionTime:
    """A region without its launch; weights and KV are charged to `tiers`, the rest to the run tier."""
    region = program.regions[index]
    cost = region_cost(program, region, sizes)
    moved = moved_bytes(spec, cost, tiers)
    memory_s = {
        tier: amount / spec.tier(tier).achieved_bytes_per_s if amount else 0.0 for tier, amount in moved.items()
    }
    compute_s = cost.flops / spec.achieved_flops_per_s
    return RegionTime(region.name, region.kernel, region.stage, 0.0, compute_s, memory_s, 0.0, "analytic")


def roofline_s(spec: MachineSpec, program: Program, sizes: Sizes, tiers: tuple[str, str] | None = None) -> float:
    """A lower bound of a step: per region the larger of flops and bytes over physical peaks, nothing else."""
    total = 0.0
    for region in program.regions:
        cost = region_cost(program, region, sizes)
        moved = moved_bytes(spec, cost, tiers or (spec.run_tier, spec.run_tier))
        seconds = [amount / spec.tier(tier).bytes_per_s for tier, amount in moved.items() if amount]
        total += max([cost.flops / spec.flops_per_s, *seconds])
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


def step_phases(
    spec: MachineSpec, program: Program, same: tuple[int, ...], sizes: Sizes, tiers: tuple[str, str], orchestration: str
) -> tuple[Phase, ...]:
    """Each region of a step that does not begin a run, as a phase: `step_time` as flows that others can slow down.

    Raises ValueError when one of these tiers has no known bandwidth.
    """
    for name in tiers:
        if spec.tier(name).bytes_per_s <= 0:
            raise ValueError(f"{spec.name} cannot run from {name}: its bandwidth is unknown")
    priced: dict[int, Phase] = {}
    delay_s = launch_s(spec, orchestration, first=False)
    for index in dict.fromkeys(same):
        row = region_time(spec, program, index, sizes, tiers)
        flows = [Flow(row.compute_s * spec.achieved_flops_per_s, {COMPUTE: 1.0})]
        flows += [
            Flow(s * spec.tier(tier).achieved_bytes_per_s, {_tier(tier): 1.0}) for tier, s in row.memory_s.items()
        ]
        priced[index] = Phase(delay_s + row.collective_s, tuple(flows), alone_s=row.work_s)
    head = replace(priced[same[0]], delay_s=priced[same[0]].delay_s + spec.step_host_s)
    return (head, *(priced[index] for index in same[1:]))


def launch_s(spec: MachineSpec, orchestration: str, first: bool) -> float:
    """Seconds before a region starts; `first` is the first region of a run.

    `host`: software starts every region. `device`: software starts a run, then the device starts each region.
    """
    if orchestration == "host":
        return spec.launch_s("host")
    return spec.launch_s("device") + (spec.launch_s("host") if first else 0.0)


def gated(program: Program, gates: Mapping[str, Work]) -> list[Work | None]:
    """For each region of the first step, the work it must await: a stage's gate stands before its first region."""
    waiting = dict(gates)
    return [waiting.pop(region.stage, None) for region in program.regions]


def _tier(name: str) -> str:
    return f"tier {name}"


def _type(value: Value | None) -> object:
    return None if value is None else (value.shape, value.dtype, value.kind)


def _link(link: Link) -> str:
    return f"link {link.src}->{link.dst}"

"""What work costs on a modelled machine: regions and transfers as phases that drain the machine's resources.

    region    launch, then flops of `compute` and bytes of tiers at once: max(flops / peak, bytes / bandwidth)
    transfer  latency, then bytes of the link and of both its tiers at the slowest of their rates

Knows nothing about lanes, events or what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.devices.modelled_time import Flow, Phase, Work
from coterie.graph.cost import region_cost
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
    found = {COMPUTE: spec.flops_per_s}
    found.update({_tier(tier.name): tier.bytes_per_s for tier in spec.tiers if tier.bytes_per_s > 0})
    for link in spec.links:
        if link.bytes_per_s <= 0:
            raise UsageError(where, f"the bandwidth of the link {link.src} -> {link.dst} is unknown", remedy)
        found[_link(link)] = link.bytes_per_s
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


def step_phases(
    spec: MachineSpec, program: Program, same: tuple[int, ...], sizes: Sizes, tiers: tuple[str, str], delay_s: float
) -> tuple[Phase, ...]:
    """Each region of a step, started after `delay_s`; weights and KV are charged to `tiers`, the rest to the run tier.

    Raises ValueError when one of these tiers has no known bandwidth.
    """
    for name in tiers:
        if spec.tier(name).bytes_per_s <= 0:
            raise ValueError(f"{spec.name} cannot run from {name}: its bandwidth is unknown")
    priced: dict[int, Phase] = {}
    for index in dict.fromkeys(same):
        cost = region_cost(program, program.regions[index], sizes)
        moved: dict[str, float] = {}
        for tier, size_bytes in (
            (tiers[0], cost.weight_bytes),
            (tiers[1], cost.kv_read_bytes + cost.kv_write_bytes),
            (spec.run_tier, cost.input_bytes + cost.output_bytes),
        ):
            moved[tier] = moved.get(tier, 0.0) + size_bytes
        flows = [Flow(float(cost.flops), {COMPUTE: 1.0})]
        flows += [Flow(amount, {_tier(tier): 1.0}) for tier, amount in moved.items()]
        seconds = [cost.flops / spec.flops_per_s]
        seconds += [amount / spec.tier(tier).bytes_per_s for tier, amount in moved.items() if amount > 0]
        priced[index] = Phase(delay_s, tuple(flows), alone_s=max(seconds))
    return tuple(priced[index] for index in same)


def launch_s(spec: MachineSpec, orchestration: str, first: bool) -> float:
    """Seconds before a region starts; `first` is the first region of a run.

    `host`: software starts every region. `device`: software starts a run, then the device starts each region.
    """
    if orchestration == "host":
        return spec.launch_host_s
    return spec.launch_device_s + (spec.launch_host_s if first else 0.0)


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

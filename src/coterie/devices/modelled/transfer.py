"""What a copy costs on a modelled machine, and everything that work can draw on.

    transfer  latency, then bytes of the link and of both its tiers at the slowest of their rates

All rates are achieved ones: the physical number times the share that software was seen to reach.
Knows nothing about programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from types import MappingProxyType

from coterie.core.errors import UsageError
from coterie.core.units import format_bytes
from coterie.devices.modelled.clock import PLAIN, Kit
from coterie.devices.modelled.fluid import Flow, Phase
from coterie.spec.machine import Link, MachineSpec

COMPUTE, PEERS = "compute", "peers"
MAX_TRANSFERS = 4096  # sizes whose phases are kept, and layouts; a bound on memory, not on use


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
    found.update({tier_name(tier.name): tier.achieved_bytes_per_s for tier in spec.tiers if tier.bytes_per_s > 0})
    for link in spec.links:
        if link.bytes_per_s <= 0:
            raise UsageError(where, f"the bandwidth of the link {link.src} -> {link.dst} is unknown", remedy)
        found[link_name(link)] = link.achieved_bytes_per_s
    if spec.peers is not None:
        found[PEERS] = 1.0  # seconds of every unit's links
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
        uses[link_name(link)] = 1.0
    ends = [(link.src, link.dst) for link in links] or [(src, dst)]
    for tier in (name for pair in ends for name in pair):
        if spec.tier(tier).bytes_per_s > 0:
            uses[tier_name(tier)] = uses.get(tier_name(tier), 0.0) + 1.0
    if not uses:
        fact = f"the bandwidth of {src} is unknown, so a copy within it has no price"
        raise UsageError(spec.name, fact, "give the tier a bandwidth in the machine's file")
    return Phase(sum(link.latency_s for link in links), (Flow(float(size_bytes), uses),))


class Transfers:
    """The transfers of one machine. What they use is one object for each pair of tiers, as shares want it; the same
    range of another expert is the same transfer.
    """

    def __init__(self, spec: MachineSpec, kit: Kit = PLAIN) -> None:
        self._spec, self._kit = spec, kit
        self._ways: dict[tuple[str, str], Phase] = {}
        self._known: dict[tuple[str, str, int], tuple[str, str, list[Phase]]] = {}
        self._pieces: dict[tuple[str, str, tuple[tuple[int, int], ...]], tuple[str, list[str], list[Phase]]] = {}

    def of(self, src: str, dst: str, size_bytes: int) -> tuple[str, str, list[Phase]]:
        """A copy's lane and what it is called; its phases as `transfer` has them, in a list that nobody may change."""
        found = self._known.get((src, dst, size_bytes))
        if found is None:
            if len(self._known) >= MAX_TRANSFERS:
                self._known.clear()
            if (src, dst) not in self._ways:
                self._ways[src, dst] = transfer(self._spec, src, dst, 1)
            way = self._ways[src, dst]
            phase = self._kit.phase(way.delay_s, (self._kit.flow(float(size_bytes), way.flows[0].uses),))
            found = self._known[src, dst, size_bytes] = f"{src}->{dst}", f"copy {format_bytes(size_bytes)}", [phase]
        return found

    def of_pieces(self, src: str, dst: str, pieces: Sequence[tuple[int, int]]) -> tuple[str, list[str], list[Phase]]:
        """Of copies of pieces, (offset, size): their lane, and what each is called and its one phase."""
        key = src, dst, tuple(pieces)
        found = self._pieces.get(key)
        if found is None:
            if len(self._pieces) >= MAX_TRANSFERS:
                self._pieces.clear()
            each = [self.of(src, dst, size_bytes) for _, size_bytes in key[2]]
            found = f"{src}->{dst}", [label for _, label, _ in each], [phases[0] for _, _, phases in each]
            self._pieces[key] = found
        return found


@cache
def alone(resource: str) -> Mapping[str, float]:
    """What a flow uses that draws on one resource: one object for each, so that shares are known by identity."""
    return MappingProxyType({resource: 1.0})


def tier_name(name: str) -> str:
    """The resource that is a tier."""
    return f"tier {name}"


def link_name(link: Link) -> str:
    """The resource that is a link."""
    return f"link {link.src}->{link.dst}"

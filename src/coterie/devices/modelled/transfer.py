"""Prices copies on a modelled machine, and lists the resources that work can draw on.

    transfer  latency, then the bytes, which draw on the link and on the tiers at both ends; the slowest sets the rate

All rates are achieved ones: the physical rate times the share that software was observed to reach.
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
MAX_TRANSFERS = 4096  # cache entries: transfer sizes, and layouts; bounds memory, not use


def resources(spec: MachineSpec) -> dict[str, float]:
    """Capacity per second of every resource; tiers of unknown bandwidth are left out and so limit nothing.

    Raises UsageError when the spec lacks a number that pricing needs.
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
        found[PEERS] = 1.0  # measured in seconds during which the links between units are busy
    return found


def route(spec: MachineSpec, src: str, dst: str) -> tuple[Link, ...]:
    """The links from `src` to `dst`: the direct one, else tier by tier. Raises KeyError if one is missing."""
    names = [tier.name for tier in spec.tiers]
    if src == dst or any((link.src, link.dst) == (src, dst) for link in spec.links):
        return () if src == dst else (spec.link(src, dst),)
    low, high = names.index(src), names.index(dst)
    step = 1 if low < high else -1
    hops = names[low : high + step : step] if high + step >= 0 else names[low::step]
    return tuple(spec.link(a, b) for a, b in pairwise(hops))


def transfer(spec: MachineSpec, src: str, dst: str, size_bytes: int) -> Phase:
    """A copy of `size_bytes`. Intermediate tiers are written and read, as is the tier of a copy within one.

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
    """A cache of one machine's transfers, by tiers and size.

    All transfers between two tiers share one `uses` object, which Shares compares by identity.
    """

    def __init__(self, spec: MachineSpec, kit: Kit = PLAIN) -> None:
        self._spec, self._kit = spec, kit
        self._ways: dict[tuple[str, str], Phase] = {}
        self._known: dict[tuple[str, str, int], tuple[str, str, list[Phase]]] = {}
        self._pieces: dict[tuple[str, str, tuple[tuple[int, int], ...]], tuple[str, list[str], list[Phase]]] = {}

    def of(self, src: str, dst: str, size_bytes: int) -> tuple[str, str, list[Phase]]:
        """A copy's lane, label and phases (see `transfer`). The list is shared: do not modify it."""
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
        """For copies of pieces, (offset, size): their lane, and each one's label and single phase."""
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
    """The `uses` of a flow on a single resource: always the same object, since Shares compares by identity."""
    return MappingProxyType({resource: 1.0})


def tier_name(name: str) -> str:
    """The name of a tier's resource."""
    return f"tier {name}"


def link_name(link: Link) -> str:
    """The name of a link's resource."""
    return f"link {link.src}->{link.dst}"

"""What an exchange among a machine's units costs: measured where the machine names a library, else by formula.

Knows nothing about regions.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.core.errors import UsageError
from coterie.graph.cost import Collective
from coterie.spec.collective import exchange_s
from coterie.spec.exchange import all_exchanges
from coterie.spec.machine import MachineSpec, Peers
from coterie.spec.measured import ANALYTIC, TRANSFERRED


@dataclass(frozen=True, slots=True)
class Exchange:
    """Seconds of latency that nothing can hide, seconds in which bytes move, and how they are known."""

    latency_s: float
    bytes_s: float
    provenance: str

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.latency_s + self.bytes_s


def exchange(spec: MachineSpec, wanted: Collective, tokens: int = 0) -> Exchange:
    """The time of a collective on a machine, in a step of so many tokens; without these, of one by itself.

    Raises UsageError when units cannot reach each other.
    """
    if wanted.ranks <= 1:
        return Exchange(0.0, 0.0, ANALYTIC)
    alone = _alone(spec, wanted)
    share = spec.exchange_share if tokens > spec.large_step else 1.0
    return Exchange(alone.latency_s / share, alone.bytes_s / share, alone.provenance)


def _alone(spec: MachineSpec, wanted: Collective) -> Exchange:
    peers = spec.peers
    if peers is None or peers.bytes_per_s <= 0:
        fact = f"has {wanted.ranks} units that must exchange data but no known way between them"
        raise UsageError(f"machine {spec.name}", fact, "add [peers] with bandwidth and latency to its file")
    if peers.library:
        return _measured(spec.name, peers, wanted)
    found = exchange_s(wanted.kind, wanted.bytes, wanted.ranks, peers.latency_s, peers.achieved_bytes_per_s)
    return Exchange(*found, ANALYTIC)


def _measured(name: str, peers: Peers, wanted: Collective) -> Exchange:
    """An all-gather moves half of what an all-reduce of its result does."""
    found = all_exchanges().all_reduce(peers.library, wanted.ranks, wanted.bytes)
    if found is None:
        known = ", ".join(all_exchanges().libraries)
        raise UsageError(
            f"machine {name}: peers.library", f"is {peers.library!r}", f"use one of {known}, or leave it out"
        )
    if wanted.kind == "all_gather":
        least = all_exchanges().all_reduce(peers.library, wanted.ranks, 1)
        floor_s = least.seconds if least else 0.0
        return Exchange(max(floor_s, found.seconds / 2), 0.0, TRANSFERRED)
    return Exchange(found.seconds, 0.0, found.provenance)

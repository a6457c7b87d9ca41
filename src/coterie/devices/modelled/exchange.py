"""The time of a collective among a machine's units: from measurements if the machine names a library, else a formula.

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
    """Latency, which cannot be overlapped, the time in which bytes move, and the provenance of both."""

    latency_s: float
    bytes_s: float
    provenance: str

    @property
    def seconds(self) -> float:
        """Total time."""
        return self.latency_s + self.bytes_s


def exchange(spec: MachineSpec, wanted: Collective, tokens: int = 0) -> Exchange:
    """The time of a collective in a step of `tokens` tokens; 0: of the collective by itself.

    Raises UsageError if the machine's file has no `[peers]` bandwidth.
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
    """From measured all-reduces. An all-gather moves half the bytes of an all-reduce of the same result."""
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

"""One socket of a dataflow machine, as mapping sees it: its grid, and its off-chip bandwidths.

Knows nothing about what is mapped.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.core.errors import UsageError
from coterie.spec.collective import exchange_s
from coterie.spec.machine import MachineSpec, SpatialUnits


@dataclass(frozen=True, slots=True)
class Chip:
    """Rates of one socket; those named `peak_` are physical, the others achieved by software."""

    name: str
    grid: SpatialUnits
    sockets: int
    peak_flops_per_s: float
    peak_memory_bytes_per_s: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    link_latency_s: float
    launch_s: float
    launch_full_s: float

    def seconds(self, cycles: float) -> float:
        """Convert clock cycles to seconds."""
        return cycles / self.grid.clock_hz

    def start_s(self, share_of_units: float) -> float:
        """Start time of a kernel whose program configures this share of the units."""
        return self.launch_s + (self.launch_full_s - self.launch_s) * share_of_units

    def collective_s(self, kind: str, size_bytes: float, ranks: int, messages: int = 1) -> tuple[float, float]:
        """(latency, link time) of a collective over sockets whose result has `size_bytes`.

        Successive messages overlap in latency. Raises UsageError if there are no links.
        """
        if ranks < 2:
            return 0.0, 0.0
        if self.link_bytes_per_s <= 0:
            raise UsageError(
                f"machine {self.name}", "it has no links between sockets", "give it [peers], or one socket"
            )
        return exchange_s(kind, size_bytes, ranks, self.link_latency_s, self.link_bytes_per_s, messages)


def chip_of(spec: MachineSpec, orchestration: str = "device") -> Chip:
    """One socket of a machine. Raises UsageError if the machine has no grid or an unknown memory bandwidth."""
    grid = spec.grid
    if grid is None:
        fact = "this machine has no grid of compute and memory units, so nothing can be laid out on it"
        raise UsageError(f"machine {spec.name}", fact, "use one with a [grid] table, as sn40l-node")
    tier = spec.tier(spec.run_tier)
    if tier.bytes_per_s <= 0:
        raise UsageError(f"machine {spec.name}", f"the bandwidth of {tier.name} is unknown", "give it in its file")
    peak = spec.unit_bytes_per_s(tier.name)
    return Chip(
        spec.name,
        grid,
        spec.units,
        max(spec.unit_flops_per_s, grid.pcus * grid.pcu_flops_per_s),
        peak,
        peak * tier.share,
        spec.peers.achieved_bytes_per_s if spec.peers else grid.p2p_bytes_per_s,
        spec.peers.latency_s if spec.peers else 0.0,
        spec.launch_s(orchestration),
        spec.launch_s(orchestration, 1.0),
    )

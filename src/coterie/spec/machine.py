"""MachineSpec: the description of a device that policies may read. Tiers are listed nearest first.

Knows nothing about where the numbers come from (machines/*.toml and this_machine.py say that).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tier:
    """A memory. `bytes_per_s` is its read bandwidth, 0 where unknown."""

    name: str
    capacity_bytes: int
    bytes_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class Link:
    """The way between two tiers, from `src` to `dst`. A copy draws on the bandwidth of both tiers too."""

    src: str
    dst: str
    bytes_per_s: float
    latency_s: float
    source: str


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A device: peak arithmetic, tiers nearest first, links, launch costs, and the rule set by which it fuses.

    `run_tier`: where programs read weights; `home_tier`: the lowest, where every expert has its bytes.
    Source of the three-tier form: the paper, section IV; launch kinds: section IV-D.
    """

    name: str
    flops_per_s: float
    flops_source: str
    tiers: tuple[Tier, ...]
    links: tuple[Link, ...]
    launch_host_s: float
    launch_device_s: float
    launch_source: str
    rule_set: str
    units: int = 1
    notes: tuple[str, ...] = field(default=())

    def tier(self, name: str) -> Tier:
        """The tier of that name. Raises KeyError."""
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise KeyError(f"{self.name} has no tier {name}; it has {', '.join(t.name for t in self.tiers)}")

    def link(self, src: str, dst: str) -> Link:
        """The link from `src` to `dst`. Raises KeyError."""
        for link in self.links:
            if (link.src, link.dst) == (src, dst):
                return link
        raise KeyError(f"{self.name} has no link {src} -> {dst}")

    @property
    def weight_tiers(self) -> tuple[str, ...]:
        """Tiers that hold whole experts, nearest first: all but sram."""
        return tuple(t.name for t in self.tiers if t.name != "sram")

    @property
    def run_tier(self) -> str:
        """The tier from which an expert runs."""
        return self.weight_tiers[0]

    @property
    def home_tier(self) -> str:
        """The lowest tier."""
        return self.weight_tiers[-1]

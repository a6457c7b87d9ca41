"""Utilisation of a modelled device's resources and lanes during a run, and the bottleneck.

Knows nothing about experts or requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coterie.devices.modelled.device import COMPUTE_LANE, ModelledDevice
from coterie.devices.modelled.transfer import resources

SATURATED = 0.9  # a lane occupied for a larger share of the time is the bottleneck


@dataclass(frozen=True, slots=True)
class Use:
    """The use of resources and lanes up to time `elapsed_s`.

    `drawn_s`: for each resource, the time that its traffic would take at full rate. `lanes_s`: how long each lane was
    occupied (a program that waits for weights occupies its lane).
    """

    elapsed_s: float
    drawn_s: Mapping[str, float]
    lanes_s: Mapping[str, float]

    def since(self, before: Use) -> Use:
        """The use since an earlier time."""
        return Use(
            self.elapsed_s - before.elapsed_s,
            {name: seconds - before.drawn_s.get(name, 0.0) for name, seconds in self.drawn_s.items()},
            {name: seconds - before.lanes_s.get(name, 0.0) for name, seconds in self.lanes_s.items()},
        )

    def share(self, seconds: float) -> float:
        """Seconds as a share of the elapsed time."""
        return seconds / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def utilisation(self) -> dict[str, float]:
        """Utilisation of each resource: compute, tiers, links."""
        return {name: self.share(seconds) for name, seconds in self.drawn_s.items()}

    @property
    def occupied(self) -> dict[str, float]:
        """Share of the time in which each lane had active work."""
        return {name: self.share(seconds) for name, seconds in self.lanes_s.items()}

    @property
    def bound(self) -> str:
        """The bottleneck, in words: a saturated link, saturated steps, or the offered load."""
        busy = self.occupied
        links = {name: share for name, share in busy.items() if name != COMPUTE_LANE}
        link = max(links, key=lambda name: links[name], default="")
        if link and links[link] >= SATURATED:
            return f"switches: the link {link} is busy {links[link]:.0%} of the time"
        steps = busy.get(COMPUTE_LANE, 0.0)
        if steps < SATURATED:
            beside = f", {link} {links[link]:.0%}" if links.get(link, 0.0) >= 0.005 else ""
            return f"the load: steps run {steps:.0%} of the time{beside}"
        shares = {name: share for name, share in self.utilisation.items() if not name.startswith("link")}
        most = max(shares, key=lambda name: shares[name])
        rest = "" if shares[most] > 0.5 else "; the rest is launches and waits for weights"
        return f"steps: they run {steps:.0%} of the time, and use {shares[most]:.0%} of {most}{rest}"


def used(device: ModelledDevice) -> Use:
    """The use up to now. Lanes of copies within a tier are left out."""
    capacity = resources(device.spec)
    drawn = {name: usage.drawn / capacity[name] for name, usage in device.usage().items()}
    here = {f"{tier.name}->{tier.name}" for tier in device.spec.tiers}
    return Use(device.now(), drawn, {lane: busy for lane, busy in device.lane_busy_s().items() if lane not in here})

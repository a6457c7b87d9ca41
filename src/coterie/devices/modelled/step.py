"""The time of a step, region by region: launch, overlapped work, exposed parts; in total, and with layers looped.

Knows nothing about how a region is priced (price.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class RegionTime:
    """One region of a step: launch, then the longest of compute and each tier's traffic, then what is not overlapped.

    `memory_s`: by tier, with `peers` for overlapped traffic between units. `fill_s`: filling and draining a pipeline,
    and stalls in it. `collective_s`: the exposed time of exchanges. `bound`: what takes longest. `provenance` of its
    speed: measured, interpolated, transferred, carried over (from other machines) or analytic (the machine file's own
    numbers).

    `repeat_s`: total time of a mapped section that repeats the one before it, if the kernel loops over layers (arXiv
    2410.23668): no launch, and the pipeline is refilled while the previous section drains.
    """

    region: str
    kernel: str
    stage: str
    launch_s: float
    compute_s: float
    memory_s: Mapping[str, float]
    collective_s: float
    fill_s: float
    provenance: str
    repeat_s: float | None = None

    @property
    def work_s(self) -> float:
        """Compute and memory, overlapped."""
        return max(self.compute_s, *self.memory_s.values())

    @property
    def seconds(self) -> float:
        """Total time."""
        return self.launch_s + self.work_s + self.fill_s + self.collective_s

    @property
    def bound(self) -> str:
        """`launch`, `compute`, `collective`, `fill` or the name of a tier."""
        parts = {"compute": self.compute_s, **self.memory_s, "launch": self.launch_s, "collective": self.collective_s}
        parts["fill"] = self.fill_s
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step: its regions in order, host time between steps, and the minimum host time to issue a step."""

    rows: tuple[RegionTime, ...]
    host_s: float
    floor_s: float = 0.0

    @property
    def seconds(self) -> float:
        """Total time. The device's work overlaps with the host's issuing of it; the longer one counts."""
        return self.host_s + max(self.floor_s, sum(row.seconds for row in self.rows))

    @property
    def looped_s(self) -> float:
        """Total time if kernels loop over consecutive identical mapped sections."""
        total = self.rows[0].seconds
        for before, row in pairwise(self.rows):
            equal = row.repeat_s is not None and replace(row, region=before.region, stage=before.stage) == before
            total += row.repeat_s if equal and row.repeat_s is not None else row.seconds
        return self.host_s + max(self.floor_s, total)

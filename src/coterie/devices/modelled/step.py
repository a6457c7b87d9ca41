"""What a step takes, region by region: launches, work, what nothing hides; in sum, and with layers in a loop.

Knows nothing about how a region is priced (price.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class RegionTime:
    """One region of a step: launch, then the longest of compute and each tier's bytes, then what nothing hides.

    `memory_s` is by tier, and `peers` for bytes that stream between units meanwhile; `fill_s` fills and drains a
    pipeline, and waits in it; `collective_s` is what exchanges expose. `bound` names what takes longest; `provenance`
    says where its speed is from: measured, interpolated, transferred, carried over (from other machines) or analytic
    (the machine file's own numbers).

    `again_s` is all of a mapped section behind an equal one, where the kernel loops over layers (arXiv 2410.23668): no
    launch, and its first tiles fill the pipeline meanwhile.
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
    again_s: float | None = None

    @property
    def work_s(self) -> float:
        """Compute and memory at once."""
        return max(self.compute_s, *self.memory_s.values())

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.launch_s + self.work_s + self.fill_s + self.collective_s

    @property
    def bound(self) -> str:
        """`launch`, `compute`, `collective`, `fill` or the name of a tier."""
        parts = {"compute": self.compute_s, **self.memory_s, "launch": self.launch_s, "collective": self.collective_s}
        parts["fill"] = self.fill_s
        return max(parts, key=lambda name: parts[name])


@dataclass(frozen=True, slots=True)
class StepTime:
    """A step: its regions in order, what software does between two steps, and how long it takes to issue one."""

    rows: tuple[RegionTime, ...]
    host_s: float
    floor_s: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it: the device runs beside the software that issues its kernels, and waits for it at the end."""
        return self.host_s + max(self.floor_s, sum(row.seconds for row in self.rows))

    @property
    def looped_s(self) -> float:
        """All of it where kernels loop over equal mapped sections that follow each other."""
        total = self.rows[0].seconds
        for before, row in pairwise(self.rows):
            equal = row.again_s is not None and replace(row, region=before.region, stage=before.stage) == before
            total += row.again_s if equal and row.again_s is not None else row.seconds
        return self.host_s + max(self.floor_s, total)

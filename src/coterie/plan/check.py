"""Check: lets the simulation judge a plan: so many machines keep the promise, one fewer does not.

Each machine is an engine of its own, with its own part of the requests. Knows nothing about how plans are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coterie.core.errors import UsageError
from coterie.plan.outcome import tpots
from coterie.plan.place import Placement
from coterie.plan.simulate import Case, simulate
from coterie.plan.slo import Slo
from coterie.plan.workload import Workload

STEPS = 8  # how many counts are tried at most


@dataclass(frozen=True, slots=True)
class Check:
    """What the simulation said: `machines` is the smallest count that it found, `kept` the share by count.

    `planned` is what was asked about; where they differ the formulas were wrong by that much.
    """

    planned: int
    machines: int
    kept: dict[int, float]

    @property
    def agrees(self) -> bool:
        """True when the planned count was right."""
        return self.machines == self.planned


def check(
    case: Case, workload: Workload, slo: Slo, planned: int, least: int, placed: Callable[[int], Placement]
) -> Check:
    """Simulate the planned count and its neighbours, from `least` on, until the smallest that will do is known.

    `placed` gives a placement for a count. Raises UsageError when STEPS counts do not show it.
    """
    kept: dict[int, float] = {}

    def keeps(count: int) -> bool:
        if count not in kept:
            kept[count] = kept_by(case, workload, slo, placed(count))
        return kept[count] >= slo.share

    count = planned
    for _ in range(STEPS):
        if not keeps(count):
            count += 1
        elif count > least and keeps(count - 1):
            count -= 1
        else:
            return Check(planned, count, kept)
    tried = ", ".join(f"{n} keep it for {share:.1%}" for n, share in sorted(kept.items()))
    fact = f"after {STEPS} counts of machines the smallest that keeps the promise is not known: {tried}"
    raise UsageError("--check", fact, "ask for fewer --requests, or without --check")


def kept_by(case: Case, workload: Workload, slo: Slo, placement: Placement) -> float:
    """The share of all requests to which these machines together keep the promise."""
    kept = 0
    for mine in placement.split(workload):
        if len(mine):
            part = workload.only(mine)
            served = simulate(case, part)
            kept += int(np.count_nonzero(slo.kept(served.first_s, tpots(part, served), served.last_s)))
    return kept / len(workload)

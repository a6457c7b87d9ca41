"""Check: lets the simulation judge how many machines keep the promise, from the formulas' count on.

    count kept -> fewer, in growing steps, until one is not kept      count not kept -> more, in the same way
    between the two, by halving: N is kept, N - 1 is not

Each machine is an engine of its own, with its own part of the requests. Knows nothing about how plans are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from coterie.core.errors import UsageError
from coterie.devices.modelled.device import COMPUTE_LANE
from coterie.plan.capacity import State
from coterie.plan.mix import F64
from coterie.plan.outcome import tpots
from coterie.plan.place import Placement
from coterie.plan.simulate import Case, Served, simulate
from coterie.plan.slo import Slo
from coterie.plan.workload import Workload

TRIES = 20  # counts that are simulated at most


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of all requests on so many machines: `kept`, the share to whom the promise was kept, and the state.

    Times hold for the promise's share of all requests; `steps` and `link` are those of the machine that is busiest by
    either, and `bound` says in words what bounds it.
    """

    placement: Placement
    kept: float
    state: State
    bound: str


@dataclass(frozen=True, slots=True)
class Check:
    """`machines` keep the promise, and one fewer do not or cannot hold the experts; `judged`, by count, shows it.

    `planned` is what was asked about; where they differ the formulas were wrong by that much.
    """

    planned: int
    machines: int
    judged: dict[int, Judged]

    @property
    def agrees(self) -> bool:
        """True when the planned count was right."""
        return self.machines == self.planned

    @property
    def found(self) -> Judged:
        """The count that keeps the promise."""
        return self.judged[self.machines]


def check(
    case: Case, workload: Workload, slo: Slo, planned: int, least: int, placed: Callable[[int], Placement]
) -> Check:
    """Simulate the planned count and others, from `least` on, until the smallest that will do is known.

    `placed` gives a placement for a count. Raises UsageError when TRIES counts do not show it.
    """
    judged: dict[int, Judged] = {}

    def keeps(count: int) -> bool:
        if count not in judged:
            if len(judged) == TRIES:
                raise _unknown(judged)
            judged[count] = judge(case, workload, slo, placed(count))
        return judged[count].kept >= slo.share

    fails, enough, step = least - 1, planned, 1
    while not keeps(enough):
        fails, enough, step = enough, enough + step, 2 * step
    while enough - fails > 1:
        step = max(1, planned - enough)
        count = (enough + fails) // 2 if fails in judged else max(enough - step, least)
        if keeps(count):
            enough = count
        else:
            fails = count
    return Check(planned, enough, judged)


def _unknown(judged: dict[int, Judged]) -> UsageError:
    tried = ", ".join(f"{n} keep it for {judged[n].kept:.1%}" for n in sorted(judged))
    fact = f"after {TRIES} counts of machines the smallest that keeps the promise is not known: {tried}"
    return UsageError("--check", fact, "promise less, or ask without --check")


def judge(case: Case, workload: Workload, slo: Slo, placement: Placement) -> Judged:
    """Simulate these machines, each with its own part of the requests, and take their outcomes together."""
    parts = [workload.only(mine) for mine in placement.split(workload) if len(mine)]
    runs = [simulate(case, part) for part in parts]
    first_s, last_s = (np.concatenate([getattr(run, name) for run in runs]) for name in ("first_s", "last_s"))
    tpot_s = np.concatenate([tpots(part, run) for part, run in zip(parts, runs, strict=True)])
    ranks = np.concatenate([part.ranks for part in parts])
    first_s, last_s, tpot_s = (times[ranks == ranks.min()] for times in (first_s, last_s, tpot_s))  # who is promised
    busiest = max(runs, key=lambda run: max(_occupied(run)))
    steps, link = _occupied(busiest)
    state = State(
        ttft_s=_quantile(first_s, slo.share),
        tpot_s=_quantile(tpot_s, slo.share),
        e2e_s=_quantile(last_s, slo.share),
        steps=steps,
        link=link,
        hit_rate=float(np.concatenate([run.hit for run in runs]).mean()),
        switches_per_s=busiest.metrics.switches / busiest.elapsed_s,
    )
    return Judged(placement, float(slo.kept(first_s, tpot_s, last_s).mean()), state, busiest.use.bound)


def _occupied(run: Served) -> tuple[float, float]:
    """The shares of the time in which steps ran, and in which the busiest link was busy."""
    busy = run.use.occupied
    links = [share for name, share in busy.items() if name != COMPUTE_LANE]
    return busy.get(COMPUTE_LANE, 0.0), max(links, default=0.0)


def _quantile(values: F64, share: float) -> float:
    return float(np.quantile(values, share, method="inverted_cdf"))

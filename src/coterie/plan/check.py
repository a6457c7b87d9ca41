"""Verifies a plan by simulation: finds the smallest number of machines that meets the SLO, starting at the formulas'.

    SLO met at the count -> try fewer, in growing steps, until it is missed      missed -> try more, likewise
    then bisect: N machines meet it, N - 1 do not

Each machine is simulated as a separate engine with its own part of the requests. The plan then takes its count,
placement, times and bottleneck from the simulation; what only the formulas can give (the curve, helpful upgrades) is
computed at the load at which they agree with the simulation. Knows nothing about how plans are made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from coterie.composition.composition import Composition
from coterie.core.errors import UsageError
from coterie.devices.modelled.device import COMPUTE_LANE
from coterie.models.model import Model
from coterie.plan.candidates import Goal
from coterie.plan.capacity import State
from coterie.plan.mix import F64
from coterie.plan.outcome import tpots
from coterie.plan.place import Placement
from coterie.plan.prices import Machine, Pricer
from coterie.plan.simulate import Case, Served, simulate
from coterie.plan.size import Answer, bound_by, curve_over, smallest, upgrades
from coterie.plan.slo import Slo
from coterie.plan.workload import Workload

TRIES = 20  # maximal number of counts to simulate


@dataclass(frozen=True, slots=True)
class Judged:
    """The simulated outcome for one number of machines. `attained`: share of requests that met the SLO.

    Times in `state` are quantiles at the SLO's share of all requests; `steps` and `link` are those of the machine that
    is busiest by either; `bound`: its bottleneck, in words.
    """

    placement: Placement
    attained: float
    state: State
    bound: str


@dataclass(frozen=True, slots=True)
class Check:
    """The result: `machines` meet the SLO, and one fewer miss it or cannot hold the experts. `judged`: by count.

    `planned`: the formulas' count; any difference is their error.
    """

    planned: int
    machines: int
    judged: dict[int, Judged]

    @property
    def agrees(self) -> bool:
        """True if the planned count was right."""
        return self.machines == self.planned

    @property
    def found(self) -> Judged:
        """The outcome at the count that meets the SLO."""
        return self.judged[self.machines]


def check(
    case: Case, workload: Workload, slo: Slo, planned: int, minimum: int, placed: Callable[[int], Placement]
) -> Check:
    """Simulate the planned count and others, at least `minimum`, until the smallest sufficient one is known.

    `placed`: the placement for a count. Raises UsageError if that takes more than TRIES simulations.
    """
    judged: dict[int, Judged] = {}

    def keeps(count: int) -> bool:
        if count not in judged:
            if len(judged) == TRIES:
                raise _unknown(judged)
            judged[count] = judge(case, workload, slo, placed(count))
        return judged[count].attained >= slo.share

    fails, enough, step = minimum - 1, planned, 1
    while not keeps(enough):
        fails, enough, step = enough, enough + step, 2 * step
    while enough - fails > 1:
        step = max(1, planned - enough)
        count = (enough + fails) // 2 if fails in judged else max(enough - step, minimum)
        if keeps(count):
            enough = count
        else:
            fails = count
    return Check(planned, enough, judged)


def _unknown(judged: dict[int, Judged]) -> UsageError:
    tried = ", ".join(f"{n} keep it for {judged[n].attained:.1%}" for n in sorted(judged))
    fact = f"after {TRIES} counts of machines the smallest that meets the SLO is not known: {tried}"
    return UsageError("--check", fact, "relax --slo, or leave out --check")


def judge(case: Case, workload: Workload, slo: Slo, placement: Placement) -> Judged:
    """Simulate the machines of a placement, each with its own part of the requests, and combine the outcomes."""
    parts = [workload.only(mine) for mine in placement.split(workload) if len(mine)]
    runs = [simulate(case, part) for part in parts]
    first_s, last_s = (np.concatenate([getattr(run, name) for run in runs]) for name in ("first_s", "last_s"))
    tpot_s = np.concatenate([tpots(part, run) for part, run in zip(parts, runs, strict=True)])
    ranks = np.concatenate([part.ranks for part in parts])
    first_s, last_s, tpot_s = (times[ranks == ranks.min()] for times in (first_s, last_s, tpot_s))  # SLO: best priority
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
    return Judged(placement, float(slo.met_by(first_s, tpot_s, last_s).mean()), state, busiest.use.bound)


def _occupied(run: Served) -> tuple[float, float]:
    """The utilisations of the compute lane and of the busiest link."""
    busy = run.use.occupied
    links = [share for name, share in busy.items() if name != COMPUTE_LANE]
    return busy.get(COMPUTE_LANE, 0.0), max(links, default=0.0)


def _quantile(values: F64, share: float) -> float:
    return float(np.quantile(values, share, method="inverted_cdf"))


FARTHEST = 16.0  # the load is scaled by up to this factor, up or down, to make the formulas agree
HALVINGS = 8


def follow(answer: Answer, result: Check, composition: Composition, models: Mapping[str, Model], goal: Goal) -> Answer:
    """Update an answer with the simulation's results; the formulas' count stays in `estimate`."""
    machine, count, found = answer.machine, result.machines, result.found
    if count != answer.estimate:
        load = matching_load(machine, goal, count)
        curve = curve_over(machine, replace(goal, rate=goal.rate * (load or 1.0)))
        answer = replace(
            answer,
            helps=upgrades(Pricer(composition, models, goal.demand), machine, goal, found.placement),
            # If the formulas agree at no load, correct at least the point that was asked about.
            curve=tuple((e, count if load is None and e == len(goal.shares) else n) for e, n in curve),
            curve_load=load or 1.0,
        )
    return replace(answer, placement=found.placement, worst=found.state, bound=_bound(machine, goal, result))


def matching_load(machine: Machine, goal: Goal, count: int) -> float | None:
    """The load factor nearest to 1 at which the formulas give this count; None if there is none."""

    def says(factor: float) -> int:
        return smallest(machine, replace(goal, rate=goal.rate * factor))

    now = says(1.0)
    near, far = 1.0, 1 / FARTHEST if now > count else FARTHEST
    found = 1.0 if now == count else None
    for _ in range(0 if found else HALVINGS):
        middle = (near * far) ** 0.5
        value = says(middle)
        if value == count:
            found, far = middle, middle
        elif (value > count) == (now > count):
            near = middle
        else:
            far = middle
    return found


def _bound(machine: Machine, goal: Goal, result: Check) -> str:
    other = result.judged.get(max(result.machines - 1, 1))
    if other is not None and result.machines > 1 and max(other.state.excess(goal.slo).values()) <= 1:
        return f"the limits together: {result.machines - 1} keep them for {other.attained:.1%} of the requests"
    return bound_by(machine, goal, result.machines, other.state if other else None, other.bound if other else "")

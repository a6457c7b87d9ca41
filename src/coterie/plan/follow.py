"""Follow: a plan whose count, placement, times and bound are the simulation's, with the formulas' count beside it.

What only formulas can say, the curve and what would help, is computed for those machines: at the load at which the
formulas say what the simulation said.

Knows nothing about how either came to its count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from coterie.composition.composition import Composition
from coterie.models.model import Model
from coterie.plan.check import Check
from coterie.plan.prices import Machine, Pricer
from coterie.plan.size import Answer, Goal, bound_by, curve_over, smallest, upgrades

FARTHEST = 16.0  # times the load, up or down, where formulas are asked to say what the simulation said
HALVINGS = 8


def follow(answer: Answer, said: Check, composition: Composition, models: Mapping[str, Model], goal: Goal) -> Answer:
    """The answer as the simulation has it; `answer` keeps its count as `estimate`."""
    machine, count, found = answer.machine, said.machines, said.found
    if count != answer.estimate:
        load = matching_load(machine, goal, count)
        curve = curve_over(machine, replace(goal, rate=goal.rate * (load or 1.0)))
        answer = replace(
            answer,
            helps=upgrades(Pricer(composition, models, goal.demand), machine, goal, found.placement),
            # Where no load makes the formulas agree, at least the number that was asked about is right.
            curve=tuple((e, count if load is None and e == len(goal.shares) else n) for e, n in curve),
            curve_load=load or 1.0,
        )
    return replace(answer, placement=found.placement, worst=found.state, bound=_bound(machine, goal, said))


def matching_load(machine: Machine, goal: Goal, count: int) -> float | None:
    """The factor nearest 1 on the load at which the formulas say this count; None where there is none."""

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


def _bound(machine: Machine, goal: Goal, said: Check) -> str:
    other = said.judged.get(max(said.machines - 1, 1))
    if other is not None and said.machines > 1 and max(other.state.excess(goal.slo).values()) <= 1:
        return f"the limits together: {said.machines - 1} keep them for {other.kept:.1%} of the requests"
    return bound_by(machine, goal, said.machines, other.state if other else None, other.bound if other else "")

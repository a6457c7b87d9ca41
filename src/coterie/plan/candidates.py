"""Candidate placements on a given number of machines, and how close each comes to the limits of the SLO.

Knows nothing about which numbers of machines are tried (size.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coterie.core.errors import CapacityError
from coterie.plan.capacity import State, state
from coterie.plan.mix import F64
from coterie.plan.place import Placement, place
from coterie.plan.prices import Demand, Machine
from coterie.plan.slo import Slo

GROWN = 2  # largest number of machines that may be added to a smaller placement by splitting


@dataclass(frozen=True, slots=True)
class Goal:
    """The planning goal: each expert's share of the requests, requests per second, and an SLO.

    `resident`: keep every expert in the run tier of its machine, so that no request waits for a switch.
    """

    shares: F64
    rate: float
    slo: Slo
    demand: Demand
    resident: bool = False


def load_of_experts(machine: Machine, goal: Goal) -> F64:
    """Each expert's load: its share of requests times the service time of one, relative to the slowest shape's."""
    alone_s = machine.steps.prefill_s + max(0.0, goal.demand.new_tokens - 1) * machine.steps.decode_s
    found: F64 = goal.shares * (alone_s / alone_s[machine.shape].max())[machine.shape]
    return found


def room_for(machine: Machine, goal: Goal) -> int:
    """Bytes available for experts on a machine; if all have the same size, rounded down to whole experts."""
    room, sizes = machine.near_bytes if goal.resident else machine.home_bytes, machine.sizes
    whole = room // sizes[0] * sizes[0] if 0 < min(sizes) == max(sizes) else room
    return whole or max(room, 1)


def by_rule(machine: Machine, goal: Goal, count: int) -> Placement:
    """The candidate placement that stays furthest from the limits."""
    return min(
        by_rules(machine, goal, count, grown=True), key=lambda found: max(max_excess(machine, goal, found).values())
    )


def by_rules(machine: Machine, goal: Goal, count: int, grown: bool = False) -> Iterator[Placement]:
    """Greedy placements by both replication rules; with one rule alone, more machines may do worse than fewer.

    `grown`: also placements on slightly fewer machines with the most loaded ones split, so that adding machines never
    makes it worse.
    """
    sizes, load, room = machine.sizes, load_of_experts(machine, goal), room_for(machine, goal)
    found = place(sizes, load, count, room, solver=False)
    yield found
    if found.replicated:
        yield place(sizes, load, count, room, solver=False, even=False)
    for more in range(1, min(GROWN, count - 1) + 1) if grown else ():
        try:
            for less in by_rules(machine, goal, count - more):
                yield _split(machine, goal, less, more)
        except CapacityError:
            return


def _split(machine: Machine, goal: Goal, placement: Placement, more: int) -> Placement:
    """Add machines, each of which takes over half the work of the one closest to a limit."""
    for _ in range(more):
        placement = placement.split_machine(nearest(machine, goal, placement)[0], load_of_experts(machine, goal))
    return placement


def enough(machine: Machine, goal: Goal, count: int, grown: bool = False) -> bool:
    """Whether any placement on `count` machines meets the SLO; False also if they cannot hold the experts."""
    try:
        return any(keeps(machine, goal, found) for found in by_rules(machine, goal, count, grown))
    except CapacityError:
        return False


def keeps(machine: Machine, goal: Goal, placement: Placement, rate: float | None = None) -> bool:
    """Whether the most loaded machines meet the SLO; stops at the first that does not."""
    return all(found.meets(goal.slo) for _, found in busy_states(machine, goal, placement, rate))


def worst_of(machine: Machine, goal: Goal, placement: Placement, rate: float | None = None) -> State:
    """The state of the machine closest to a limit."""
    return nearest(machine, goal, placement, rate)[1]


def nearest(machine: Machine, goal: Goal, placement: Placement, rate: float | None = None) -> tuple[int, State]:
    """The machine closest to a limit, and its state."""
    states = busy_states(machine, goal, placement, rate)
    return max(states, key=lambda found: max(found[1].excess(goal.slo).values()))


def max_excess(machine: Machine, goal: Goal, placement: Placement) -> dict[str, float]:
    """For each limit, the largest ratio of value to limit over the machines."""
    found = [busy.excess(goal.slo) for _, busy in busy_states(machine, goal, placement)]
    return {name: max(excess[name] for excess in found) for name in found[0]}


def busy_states(
    machine: Machine, goal: Goal, placement: Placement, rate: float | None = None
) -> Iterator[tuple[int, State]]:
    """The states of the machines most likely to be closest to a limit.

    These are the most loaded one for each number of experts held, the most loaded one for each shape, and the one with
    the most load besides its heaviest expert.
    """
    loads = placement.loads(load_of_experts(machine, goal))
    has = placement.share > 0
    held = has.sum(axis=0)
    alike = [held == count for count in np.unique(held[held > 0])[::-1]]
    alike += [has[machine.shape == shape].any(axis=0) for shape in np.unique(machine.shape)]
    some = [int(np.where(which, loads, -1).argmax()) for which in alike]
    # An expert's tokens wait for the steps of all others, so consider where the others have most to do.
    parts = placement.share * load_of_experts(machine, goal)[:, None]
    some.append(int((loads - parts.max(axis=0)).argmax()))
    total = goal.rate if rate is None else rate
    for m in dict.fromkeys(some):
        here = np.flatnonzero(placement.share[:, m] > 0)
        rates = total * goal.shares[here] * placement.share[here, m]
        yield m, state(machine.of(here), goal.demand, rates, goal.slo.share)

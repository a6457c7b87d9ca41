"""Sizing: the smallest number of identical machines for experts, a load and an SLO; the bottleneck; what would help.

    place on n -> states of the most loaded machines -> is the SLO met?      the smallest n, by bisection

Knows nothing about events: it uses the formulas of capacity.py, which `check` verifies by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coterie.composition.composition import Composition
from coterie.core.errors import CapacityError, UsageError
from coterie.core.units import format_bytes, format_seconds
from coterie.engine.policy import memories_below
from coterie.models.model import Model
from coterie.plan.candidates import (
    Goal,
    by_rule,
    enough,
    keeps,
    load_of_experts,
    max_excess,
    room_for,
    worst_of,
)
from coterie.plan.capacity import State, state
from coterie.plan.mix import F64
from coterie.plan.place import SAME, Placement, place
from coterie.plan.prices import Machine, Pricer
from coterie.spec.machine import MachineSpec

MAX_MACHINES = 4096
FEWER = 2  # after bisection, stop once this many counts below the smallest sufficient one have failed
BETTER = 1.5  # factor by which a component is improved to see what would help
WORDS = {"steps": "the time of steps", "link": "the link by which experts come up"}  # limits that are not in the SLO
CURVE = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0, 6.0)  # multiples of the number of experts


@dataclass(frozen=True, slots=True)
class Answer:
    """The number of machines and the placement.

    `worst`: state of the machine closest to a limit; `bound`: why one machine fewer is not enough.
    `estimate`: the formulas' count, which a simulation may have corrected. The rest is always from the formulas:
    `helps`: improvements that raise the sustainable load, best first: (what, factor). `curve`: (experts, machines) for
    other numbers of experts, with 0 machines if the SLO cannot be met; computed at `curve_load` times the load, where
    the formulas agree with the simulation for the actual number.
    """

    estimate: int
    machine: Machine
    placement: Placement
    worst: State
    bound: str
    helps: tuple[tuple[str, float], ...]
    curve: tuple[tuple[int, int], ...]
    curve_load: float = 1.0


def size(spec: MachineSpec, composition: Composition, models: Mapping[str, Model], goal: Goal) -> Answer:
    """Find the smallest sufficient number of machines, by the formulas.

    Raises CapacityError if an expert does not fit, UsageError if no number of machines meets the SLO; both name the
    limit, by how much it is missed, and what to change.
    """
    pricer = Pricer(composition, models, goal.demand)
    machine = pricer.machine(spec)
    _check_possible(machine, goal)
    count = smallest(machine, goal)
    placement = placed(machine, goal, count)
    worst = worst_of(machine, goal, placement)
    helps = upgrades(pricer, machine, goal, placement)
    bound = bound_by(machine, goal, count, worst if count == 1 else _one_fewer(machine, goal, count))
    return Answer(count, machine, placement, worst, bound, helps, curve_over(machine, goal))


def placed(machine: Machine, goal: Goal, count: int) -> Placement:
    """The placement on `count` machines: the solver's, unless the greedy one is better in any limit of the SLO.

    Machines are counted by the greedy placement. The solver balances loads, which is not all that matters.
    """
    found = place(machine.sizes, load_of_experts(machine, goal), count, room_for(machine, goal))
    greedy = by_rule(machine, goal, count)
    if found.method == "greedy":
        return replace(greedy, why=found.why)
    most, rule = (max_excess(machine, goal, placement) for placement in (found, greedy))
    worse = [name for name in rule if name not in WORDS and most[name] > rule[name] * (1 + SAME)]
    if not worse:
        return found
    return replace(greedy, why=f"what the solver found has the least load, and {worse[0]} is worse by it")


def smallest(machine: Machine, goal: Goal) -> int:
    """The smallest sufficient number of machines. Raises UsageError when MAX_MACHINES are not enough."""
    low = fewest(machine.sizes, load_of_experts(machine, goal), room_for(machine, goal))
    if enough(machine, goal, low):
        return low
    step, high = 1, low + 1
    while not enough(machine, goal, high):
        if high >= MAX_MACHINES:
            raise _never(machine, goal, high)
        low, step = high, 2 * step
        high = min(high + step, MAX_MACHINES)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(machine, goal, middle) else (middle, high)
    return _fewer(machine, goal, high)


def _fewer(machine: Machine, goal: Goal, count: int) -> int:
    """Search below a sufficient count: sufficiency is not monotonic, so bisection may have missed a smaller one.

    Tries the next few counts, also with placements that split machines, until none is sufficient.
    """
    found, below = count, count - 1
    while below > 0 and found - below <= FEWER:
        if enough(machine, goal, below, grown=True):
            found = below
        below -= 1
    return found


def _never(machine: Machine, goal: Goal, count: int) -> UsageError:
    """The error when MAX_MACHINES are not enough."""
    placement = by_rule(machine, goal, count)
    name, factor = max(worst_of(machine, goal, placement).excess(goal.slo).items(), key=lambda item: item[1])
    fact = f"{count} machines do not keep {goal.slo} at {goal.rate:g} requests/s"
    limit = f"{WORDS.get(name, name)} of the busiest is {factor:.3g} times what it may be"
    return UsageError(f"plan on {machine.spec.name}", f"{fact}: {limit}", "lower --rate or relax --slo")


def min_for_memory(total_bytes: int, room_bytes: int) -> int:
    """Machines needed to hold these bytes, if they can be divided arbitrarily: the rule of Figure 13."""
    return max(1, -(-total_bytes // room_bytes))


def fewest(sizes: Sequence[int], load: F64, room_bytes: int) -> int:
    """Machines needed to hold these experts, each in one piece."""
    count = min_for_memory(sum(sizes), room_bytes)
    if min(sizes) == max(sizes):  # exact, since `room_for` is a multiple of the size then
        return count
    while max(sizes) <= room_bytes and not _holds(sizes, load, count, room_bytes):
        count += 1
    return count


def _holds(sizes: Sequence[int], load: F64, count: int, room_bytes: int) -> bool:
    try:
        place(sizes, load, count, room_bytes, solver=False)
    except CapacityError:
        return False
    return True


def _check_possible(machine: Machine, goal: Goal) -> None:
    """Raise if even the best case misses the SLO: an idle machine on which every expert is resident."""
    where, largest = f"plan on {machine.spec.name}", max(machine.sizes)
    if largest > machine.near_bytes:
        levers = ("smaller experts", f"a machine with more {machine.spec.run_tier}")
        beside = f" beside {format_bytes(machine.bases_bytes)} of bases" if machine.bases_bytes else ""
        raise CapacityError(where, f"the largest expert{beside}", largest, max(machine.near_bytes, 0), levers)
    resident = replace(machine, near_bytes=sum(machine.sizes))
    best = state(resident, goal.demand, 1e-6 * goal.shares, goal.slo.share)
    limits = {"ttft": (best.ttft_s, goal.slo.ttft_s), "tpot": (best.tpot_s, goal.slo.tpot_s),
              "e2e": (best.e2e_s, goal.slo.e2e_s)}  # fmt: skip
    for name, (value, limit) in limits.items():
        if value > limit:
            fact = (
                f"{name} is {format_seconds(value)} on a machine that has nothing else to do, {value / limit:.2f} times"
                f" the {format_seconds(limit)} that the SLO allows; more machines do not change that"
            )
            least = math.ceil(value * 1e6) / 1e6  # whole microseconds, rounded so that it can be kept
            remedy = f"promise {name}={least:g}s or more, or use smaller experts or a faster machine"
            raise UsageError(where, fact, remedy)


def _one_fewer(machine: Machine, goal: Goal, count: int) -> State | None:
    """The worst state with one machine fewer; None if the experts do not fit then."""
    try:
        return worst_of(machine, goal, by_rule(machine, goal, count - 1))
    except CapacityError:
        return None


def bound_by(machine: Machine, goal: Goal, count: int, other: State | None, beside: str = "") -> str:
    """Why one machine fewer is not enough; for a single machine, which limit is closest.

    `other`: the state with one machine fewer, or of the only one; None if fewer cannot hold the experts. `beside`:
    appended, instead of the busiest lane.
    """
    fewer = count - 1
    if other is None:
        lacks = sum(machine.sizes) - room_for(machine, goal) * fewer
        home = "in memory" if memories_below(machine.spec) else f"in {machine.spec.home_tier}"
        what = "in the run tier" if goal.resident else home
        if lacks <= 0:
            return f"memory: {fewer} have the bytes for the experts {what}, but not for each of them in one piece"
        return f"memory: {fewer} would lack {format_bytes(lacks)} for experts {what}"
    excess = other.excess(goal.slo)
    # Overload makes all other limits fail too, so name it first.
    name = next((limit for limit in ("steps", "link") if excess[limit] >= 1), max(excess, key=lambda at: excess[at]))
    if not fewer:
        return f"one machine is enough; {WORDS.get(name, name)} comes nearest to its limit, at {excess[name]:.0%}"
    times = f"{excess[name]:.2f} times" if excess[name] >= 1.005 else "just above"
    most = "there is" if goal.slo.busy == 1 else f"the {goal.slo.busy:.0%} of the time that it may have"
    over = f"more than {most}" if name in WORDS else f"{times} its limit"
    busy = max(("steps", "link"), key=lambda lane: excess[lane])
    if not beside and name not in WORDS:
        beside = f"{WORDS[busy]} is used to {excess[busy]:.0%}"
    return f"{WORDS.get(name, name)}: with {fewer} it is {over}{beside and '; '}{beside}"


def max_rate(machine: Machine, goal: Goal, placement: Placement) -> float:
    """The largest load, in requests per second, at which this placement meets the SLO."""
    if not keeps(machine, goal, placement, 1e-6):
        return 0.0
    low, high = 1e-6, max(goal.rate, 1e-3)
    while keeps(machine, goal, placement, high) and high < 1e9:
        low, high = high, high * 2
    for _ in range(9):
        middle = math.sqrt(low * high) if low > 1e-3 else (low + high) / 2
        low, high = (middle, high) if keeps(machine, goal, placement, middle) else (low, middle)
    return low


def upgrades(pricer: Pricer, machine: Machine, goal: Goal, placement: Placement) -> tuple[tuple[str, float], ...]:
    """The factor by which the load could grow if one component were BETTER times as good, for each component."""
    base = max_rate(machine, goal, placement)
    rates = {what: max_rate(pricer.machine(spec), goal, placement) for what, spec in _better(machine.spec).items()}
    found = [(what, rate / base if base else math.inf) for what, rate in rates.items()]
    return tuple(sorted(found, key=lambda item: -item[1]))


def _better(spec: MachineSpec) -> dict[str, MachineSpec]:
    near = spec.run_tier

    def tier(bandwidth: float = 1.0, capacity: float = 1.0) -> MachineSpec:
        found = spec.tier(near)
        better = replace(
            found, bytes_per_s=found.bytes_per_s * bandwidth, capacity_bytes=int(found.capacity_bytes * capacity)
        )
        return replace(spec, tiers=tuple(better if other.name == near else other for other in spec.tiers))

    links = tuple(replace(link, bytes_per_s=link.bytes_per_s * BETTER) for link in spec.links)
    launches = {name: getattr(spec, name) / BETTER for name in ("launch_host_s", "launch_device_s")}
    return {
        f"{near} bandwidth": tier(bandwidth=BETTER),
        f"{near} capacity": tier(capacity=BETTER),
        f"bandwidth of the links to {near}": replace(spec, links=links),
        "arithmetic": replace(spec, flops_per_s=spec.flops_per_s * BETTER),
        "launch time": replace(spec, **launches),
    }


def curve_over(machine: Machine, goal: Goal) -> tuple[tuple[int, int], ...]:
    """(experts, machines) for the same load on other numbers of experts, with the same distribution by rank."""
    order = np.argsort(-goal.shares, kind="stable")
    found = []
    for experts in dict.fromkeys(max(1, round(factor * len(order))) for factor in CURVE):
        at = np.linspace(0, len(order) - 1, experts)
        shares = np.interp(at, np.arange(len(order)), goal.shares[order])
        other = replace(goal, shares=shares / shares.sum())
        try:
            found.append((experts, smallest(machine.of(order[np.rint(at).astype(np.int64)]), other)))
        except (CapacityError, UsageError):
            found.append((experts, 0))
    return tuple(found)

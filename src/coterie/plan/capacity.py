"""Capacity: what one machine does under a steady load, by formulas in place of events; accurate to tens of percent.

    steps     each group (the router, an expert, adapters of one base) runs in batches: 1 + its rate times its service
    stretch   1 / (1 - share of the time that steps run): who waits for others' steps goes on so much slower, but for no
              longer than it takes to serve every group once, and beside no more groups than share the steps
    switches  a request for an expert that is not resident waits for one transfer and for those before it; requests
              that come for the same expert meanwhile share its transfer

Knows nothing about placements or how many machines there are; `simulate` is what it is checked with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.plan.mix import F64
from coterie.plan.prices import Demand, Machine, Steps
from coterie.plan.slo import Slo
from coterie.plan.together import Groups, groups_of
from coterie.plan.waits import Group, Waits, exponential_quantile

NEARLY_ALL = 0.999  # of the time: more is overload


@dataclass(frozen=True, slots=True)
class State:
    """A machine under load. Times hold for the SLO's share of requests; `steps` and `link` are shares of the time."""

    ttft_s: float
    tpot_s: float
    e2e_s: float
    steps: float
    link: float
    hit_rate: float
    switches_per_s: float

    def excess(self, slo: Slo) -> dict[str, float]:
        """By which factor each limit is exceeded (above 1) or kept."""
        most = NEARLY_ALL * slo.busy
        found = {"steps": self.steps / most, "link": self.link / most}
        limits = {"ttft": (self.ttft_s, slo.ttft_s), "tpot": (self.tpot_s, slo.tpot_s), "e2e": (self.e2e_s, slo.e2e_s)}
        found |= {name: value / limit for name, (value, limit) in limits.items() if limit < math.inf}
        return found

    def kept(self, slo: Slo) -> bool:
        """True when nothing is exceeded."""
        return all(factor <= 1 for factor in self.excess(slo).values())


def state(machine: Machine, demand: Demand, rates: F64, slo_share: float) -> State:
    """The machine when each of its experts is asked for at its rate, per second."""
    total, most = float(rates.sum()), demand.policy.max_batch
    groups, busy, stretch = _balanced(machine, demand, rates)
    batches = _batches(groups.steps, demand.new_tokens, groups.rates, stretch, most)
    service = (stretch * _service(groups.steps, demand.new_tokens, batches))[groups.of]
    resident, switch_s = _resident(machine, rates), machine.switch_s[machine.shape]
    missed = np.where(resident, 0.0, rates)
    link, queue_s = _link(switch_s, missed, service)
    shares = rates / total if total else np.full(len(rates), 1 / len(rates))
    router, routed_s = machine.router, 0.0
    waits = float(shares @ machine.steps.prefill_s[machine.shape])
    if router is not None:
        in_batch = _batches(router, demand.router_tokens, np.array([total]), stretch, most)
        routed_s = float(_service(router, demand.router_tokens, in_batch)[0])
        waits += routed_s
    over = exponential_quantile(slo_share)
    steps_s = _cycle(machine, demand, groups, (stretch - 1) * waits / 2 * over) / over

    def by_shape(of: F64) -> list[float]:
        return [float(sum_) for sum_ in np.bincount(machine.shape, of, len(machine.shape_bytes))]

    hits, misses = (by_shape(np.where(resident == came, shares, 0.0)) for came in (True, False))
    own_s, shape_switch_s = machine.steps.prefill_s.tolist(), machine.switch_s.tolist()
    alike = [Group(*group) for group in zip(own_s, shape_switch_s, hits, misses, strict=True)]
    ttft = routed_s + Waits(alike, steps_s, link, queue_s).quantile(slo_share)
    tpot = _quantile(_tpot(groups, demand, busy, slo_share), groups.rates, slo_share)
    e2e = ttft + tpot * max(0.0, demand.new_tokens - 1)
    moved_s = float(missed @ switch_s)
    switches = link * float(missed.sum()) / moved_s if moved_s else 0.0
    return State(ttft, tpot, e2e, busy, link, 1 - sum(misses), switches)


def _balanced(machine: Machine, demand: Demand, rates: F64) -> tuple[Groups, float, float]:
    """Who shares steps, with the share of the time in which they run, and the stretch.

    How many experts are in a step follows from its batch, and that from what a step costs: found by two turns, from a
    step on in which nearly all sequences are one expert's.
    """
    groups = first = groups_of(machine, rates)
    busy, stretch = _balance(machine, demand, groups)
    for _ in range(2 if first.shared else 0):
        groups = first.beside(_batches(groups.steps, demand.new_tokens, first.rates, stretch, demand.policy.max_batch))
        busy, stretch = _balance(machine, demand, groups)
    return groups, busy, stretch


def _balance(machine: Machine, demand: Demand, groups: Groups) -> tuple[float, float]:
    """The share of the time in which steps run, and the stretch.

    The busier the machine, the larger its batches and the less each token costs: one balance, found by halving.
    """
    low, high = 0.0, NEARLY_ALL
    if _busy(machine, demand, groups, NEARLY_ALL) >= NEARLY_ALL:
        low = _busy(machine, demand, groups, NEARLY_ALL)
    else:
        for _ in range(22):
            middle = (low + high) / 2
            low, high = (middle, high) if _busy(machine, demand, groups, middle) > middle else (low, middle)
    return low, 1 / (1 - min(low, NEARLY_ALL))


def _link(switch_s: F64, missed: F64, service: F64) -> tuple[float, float]:
    """The share of the time in which the link is busy, and the mean wait of those who find it busy.

    The longer they wait the more requests of one expert gather and share its switch, so that it never falls behind for
    good: one balance, found by halving.
    """
    moved_s = float(missed @ switch_s)
    if moved_s <= 0:
        return 0.0, 0.0
    rest_s = float(missed @ switch_s**2) / moved_s / 2  # of the switch under way, when somebody comes
    low, high, wait_s = 0.0, NEARLY_ALL, 0.0
    for _ in range(30):
        middle = (low + high) / 2
        wait_s = rest_s / (1 - middle)
        found = float((missed * switch_s / (1 + missed * (middle * wait_s + switch_s + service))).sum())
        low, high = (middle, high) if found > middle else (low, middle)
    return high, wait_s


def _cycle(machine: Machine, demand: Demand, own: Groups, most_s: float) -> float:
    """Seconds in which every group with work is served once, with all that came for it in the meantime; or `most_s`.

    This bounds the wait for a busy machine's steps: the longer a cycle is the more requests share a step.
    """
    groups = [(own.steps, demand.new_tokens, own.rates)]
    if machine.router is not None:
        groups.append((machine.router, float(demand.router_tokens), np.array([own.rates.sum()])))
    most = demand.policy.max_batch
    own_s = sum(float(_service(g, n, np.ones(1)).max()) for g, n, _ in groups)

    def longer(cycle_s: float) -> bool:
        found = own_s
        for steps, tokens, asked in groups:
            came = asked * cycle_s
            visits = np.maximum(-np.expm1(-came), came / most)
            batches = np.where(visits > 0, came / np.where(visits > 0, visits, 1), 1)
            found += float((visits * _service(steps, tokens, batches)).sum())
        return found > cycle_s

    if longer(most_s):
        return most_s
    low, high = 0.0, most_s
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if longer(middle) else (low, middle)
    return high


def _tpot(groups: Groups, demand: Demand, busy: float, share: float) -> F64:
    """Seconds per later token of each group. Others' steps come between; how many differs from request to request.

    A request that comes in the meantime costs its prefill and the quanta that it gets by the end: half of them. In a
    group of several experts the later tokens of one are made in the steps of all, and come between nobody's.
    """
    later, steps, rates = demand.new_tokens - 1, groups.steps, groups.rates
    if later <= 0:
        return np.zeros(len(rates))
    batches = _batches(steps, demand.new_tokens, rates, 1 / (1 - min(busy, NEARLY_ALL)), demand.policy.max_batch)
    own, several = np.zeros(len(rates)), list(groups.shares)
    prefill_s, prompts = _prefill(steps, batches)
    own[several] = (rates * (_cost(steps, demand.new_tokens, batches) - prefill_s / prompts))[several]
    stretch = 1 / (1 - np.minimum(np.maximum(busy - own, 0.0), NEARLY_ALL))
    step_s = steps.decode_s + (batches - 1) * steps.more_s
    quantum = demand.policy.quantum_steps
    other_s = steps.prefill_s + max(1.0, later / quantum / 2) * quantum * step_s
    more_s = (stretch - 1) * step_s * later
    spread_s = np.sqrt(more_s * other_s)
    slow_s = step_s * stretch + max(0.0, exponential_quantile(share) - 1) * spread_s / later
    # So many groups share the steps, each with a prefill for each of its sequences, whose later steps are shared; the
    # rest wait for their first token.
    turns = min(demand.policy.turns, max(1, int((rates > 0).sum())))
    most_s: F64 = turns * (step_s + batches * steps.prefill_s / later)
    return np.minimum(slow_s, most_s)


def _busy(machine: Machine, demand: Demand, groups: Groups, share: float) -> float:
    """The share of the time in which steps run, were batches those of a machine that is busy for `share`."""
    stretch, most, total = 1 / (1 - min(share, NEARLY_ALL)), demand.policy.max_batch, float(groups.rates.sum())
    steps, rates = groups.steps, groups.rates
    batches = _batches(steps, demand.new_tokens, rates, stretch, most)
    busy = float((rates * _cost(steps, demand.new_tokens, batches)).sum())
    if machine.router is not None:
        in_batch = _batches(machine.router, demand.router_tokens, np.array([total]), stretch, most)
        busy += total * float(_cost(machine.router, demand.router_tokens, in_batch)[0])
    return busy


def _batches(steps: Steps, tokens: float, rates: F64, stretch: float, most: int) -> F64:
    """Mean batches b of groups: b - 1 = rate * stretch * (prefill + (tokens - 1) * step of b), at most `most`."""
    later = max(0.0, tokens - 1)
    grows = 1 - rates * stretch * later * steps.more_s
    alone = rates * stretch * (steps.prefill_s + later * steps.decode_s)
    more = np.where(grows > 0, alone / np.where(grows > 0, grows, 1.0), most)
    batches: F64 = np.minimum(1 + more, most)
    return batches


def _prefill(steps: Steps, batches: F64) -> tuple[F64, F64]:
    """Seconds of a step that takes in the prompts of a batch, and how many they are."""
    prompts: F64 = np.minimum(batches, steps.prompts)
    seconds: F64 = steps.prefill_s + (prompts - 1) * steps.prefill_more_s
    return seconds, prompts


def _service(steps: Steps, tokens: float, batches: F64) -> F64:
    """Seconds of a request's own steps, in a batch."""
    seconds: F64 = _prefill(steps, batches)[0] + max(0.0, tokens - 1) * (steps.decode_s + (batches - 1) * steps.more_s)
    return seconds


def _cost(steps: Steps, tokens: float, batches: F64) -> F64:
    """Seconds of the compute lane that a request takes for itself: its part of its batch's steps."""
    prefill_s, prompts = _prefill(steps, batches)
    others = batches - 1
    # Others come and go: a step is shared by 1 + a Poisson number of them, whose reciprocal's mean is (1 - e^-x) / x.
    part = np.where(others > 1e-9, -np.expm1(-others) / np.maximum(others, 1e-9), 1.0)
    token_s = steps.more_s + (steps.decode_s - steps.more_s) * part
    cost: F64 = prefill_s / prompts + max(0.0, tokens - 1) * token_s
    return cost


def _resident(machine: Machine, rates: F64) -> npt.NDArray[np.bool_]:
    """Who stays in the run tier: bases, and those who are asked for most, as far as there is room."""
    sizes, order = machine.shape_bytes[machine.shape], np.argsort(-rates, kind="stable")
    found = np.zeros(len(rates), dtype=bool)
    found[order] = np.cumsum(sizes[order]) <= machine.near_bytes
    found |= sizes == 0
    return found


def _quantile(values: F64, weights: F64, share: float) -> float:
    """The smallest value that this share of the weight does not exceed."""
    if not weights.sum():
        return float(values.max(initial=0.0))
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)])

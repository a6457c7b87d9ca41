"""A queueing model of one machine under steady load, as an alternative to simulation; accurate to tens of percent.

    steps     each group (the router, an expert, adapters of one base) runs in batches of 1 + rate * service time
    stretch   1 / (1 - utilisation of steps): the slow-down by other groups' steps, bounded by the time to serve every
              group once, and by the number of groups that share the steps
    switches  a request for an expert that is not resident waits for its transfer and for those queued before it;
              requests for the same expert that arrive meanwhile share the transfer

Knows nothing about placements or the number of machines; checked against `simulate`.
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

NEARLY_ALL = 0.999  # utilisation beyond which a machine counts as overloaded


@dataclass(frozen=True, slots=True)
class State:
    """A machine under load. Times are quantiles at the SLO's share of requests; `steps` and `link`: utilisations."""

    ttft_s: float
    tpot_s: float
    e2e_s: float
    steps: float
    link: float
    hit_rate: float
    switches_per_s: float

    def excess(self, slo: Slo) -> dict[str, float]:
        """Ratio of each value to its limit; above 1: exceeded."""
        most = NEARLY_ALL * slo.busy
        found = {"steps": self.steps / most, "link": self.link / most}
        limits = {"ttft": (self.ttft_s, slo.ttft_s), "tpot": (self.tpot_s, slo.tpot_s), "e2e": (self.e2e_s, slo.e2e_s)}
        found |= {name: value / limit for name, (value, limit) in limits.items() if limit < math.inf}
        return found

    def meets(self, slo: Slo) -> bool:
        """True if no limit is exceeded."""
        return all(factor <= 1 for factor in self.excess(slo).values())


def state(machine: Machine, demand: Demand, rates: F64, slo_share: float) -> State:
    """The state of a machine, given the request rate per second of each of its experts."""
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
    """The groups that share steps, the utilisation of steps, and the stretch.

    The number of experts in a step depends on its batch, and the batch on the cost of a step: a fixed point, by two
    iterations from a step that belongs almost entirely to one expert.
    """
    groups = first = groups_of(machine, rates)
    busy, stretch = _balance(machine, demand, groups)
    for _ in range(2 if first.shared else 0):
        groups = first.for_batches(
            _batches(groups.steps, demand.new_tokens, first.rates, stretch, demand.policy.max_batch)
        )
        busy, stretch = _balance(machine, demand, groups)
    return groups, busy, stretch


def _balance(machine: Machine, demand: Demand, groups: Groups) -> tuple[float, float]:
    """The utilisation of steps, and the stretch.

    The busier the machine, the larger its batches and the cheaper each token: the fixed point is found by bisection.
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
    """The utilisation of the link, and the mean wait of requests that find it busy.

    The longer the wait, the more requests for the same expert share its switch, so the link never falls behind
    indefinitely: the fixed point is found by bisection.
    """
    moved_s = float(missed @ switch_s)
    if moved_s <= 0:
        return 0.0, 0.0
    rest_s = float(missed @ switch_s**2) / moved_s / 2  # mean residual time of the current switch at an arrival
    low, high, wait_s = 0.0, NEARLY_ALL, 0.0
    for _ in range(30):
        middle = (low + high) / 2
        wait_s = rest_s / (1 - middle)
        found = float((missed * switch_s / (1 + missed * (middle * wait_s + switch_s + service))).sum())
        low, high = (middle, high) if found > middle else (low, middle)
    return high, wait_s


def _cycle(machine: Machine, demand: Demand, own: Groups, most_s: float) -> float:
    """Time to serve every group with work once, including what arrives for it meanwhile; at most `most_s`.

    This bounds the wait for a busy machine's steps: the longer a cycle, the more requests share each step.
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
    """Time per later token of each group, delayed by other groups' steps, whose number varies between requests.

    A request that arrives meanwhile costs its prefill and the quanta that it gets until the end, half of them on
    average. In a group of several experts, tokens of all experts are made in shared steps and do not delay each other.
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
    # At most `max_active_experts` groups share the steps, each with a prefill per sequence and shared decode steps;
    # the others are still waiting for their first token.
    turns = min(demand.policy.max_active_experts, max(1, int((rates > 0).sum())))
    most_s: F64 = turns * (step_s + batches * steps.prefill_s / later)
    return np.minimum(slow_s, most_s)


def _busy(machine: Machine, demand: Demand, groups: Groups, share: float) -> float:
    """The utilisation of steps if batches are those of a machine with utilisation `share`."""
    stretch, most, total = 1 / (1 - min(share, NEARLY_ALL)), demand.policy.max_batch, float(groups.rates.sum())
    steps, rates = groups.steps, groups.rates
    batches = _batches(steps, demand.new_tokens, rates, stretch, most)
    busy = float((rates * _cost(steps, demand.new_tokens, batches)).sum())
    if machine.router is not None:
        in_batch = _batches(machine.router, demand.router_tokens, np.array([total]), stretch, most)
        busy += total * float(_cost(machine.router, demand.router_tokens, in_batch)[0])
    return busy


def _batches(steps: Steps, tokens: float, rates: F64, stretch: float, most: int) -> F64:
    """Mean batch size b of each group: b - 1 = rate * stretch * (prefill + (tokens - 1) * step(b)); at most `most`."""
    later = max(0.0, tokens - 1)
    grows = 1 - rates * stretch * later * steps.more_s
    alone = rates * stretch * (steps.prefill_s + later * steps.decode_s)
    more = np.where(grows > 0, alone / np.where(grows > 0, grows, 1.0), most)
    batches: F64 = np.minimum(1 + more, most)
    return batches


def _prefill(steps: Steps, batches: F64) -> tuple[F64, F64]:
    """Time of a step that prefills a batch's prompts, and the number of prompts in it."""
    prompts: F64 = np.minimum(batches, steps.prompts)
    seconds: F64 = steps.prefill_s + (prompts - 1) * steps.prefill_more_s
    return seconds, prompts


def _service(steps: Steps, tokens: float, batches: F64) -> F64:
    """Duration of a request's own steps, in a batch of this size."""
    seconds: F64 = _prefill(steps, batches)[0] + max(0.0, tokens - 1) * (steps.decode_s + (batches - 1) * steps.more_s)
    return seconds


def _cost(steps: Steps, tokens: float, batches: F64) -> F64:
    """Compute time attributed to a single request: its part of its batch's steps."""
    prefill_s, prompts = _prefill(steps, batches)
    others = batches - 1
    # A step is shared by 1 + Poisson(x) sequences, and the mean of the reciprocal of that is (1 - e^-x) / x.
    part = np.where(others > 1e-9, -np.expm1(-others) / np.maximum(others, 1e-9), 1.0)
    token_s = steps.more_s + (steps.decode_s - steps.more_s) * part
    cost: F64 = prefill_s / prompts + max(0.0, tokens - 1) * token_s
    return cost


def _resident(machine: Machine, rates: F64) -> npt.NDArray[np.bool_]:
    """Which experts stay in the run tier: bases, and the most requested ones that fit."""
    sizes, order = machine.shape_bytes[machine.shape], np.argsort(-rates, kind="stable")
    found = np.zeros(len(rates), dtype=bool)
    found[order] = np.cumsum(sizes[order]) <= machine.near_bytes
    found |= sizes == 0
    return found


def _quantile(values: F64, weights: F64, share: float) -> float:
    """The weighted quantile: the smallest value not exceeded by this share of the weight."""
    if not weights.sum():
        return float(values.max(initial=0.0))
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)])

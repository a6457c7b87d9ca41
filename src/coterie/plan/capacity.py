"""Capacity: what one machine does under a steady load, by formulas in place of events; accurate to tens of percent.

    steps     each group (the router, an expert) runs in batches: 1 + its rate times its time in service
    stretch   1 / (1 - share of the time that steps run): who waits for others' steps goes on so much slower, but for no
              longer than it takes to serve every group once, and beside no more groups than share the steps
    switches  a request for an expert that is not resident waits for one transfer and for those before it; requests
              that come for the same expert meanwhile share its transfer

Knows nothing about placements or how many machines there are; `simulate` is what it is checked with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coterie.composition.composition import Composition
from coterie.composition.routers.llm import ROUTER
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.devices.modelled_price import step_time
from coterie.devices.modelled_shard import rank_program
from coterie.devices.modelled_transfer import route
from coterie.engine.policy import Policy
from coterie.graph.compile import compile_graph
from coterie.graph.program import Program
from coterie.memory.slab import round_up
from coterie.models.model import Model
from coterie.plan.mix import F64
from coterie.plan.simulate import KV_SHARE
from coterie.plan.slo import Slo
from coterie.spec.machine import MachineSpec

NEARLY_ALL = 0.999  # of the time: more is overload


@dataclass(frozen=True, slots=True)
class Demand:
    """A request's tokens: prompt, answer, the router's answer (0: no model is asked), what it reads besides."""

    prompt_tokens: float
    new_tokens: float
    router_tokens: int
    policy: Policy
    instruction_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Steps:
    """Seconds of steps: a prefill and a decode step of one sequence, and what each further sequence adds to either.

    `prompts`: how many prompts fit into one step.
    """

    prefill_s: float
    prefill_more_s: float
    prompts: float
    decode_s: float
    more_s: float


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine's prices for experts of one shape. Bytes: of an expert, and the room for experts by tier.

    `switch_s`: one expert into the run tier, from the memory below; `home_bytes`: all memory for experts but disks.
    """

    spec: MachineSpec
    expert: Steps
    router: Steps | None
    expert_bytes: int
    near_bytes: int
    home_bytes: int
    switch_s: float


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
        found = {"steps": self.steps / NEARLY_ALL, "link": self.link / NEARLY_ALL}
        limits = {"ttft": (self.ttft_s, slo.ttft_s), "tpot": (self.tpot_s, slo.tpot_s), "e2e": (self.e2e_s, slo.e2e_s)}
        found |= {name: value / limit for name, (value, limit) in limits.items() if limit < math.inf}
        return found

    def kept(self, slo: Slo) -> bool:
        """True when nothing is exceeded."""
        return all(factor <= 1 for factor in self.excess(slo).values())


class Pricer:
    """Prices a composition's largest expert, and its router, on machines; a program is compiled once per rule set."""

    def __init__(self, composition: Composition, models: Mapping[str, Model], demand: Demand) -> None:
        self._expert = max((models[name] for name in composition.names), key=lambda model: model.layout.size_bytes)
        self._router = models.get(ROUTER)
        self._demand = demand
        tokens, context = demand.prompt_tokens + demand.new_tokens, min(m.max_context for m in models.values())
        if tokens > context:
            fact = f"a request has {tokens:g} tokens, prompt and answer, on average, but the context holds {context}"
            raise UsageError("plan", fact, "give fewer --prompt or --tokens")
        self._programs: dict[tuple[str, str, int], Program] = {}

    def machine(self, spec: MachineSpec) -> Machine:
        """The prices on this machine."""
        expert, asked, demand = self._expert, self._router, self._demand
        router_bytes = round_up(asked.layout.size_bytes) if asked else 0
        size, capacity = round_up(expert.layout.size_bytes), spec.tier(spec.run_tier).capacity_bytes
        policy, question = demand.policy, demand.prompt_tokens + demand.instruction_tokens
        kv = expert.kv.bytes_per_token * (demand.prompt_tokens + demand.new_tokens)
        near = capacity - router_bytes - int(max(kv, min(policy.turns * policy.max_batch * kv, capacity * KV_SHARE)))
        memories = [name for name in spec.weight_tiers if name != "disk"]
        below = sum(spec.tier(name).capacity_bytes - router_bytes for name in memories[1:])
        source = memories[1] if len(memories) > 1 else spec.home_tier
        links = route(spec, source, spec.run_tier)
        return Machine(
            spec=spec,
            expert=self._steps(spec, expert, demand.prompt_tokens, demand.new_tokens),
            router=self._steps(spec, asked, question, demand.router_tokens) if asked else None,
            expert_bytes=size,
            near_bytes=near,
            home_bytes=below or near,
            switch_s=size / min(link.achieved_bytes_per_s for link in links) + sum(link.latency_s for link in links),
        )

    def _steps(self, spec: MachineSpec, model: Model, prompt: float, new_tokens: float) -> Steps:
        key = (model.key, spec.rule_set, spec.units if spec.peers else 1)
        if key not in self._programs:  # what a modelled device prices: one rank's part of the work
            self._programs[key] = rank_program(spec, compile_graph(model.graph, spec.rule_set))
        program, batch = self._programs[key], self._demand.policy.max_batch
        context = round(prompt + new_tokens / 2)
        prompts = max(1.0, self._demand.policy.max_step_tokens / prompt)
        first, second = (step_time(spec, program, Sizes.prefill(b, max(1, round(prompt)))).seconds for b in (1, 2))
        one, many = (step_time(spec, program, Sizes.decode(b, context)).seconds for b in (1, batch))
        return Steps(first, max(0.0, second - first), prompts, one, max(0.0, (many - one) / max(1, batch - 1)))


def state(machine: Machine, demand: Demand, rates: F64, slo_share: float) -> State:
    """The machine when its experts are asked for at these rates, per second."""
    total, most = float(rates.sum()), demand.policy.max_batch
    low, high = 0.0, NEARLY_ALL
    # The busier the machine, the larger its batches and the less each token costs: one balance, found by halving.
    if _busy(machine, demand, rates, NEARLY_ALL) >= NEARLY_ALL:
        low = high = _busy(machine, demand, rates, NEARLY_ALL)
    else:
        for _ in range(22):
            middle = (low + high) / 2
            low, high = (middle, high) if _busy(machine, demand, rates, middle) > middle else (low, middle)
    steps, stretch = low, 1 / (1 - min(low, NEARLY_ALL))
    batches = _batches(machine.expert, demand.new_tokens, rates, stretch, most)
    service = stretch * _service(machine.expert, demand.new_tokens, batches)
    missed = np.where(_resident(machine, rates), 0.0, rates)
    link, queue_s = _link(machine.switch_s, missed, service)
    miss_rate = float(missed.sum()) / total if total else 0.0
    router, routed_s = machine.router, 0.0
    waits = machine.expert.prefill_s
    if router is not None:
        in_batch = _batches(router, demand.router_tokens, np.array([total]), stretch, most)
        routed_s = float(_service(router, demand.router_tokens, in_batch)[0])
        waits += routed_s
    tail = _log_rest(slo_share)
    steps_s = min((stretch - 1) * waits / 2, _cycle(machine, demand, rates) / tail)
    before = _Waits(steps_s, miss_rate, machine.switch_s, link, queue_s)
    ttft = routed_s + machine.expert.prefill_s + before.quantile(slo_share)
    tpot = _tpot(machine, demand, rates, stretch, slo_share)
    e2e = ttft + tpot * max(0.0, demand.new_tokens - 1)
    switches = link / machine.switch_s if machine.switch_s else 0.0
    return State(ttft, tpot, e2e, steps, link, 1 - miss_rate, switches)


@dataclass(frozen=True, slots=True)
class _Waits:
    """What a request waits for before its first token: others' steps (exponential, of this mean), and, with
    `miss_rate`, its own switch and, with probability `link`, those before it (exponential, of mean `queue_s`).
    """

    steps_s: float
    miss_rate: float
    switch_s: float
    link: float
    queue_s: float

    def quantile(self, share: float) -> float:
        """The wait that this share of the requests does not exceed."""
        low, high = 0.0, self.switch_s + 40 * (self.steps_s + self.queue_s)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.longer(middle) > 1 - share else (low, middle)
        return high

    def longer(self, seconds: float) -> float:
        """The share of the requests that wait for longer than this."""
        hits = _tail(seconds, self.steps_s, 0.0)
        rest = seconds - self.switch_s
        behind = 1.0 if rest < 0 else _tail(rest, self.steps_s, self.queue_s)
        alone = 1.0 if rest < 0 else _tail(rest, self.steps_s, 0.0)
        return (1 - self.miss_rate) * hits + self.miss_rate * (self.link * behind + (1 - self.link) * alone)


def _log_rest(share: float) -> float:
    """The quantile of an exponential time over its mean."""
    return math.log(1 / (1 - min(share, 0.9999)))


def _tail(seconds: float, first_s: float, second_s: float) -> float:
    """How likely the sum of two exponential times of these means is above `seconds`."""
    short, long = sorted((first_s, second_s))
    if long <= 0:
        return 0.0
    if short < 1e-6 * long:
        return math.exp(-seconds / long)
    if long - short < 1e-3 * long:
        return math.exp(-seconds / long) * (1 + seconds / long)
    return (long * math.exp(-seconds / long) - short * math.exp(-seconds / short)) / (long - short)


def _link(switch_s: float, missed: F64, service: F64) -> tuple[float, float]:
    """The share of the time in which the link is busy, and the mean wait of those who find it busy.

    The longer they wait the more requests of one expert gather and share its switch, so that it never falls behind for
    good: one balance, found by halving.
    """
    if not missed.any() or switch_s <= 0:
        return 0.0, 0.0
    low, high, wait_s = 0.0, NEARLY_ALL, 0.0
    for _ in range(30):
        middle = (low + high) / 2
        wait_s = switch_s / (2 * (1 - middle))
        found = float((missed / (1 + missed * (middle * wait_s + switch_s + service))).sum()) * switch_s
        low, high = (middle, high) if found > middle else (low, middle)
    return high, wait_s


def _cycle(machine: Machine, demand: Demand, rates: F64) -> float:
    """Seconds in which every group with work is served once, with all that came for it in the meantime.

    This bounds the wait for a busy machine's steps: the longer a cycle is the more requests share a step.
    """
    groups = [(machine.expert, demand.new_tokens, rates)]
    if machine.router is not None:
        groups.append((machine.router, float(demand.router_tokens), np.array([rates.sum()])))
    most, own_s = demand.policy.max_batch, sum(float(_service(g, n, np.ones(1))[0]) for g, n, _ in groups)
    low, high = 0.0, 1e4
    for _ in range(50):
        cycle_s = (low + high) / 2
        found = own_s
        for steps, tokens, asked in groups:
            came = asked * cycle_s
            visits = np.maximum(-np.expm1(-came), came / most)
            batches = np.where(visits > 0, came / np.where(visits > 0, visits, 1), 1)
            found += float((visits * _service(steps, tokens, batches)).sum())
        low, high = (cycle_s, high) if found > cycle_s else (low, cycle_s)
    return high


def _tpot(machine: Machine, demand: Demand, rates: F64, stretch: float, share: float) -> float:
    """Seconds per later token. Others' steps come between, and how many there are differs from request to request.

    A request that comes in the meantime costs its prefill and the quanta that it gets by the end: half of them.
    """
    later = demand.new_tokens - 1
    if later <= 0:
        return 0.0
    batches = _batches(machine.expert, demand.new_tokens, rates, stretch, demand.policy.max_batch)
    step_s = machine.expert.decode_s + (batches - 1) * machine.expert.more_s
    quantum = demand.policy.quantum_steps
    other_s = machine.expert.prefill_s + max(1.0, later / quantum / 2) * quantum * step_s
    more_s = (stretch - 1) * step_s * later
    spread_s = np.sqrt(more_s * other_s)
    slow_s = step_s * stretch + max(0.0, _log_rest(share) - 1) * spread_s / later
    # So many experts share the steps, each with one prefill to its later steps; the rest wait for their first token.
    most_s = demand.policy.turns * (step_s + machine.expert.prefill_s / later)
    return _quantile(np.minimum(slow_s, most_s), rates, share)


def _busy(machine: Machine, demand: Demand, rates: F64, share: float) -> float:
    """The share of the time in which steps run, were batches those of a machine that is busy for `share`."""
    stretch, most, total = 1 / (1 - min(share, NEARLY_ALL)), demand.policy.max_batch, float(rates.sum())
    batches = _batches(machine.expert, demand.new_tokens, rates, stretch, most)
    busy = float((rates * _cost(machine.expert, demand.new_tokens, batches)).sum())
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


def _resident(machine: Machine, rates: F64) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Who stays in the run tier: those who are asked for most."""
    slots = max(0, machine.near_bytes // machine.expert_bytes)
    found = np.zeros(len(rates), dtype=bool)
    found[np.argsort(-rates, kind="stable")[:slots]] = True
    return found


def _quantile(values: F64, weights: F64, share: float) -> float:
    """The smallest value that this share of the weight does not exceed."""
    if not weights.sum():
        return float(values.max(initial=0.0))
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)])

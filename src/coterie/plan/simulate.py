"""Simulates one machine serving a workload in modelled time, with the real router, cache, scheduler and engine.

    warm up   every expert is loaded once, so that each tier is full; its time is reported separately
    arrive -> RoutingJob -> the router's own request -> the (given) route -> the expert's request -> Served

Routes are given and tokens synthetic. Knows nothing about how results are shown.
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from coterie.composition.composition import Composition
from coterie.composition.router import Prompt
from coterie.composition.routers.given import GivenRouter
from coterie.composition.routers.llm import ROUTER, LlmRouter
from coterie.composition.routing import make_router
from coterie.core.errors import CapacityError, UsageError
from coterie.core.trace import Trace
from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.assembly import (
    Parts,
    Plan,
    Settings,
    page_bytes,
    plan,
    room_for_experts,
    warm_up,
    wire,
    work_bytes,
)
from coterie.engine.bases import bases_of, size_of
from coterie.engine.metrics import Metrics
from coterie.engine.request import Output, Request
from coterie.engine.routing import RoutingJob
from coterie.memory.slab import round_up
from coterie.models.model import Model
from coterie.plan.mix import F64
from coterie.plan.setups import Setup
from coterie.plan.use import Use, used
from coterie.plan.workload import Workload
from coterie.spec.machine import MachineSpec

BYTES_PER_TOKEN = 4  # approximate for English text; to estimate the length of a router's instructions
KV_SHARE = 0.2  # default upper bound on the KV cache's share of the run tier; the rest is for experts
POOL_TOKENS = 1 << 14  # prompts are slices of one sequence of random tokens
MAX_REPORTS = 1000  # maximal number of progress reports
NO_TEXT = Prompt("")


@dataclass(frozen=True, slots=True)
class Case:
    """What to simulate: experts and the router's model on a machine, with a setup.

    `steps` above 1: up to that many decode steps in one run, as long as no decision would differ. Decisions stay the
    same, but the host's launch cost is paid once per run.
    """

    composition: Composition
    models: Mapping[str, Model]
    spec: MachineSpec
    setup: Setup
    near_bytes: int | None = None
    kv_bytes: int | None = None
    record: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """The outcome of a workload. Per request, seconds from its arrival to its route, first token and last token.

    `hit`: its expert was resident when the request reached it. `elapsed_s`: from the first arrival to the last token;
    `warm_up_s`: before that. `metrics` include the router's own requests; `use` excludes the warm-up.
    """

    routed_s: F64
    first_s: F64
    last_s: F64
    hit: npt.NDArray[np.bool_]
    elapsed_s: float
    warm_up_s: float
    metrics: Metrics
    use: Use
    plan: Plan
    decisions: Collection[tuple[str | int, ...]]
    trace: Trace | None = None


def simulate(case: Case, workload: Workload, on_progress: Callable[[int], None] | None = None) -> Served:
    """Serve a workload to its end; `on_progress` is called from time to time with the number of finished requests.

    Raises CapacityError if something does not fit, UsageError for an invalid workload.
    """
    settings = settings_of(case, workload)
    device = ModelledDevice(case.spec)
    try:
        made = plan(case.models, case.spec, settings)
        _check_home(made)
        parts = wire(case.models, made, settings, device)
        warm_up_s = warm_up(parts, case.models, _least_requested_first(case.models, workload))
        before, run = used(device), _Run(parts, case, workload)
        with _no_search_for_cycles():
            run.to_the_end(on_progress)
        return Served(
            routed_s=run.routed_s,
            first_s=run.first_s,
            last_s=run.last_s,
            hit=run.hit,
            elapsed_s=device.now() - run.start_s,
            warm_up_s=warm_up_s,
            metrics=parts.engine.metrics,
            use=used(device).since(before),
            plan=made,
            decisions=parts.engine.decisions,
            trace=parts.trace() if case.record else None,
        )
    finally:
        device.close()


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Disable the cyclic garbage collector: a simulation creates no cycles, and it would take 5 % of the time."""
    searches = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searches:
            gc.enable()


def settings_of(case: Case, workload: Workload) -> Settings:
    """Split the near tier of a dedicated machine: KV cache for all sequences the policy can run, the rest for experts.

    Raises CapacityError if the largest expert does not fit then.
    """
    spec, models = case.spec, case.models
    capacity = spec.tier(spec.run_tier).capacity_bytes
    router = round_up(models[ROUTER].layout.size_bytes) if ROUTER in models else 0
    block = max(page_bytes(model.kv) for model in models.values())
    asked = question_tokens(case.composition, models, int(workload.prompt_tokens.max(initial=0)))
    longest = max(workload.longest, asked)
    per_sequence = max(model.kv.blocks_for(longest, block) for model in models.values()) * block
    policy, kv = case.setup.policy, case.kv_bytes
    if kv is None:
        kv = max(
            per_sequence, min(policy.max_active_experts * policy.max_batch * per_sequence, int(capacity * KV_SHARE))
        )
    near = room_for_experts(spec, router + kv + work_bytes(models, spec.rule_set, policy), alone=True)
    bases = bases_of(models)
    staying = {ROUTER, *bases}
    coming = [model.layout for name, model in models.items() if name not in staying]
    largest = size_of(bases) + max(round_up(layout.size_bytes) for layout in coming)
    if case.near_bytes is None and near < largest:
        what = "the largest expert beside the KV cache, the router and the values of a step"
        levers = ("lower --kv", "use a smaller expert", f"a machine with more {spec.run_tier}")
        raise CapacityError(f"{spec.name}: {spec.run_tier}", what, largest + capacity - near, capacity, levers)
    near = near if case.near_bytes is None else case.near_bytes
    if case.steps > 1:
        policy = replace(policy, multi_step_while_waiting=True, max_steps=case.steps, max_run_bytes=1 << 62)
    return Settings(near, kv, evict=case.setup.evict, policy=policy, record=case.record)


def instruction_tokens(composition: Composition) -> int:
    """Approximate number of instruction tokens that a router model reads besides the prompt; 0 without a model."""
    router = make_router(composition)
    instructions = router.instructions if isinstance(router, LlmRouter) else ""
    return -(-len(instructions.encode()) // BYTES_PER_TOKEN)


def question_tokens(composition: Composition, models: Mapping[str, Model], prompt_tokens: int) -> int:
    """Tokens of the router model's question about a prompt, including its answer; 0 without a model.

    Raises UsageError if the question does not fit its context, since serving would refuse such a prompt.
    """
    spec = composition.router
    if spec is None or ROUTER not in models:
        return 0
    besides, context = instruction_tokens(composition), models[ROUTER].max_context
    if besides and prompt_tokens + besides >= context:  # the prompt by itself is checked against the experts
        fact = f"the context holds {context} tokens, but a prompt of {prompt_tokens} comes with {besides} of a question"
        remedy = "shorten router.question or the descriptions of the experts, or the prompts"
        raise UsageError(f"{composition.name}: router", fact, remedy)
    return min(prompt_tokens + besides + spec.max_tokens, context)


def _check_home(made: Plan) -> None:
    home = made.spec.tier(made.spec.home_tier)
    demand = made.total_bytes + made.bases_bytes + made.router_bytes
    if demand > home.capacity_bytes:
        levers = ("fewer experts", "more machines", f"a machine with more {home.name}")
        raise CapacityError(f"{made.spec.name}: {home.name}", "all experts", demand, home.capacity_bytes, levers)


def _least_requested_first(models: Mapping[str, Model], workload: Workload) -> list[str]:
    """Warm-up order: the router, then the requested experts, most requested last, so that these end up resident.

    Experts without requests are left out: they would never be loaded.
    """
    counts = np.bincount(workload.expert_index, minlength=len(workload.names))
    ranked = sorted((int(count), name) for name, count in zip(workload.names, counts, strict=True) if count)
    return [*([ROUTER] if ROUTER in models else []), *(name for _, name in ranked)]


class _Run:
    """Submits requests as modelled time advances, and records their outcomes."""

    def __init__(self, parts: Parts, case: Case, workload: Workload) -> None:
        self._parts, self._workload = parts, workload
        self.start_s = parts.device.now()
        count = len(workload)
        self.routed_s, self.first_s, self.last_s = (np.zeros(count) for _ in range(3))
        self.hit = np.zeros(count, dtype=bool)
        router = make_router(case.composition) if ROUTER in case.models else None
        self._router = router if isinstance(router, LlmRouter) else None
        self._instruction_tokens = instruction_tokens(case.composition) if self._router is not None else 0
        self._given = [GivenRouter(self._router, name) for name in workload.names]
        rng = np.random.default_rng([0 if workload.facts is None else int(workload.facts.get("seed", 0)), 4])
        words = min(model.config.vocab_size for model in case.models.values())
        self._longest = max(model.max_context for model in case.models.values()) - 1
        self._pool = tuple(rng.integers(0, words, POOL_TOKENS + self._longest).tolist())
        self._starts = array("q", rng.integers(0, POOL_TOKENS, count).tobytes())
        # array, since it is compact and faster than NumPy for access to single elements.
        self._at_s = array("d", (workload.at_s + self.start_s).tobytes())
        self._expert_index, self._prompts, self._new = (
            array("q", numbers.astype(np.int64).tobytes())
            for numbers in (workload.expert_index, workload.prompt_tokens, workload.new_tokens)
        )
        self._ranks = array("q", (workload.ranks * case.setup.ranks).astype(np.int64).tobytes())
        self._next = self._open = 0
        self._jobs: dict[str, tuple[int, RoutingJob]] = {}
        self._numbers: dict[str, int] = {}

    def to_the_end(self, on_progress: Callable[[int], None] | None = None) -> None:
        """Serve until all requests have finished. Raises the error of a request that failed."""
        engine, device, count = self._parts.engine, self._parts.device, len(self._expert_index)
        in_flight = self._workload.in_flight
        every = next_report = max(1, count // MAX_REPORTS) if on_progress is not None else count + 1
        while self._next < count or not engine.idle:
            if on_progress is not None and self._next - self._open >= next_report:
                on_progress(self._next - self._open)
                next_report = self._next - self._open + every
            if self._next < count and (in_flight or self._at_s[self._next] <= device.now()):
                self._arrive()
            until = self._at_s[self._next] if self._next < count and not in_flight else None
            if engine.idle:
                device.wait_any([], until)
                continue
            for output in engine.step(until, until):
                if output.finish_reason is not None:
                    self._take(output)

    def _arrive(self) -> None:
        """Submit the requests that have arrived by now; in a closed loop, as many as there are free slots."""
        now, count = self._parts.device.now(), len(self._expert_index)
        in_flight = self._workload.in_flight
        while self._next < count and (self._open < in_flight if in_flight else self._at_s[self._next] <= now):
            number, self._next, self._open = self._next, self._next + 1, self._open + 1
            if in_flight:
                self._at_s[number] = now
            job = RoutingJob(f"r{number}", self._given[self._expert_index[number]], NO_TEXT)
            for ask_id, ask in job.asks.items():
                self._jobs[ask_id] = (number, job)
                tokens = self._prompts[number] + self._instruction_tokens
                self._submit(ask_id, number, ask.expert, tokens, ask.max_tokens, 0)
            if job.done:
                self._route(number, job)

    def _route(self, number: int, job: RoutingJob) -> None:
        self.routed_s[number] = self._parts.device.now() - self._at_s[number]
        request_id = f"r{number}"
        self._numbers[request_id] = number
        tokens, start = self._prompts[number], self._starts[number]
        self._submit(request_id, number, job.route().expert, tokens, self._new[number], start)

    def _submit(self, request_id: str, number: int, expert: str, tokens: int, new_tokens: int, start: int) -> None:
        prompt, priority = self._pool[start : start + tokens], self._ranks[number]
        asked = Request(request_id, expert, prompt, new_tokens, ignore_end=True, reuse=False, priority=priority)
        self._parts.engine.submit(asked)

    def _take(self, output: Output) -> None:
        if output.error is not None:
            raise output.error
        found = self._jobs.pop(output.request_id, None)
        if found is not None:
            number, job = found
            job.take(output)
            if job.done:
                self._route(number, job)
            return
        number, timings = self._numbers.pop(output.request_id), output.timings
        if timings is None or timings.first_token_s is None:
            raise RuntimeError(f"request {output.request_id} ended without a token")
        self.first_s[number] = timings.first_token_s - self._at_s[number]
        self.last_s[number] = timings.end_s - self._at_s[number]
        self.hit[number] = timings.hit
        self._open -= 1

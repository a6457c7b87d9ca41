"""Prices: times of steps and switches of a composition's experts on a machine, and its memory for them.

Knows nothing about load or queueing (capacity.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coterie.composition.composition import Composition
from coterie.composition.routers.llm import ROUTER
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.devices.modelled.price import step_time
from coterie.devices.modelled.shard import rank_program
from coterie.devices.modelled.transfer import route
from coterie.engine.bases import bases_of, size_of
from coterie.engine.policy import Policy, memories_below
from coterie.graph.compile import compile_graph
from coterie.graph.mixing import mixes, own_bytes
from coterie.graph.program import Program
from coterie.memory.slab import round_up
from coterie.models.model import Model
from coterie.plan.mix import F64, I64
from coterie.plan.simulate import KV_SHARE
from coterie.spec.machine import MachineSpec


@dataclass(frozen=True, slots=True)
class Demand:
    """Tokens of a request: prompt, answer, the router's answer (0: no router model) and its instructions.

    `reused_tokens`: tokens of the prompt that are not computed (prefix cache), but still occupy each one's KV cache.
    """

    prompt_tokens: float
    new_tokens: float
    router_tokens: int
    policy: Policy
    instruction_tokens: int = 0
    reused_tokens: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Seconds of a prefill and a decode step of one sequence, and of each further sequence in either.

    Arrays are by shape or by expert. `prompts`: number of prompts that fit in a step.
    """

    prefill_s: F64
    prefill_more_s: F64
    prompts: float
    decode_s: F64
    more_s: F64

    def of(self, places: I64) -> Steps:
        """Select by index."""
        return Steps(
            self.prefill_s[places],
            self.prefill_more_s[places],
            self.prompts,
            self.decode_s[places],
            self.more_s[places],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Machine:
    """One machine's prices for experts of several shapes.

    `shape`: index of each expert's shape. `shape_bytes`: bytes of an expert, by shape (0 for a base, which is always
    resident). `switch_s`: time to load an expert into the run tier, by shape. `near_bytes`: for experts in the run
    tier. `home_bytes`: for experts in the memories below, or on disk if there are none. `bases_bytes`: of the run tier,
    for the bases of adapters, all of which are on every machine. `variant_group`: experts with the same number share
    steps; -1: none. `own_s`: extra time of a shared step per further expert, for its own weights, by shape.
    """

    spec: MachineSpec
    steps: Steps
    router: Steps | None
    shape: I64
    shape_bytes: I64
    switch_s: F64
    near_bytes: int
    home_bytes: int
    bases_bytes: int = 0
    variant_group: I64 | None = None
    own_s: F64 | None = None

    @property
    def sizes(self) -> list[int]:
        """Bytes of each expert."""
        found: list[int] = self.shape_bytes[self.shape].tolist()
        return found

    def of(self, experts: I64) -> Machine:
        """The same machine with only these experts; repetitions are allowed."""
        group = None if self.variant_group is None else self.variant_group[experts]
        return replace(self, shape=self.shape[experts], variant_group=group)


class Pricer:
    """Prices a composition's experts, by shape, and its router; programs are compiled once per shape and rule set."""

    def __init__(self, composition: Composition, models: Mapping[str, Model], demand: Demand) -> None:
        bases = bases_of(models)
        self._bases_bytes = size_of(bases)
        kinds = [(models[name].key, name in bases) for name in composition.names]
        shapes: dict[tuple[str, bool], Model] = {}
        for kind, model in zip(kinds, [models[name] for name in composition.names], strict=True):
            shapes[kind] = max(shapes.get(kind, model), model, key=lambda at: at.layout.size_bytes)
        self._experts = tuple(shapes.values())
        # An expert that is the base of others is always resident and never moved.
        sizes = [0 if is_base else round_up(model.layout.size_bytes) for (_, is_base), model in shapes.items()]
        self._sizes = np.array(sizes, dtype=np.int64)
        places = {kind: place for place, kind in enumerate(shapes)}
        self._shape = np.array([places[kind] for kind in kinds], dtype=np.int64)
        self._beside = [None if (of := models[name].base) is None else of.layout for name in composition.names]
        self._router = models.get(ROUTER)
        self._demand = demand
        tokens, context = demand.prompt_tokens + demand.new_tokens, min(m.max_context for m in models.values())
        if tokens > context:
            fact = f"a request has {tokens:g} tokens, prompt and answer, on average, but the context holds {context}"
            raise UsageError("plan", fact, "give fewer --prompt or --tokens")
        self._programs: dict[tuple[str, str, int], Program] = {}

    def machine(self, spec: MachineSpec) -> Machine:
        """The prices on this machine."""
        experts, asked, demand = self._experts, self._router, self._demand
        router_bytes = round_up(asked.layout.size_bytes) if asked else 0
        there, sizes = router_bytes + self._bases_bytes, self._sizes
        capacity = spec.tier(spec.run_tier).capacity_bytes
        policy, question = demand.policy, demand.prompt_tokens + demand.instruction_tokens
        kv = max(expert.kv.sequence_bytes(demand.prompt_tokens + demand.new_tokens) for expert in experts)
        near = (
            capacity - there - int(max(kv, min(policy.max_active_experts * policy.max_batch * kv, capacity * KV_SHARE)))
        )
        memories = [*memories_below(spec)] or [name for name in (spec.home_tier,) if name != spec.run_tier]
        # Bases are stored in the home tier only, and loaded from there directly into the run tier.
        kept = {name: there if name == spec.home_tier else router_bytes for name in memories}
        below = sum(spec.tier(name).capacity_bytes - bytes_ for name, bytes_ in kept.items())
        links = route(spec, memories[0], spec.run_tier) if memories else ()
        rate = min((link.achieved_bytes_per_s for link in links), default=math.inf)
        own_s = np.array([self._own_s(spec, model) for model in experts])
        return Machine(
            spec=spec,
            steps=self._steps(spec, experts, demand.prompt_tokens, demand.new_tokens, demand.reused_tokens),
            router=self._steps(spec, (asked,), question, demand.router_tokens, 0.0) if asked else None,
            shape=self._shape,
            shape_bytes=sizes,
            switch_s=sizes / rate + sum(link.latency_s for link in links),
            near_bytes=near,
            home_bytes=below or near,
            bases_bytes=self._bases_bytes,
            variant_group=self._groups(own_s) if policy.share_steps else None,
            own_s=own_s,
        )

    def _own_s(self, spec: MachineSpec, model: Model) -> float:
        """Time in which a step reads an adapter's own weights; infinite if it cannot share steps."""
        program = self._program(spec, model)
        shared = [place for place, name in enumerate(program.weights) if name not in model.layout.tensors]
        if model.base is None or not mixes(program, shared):
            return math.inf
        return own_bytes(program, shared) / spec.tier(spec.run_tier).achieved_bytes_per_s

    def _groups(self, own_s: F64) -> I64 | None:
        """Group experts that can share steps: those of one shape and base, if their program supports it."""
        keys = [(int(shape), id(base)) for shape, base in zip(self._shape, self._beside, strict=True)]
        alike = [key for key, count in Counter(keys).items() if count > 1 and math.isfinite(own_s[key[0]])]
        numbers = {key: number for number, key in enumerate(alike)}
        return np.array([numbers.get(key, -1) for key in keys], dtype=np.int64) if numbers else None

    def _steps(
        self, spec: MachineSpec, models: Sequence[Model], prompt: float, new_tokens: float, reused: float
    ) -> Steps:
        context, batch = round(prompt + new_tokens / 2), self._demand.policy.max_batch
        computed = max(1, round(prompt - reused))
        asked = [Sizes.continued(b, computed, max(0, round(prompt) - computed)) for b in (1, 2)]
        asked += [Sizes.decode(b, context) for b in (1, batch)]
        programs = [self._program(spec, model) for model in models]
        times = np.array([[step_time(spec, program, sizes).seconds for sizes in asked] for program in programs])
        first, second, one, many = times.T
        prompts = max(1.0, self._demand.policy.max_step_tokens / computed)
        more = np.maximum(0.0, (many - one) / max(1, batch - 1))
        return Steps(first, np.maximum(0.0, second - first), prompts, one, more)

    def _program(self, spec: MachineSpec, model: Model) -> Program:
        """The program that a modelled device prices: one rank's shard."""
        key = (model.key, spec.rule_set, spec.units if spec.peers else 1)
        if key not in self._programs:
            self._programs[key] = rank_program(spec, compile_graph(model.graph, spec.rule_set))
        return self._programs[key]

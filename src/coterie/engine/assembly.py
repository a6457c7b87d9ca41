"""From models to an engine on a given device: how memory is divided, one program per architecture, and the wiring.

    models -> Plan (who needs what, does it fit) -> wire on a device -> Parts (cache, KV pool, engine)

Knows nothing about concrete devices or prompts: serving and simulating wire the same parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.composition.routers.llm import ROUTER
from coterie.core.errors import CapacityError, UsageError
from coterie.core.shapes import Sizes
from coterie.core.trace import Trace
from coterie.device import Device, Executable, Limits, wait_for
from coterie.engine.bases import base_of, bases_of, load_bases, size_of
from coterie.engine.engine import Engine
from coterie.engine.kv import KVPool
from coterie.engine.policy import Policy, memories_below
from coterie.engine.recording import Recording
from coterie.engine.served import Base, ServedExpert, shared_places
from coterie.engine.timeline import Timeline
from coterie.graph.compile import compile_graph
from coterie.graph.program import KvShape, Program
from coterie.memory.budget import plan_budget
from coterie.memory.cache import ExpertCache
from coterie.memory.slab import round_up
from coterie.memory.split import Cache, Side, SplitCache
from coterie.models.model import Model
from coterie.spec.machine import MachineSpec

PAGE_TOKENS = 16  # tokens per KV block of the largest architecture; smaller ones get more
KV_SEQUENCES = 16  # the default KV budget holds this many sequences of the longest default context
KV_CONTEXT = 4096  # longer contexts are possible, but the default budget is not sized for many of them
KV_SHARE = 0.2  # default upper bound, as a share of the run tier
EXPERTS_SHARE = 0.5  # of a run tier that is system memory; the rest is left to other processes


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve, on any device. None means: chosen by `plan`, which reports its choice.

    `pool_bytes`: upper bound for each tier between the run tier and the disk; None: all experts, as far as there is
    room.
    `record`: how many pieces of work to remember for a trace or a replay (the latest); 0: none.
    `reuse`: whether prompts with equal prefixes share KV state.
    """

    near_bytes: int | None = None
    kv_bytes: int | None = None
    pool_bytes: int | None = None
    rule_set: str | None = None
    evict: str = "recent"
    policy: Policy = field(default_factory=Policy)
    record: int = 0
    reuse: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """How memory is divided.

    expert_bytes: of each expert that comes and goes; near_bytes: the budget for these in the run tier.
    kv_bytes: for KV blocks of `block_bytes`.
    router_bytes: for the router's own model in the run tier, 0 without one.
    work_bytes: for the stored values of the largest step.
    programs: those compiled for planning, by architecture key.
    base_bytes: of each base that adapters share, kept in the run tier in addition to `near_bytes`; base_of: each
        adapter's base.
    """

    spec: MachineSpec
    expert_bytes: Mapping[str, int]
    near_bytes: int
    kv_bytes: int
    block_bytes: int
    router_bytes: int = 0
    work_bytes: int = 0
    programs: Mapping[str, Program] = field(default_factory=dict, repr=False, compare=False)
    base_bytes: Mapping[str, int] = field(default_factory=dict)
    base_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """The bytes of all experts that come and go."""
        return sum(self.expert_bytes.values())

    @property
    def bases_bytes(self) -> int:
        """The bytes of all bases in the run tier."""
        return sum(round_up(size) for size in self.base_bytes.values())


@dataclass(frozen=True, slots=True)
class Parts:
    """A running assembly. `device` sees single instants (engine/timeline.py).

    `cache` holds the experts; `all_weights` also the router's own model and the bases that adapters share. `served`:
    the experts that the engine serves, which may grow (engine/additions.py).
    """

    device: Device
    engine: Engine
    all_weights: Cache
    cache: ExpertCache
    kv: KVPool
    plan: Plan
    served: dict[str, ServedExpert]
    recording: Recording | None = None

    def recorded(self) -> Recording:
        """The record of all work that has ended. Raises UsageError without Options.record."""
        if self.recording is None:
            raise UsageError("record", "nothing was recorded", "give Options(record=...), or --trace")
        self.recording.settle(self.device)
        return self.recording

    def trace(self) -> Trace:
        """The remembered work as a trace. Raises UsageError without Options.record."""
        name, made_up = self.device.spec.name, int(self.device.synthetic())
        return self.recorded().trace(device=name, synthetic_tokens=made_up)


def plan(models: Mapping[str, Model], spec: MachineSpec, settings: Settings) -> Plan:
    """Divide the run tier. Raises CapacityError if the largest expert or one full context does not fit."""
    capacity = spec.tier(spec.run_tier).capacity_bytes
    router = round_up(models[ROUTER].layout.size_bytes) if ROUTER in models else 0
    bases = bases_of(models)
    shared = size_of(bases)
    sizes = {name: model.layout.size_bytes for name, model in models.items() if name not in (ROUTER, *bases)}
    block = block_bytes_for(models, settings.kv_bytes)
    kv = _default_kv(models, block, capacity) if settings.kv_bytes is None else settings.kv_bytes
    programs = _programs(models, settings.rule_set or spec.rule_set)
    work = _work_bytes(programs, models, settings.policy)
    if settings.near_bytes is not None:
        near = plan_budget(settings.near_bytes, sizes, shared)
    else:  # the default share, or what the largest expert needs if that is more and available
        largest = shared + round_up(max(sizes.values(), default=0))
        room = max(room_for_experts(spec, kv + router + work), min(capacity - kv - router - work, largest))
        near = plan_budget(room, sizes, shared, spec.run_tier, "lower --kv")
    if near + shared + kv + router + work > capacity:
        levers = ["lower --near", "lower --kv"]
        what = f"experts, {'bases, ' if shared else ''}{'router, ' if router else ''}KV cache and the values of a step"
        raise CapacityError(spec.run_tier, f"{what} together", near + shared + kv + router + work, capacity, levers)
    own = {name: base.layout.size_bytes for name, base in bases.items()}
    adapters = {name: base for name, model in models.items() if (base := base_of(model, bases))}
    return Plan(spec, sizes, near, kv // block * block, block, router, work, programs, own, adapters)


def _programs(models: Mapping[str, Model], rule_set: str) -> dict[str, Program]:
    """One program per architecture key."""
    graphs = {model.key: model.graph for model in models.values()}
    return {key: compile_graph(graph, rule_set) for key, graph in graphs.items()}


def work_bytes(models: Mapping[str, Model], rule_set: str, policy: Policy) -> int:
    """Bytes of the stored values of the largest step of any of these models."""
    return _work_bytes(_programs(models, rule_set), models, policy)


def _work_bytes(programs: Mapping[str, Program], models: Mapping[str, Model], policy: Policy) -> int:
    """Bytes of the stored values of the largest step, on a device that grows its buffer by doubling."""
    needed = 0
    for key, limits in _limits(models, programs, policy).items():
        tokens, rows = limits.tokens, limits.tokens if programs[key].bidirectional else limits.sequences
        largest = Sizes(T=tokens, B=limits.sequences, R=rows, context_tokens=0, pairs=0)
        needed = max(needed, programs[key].buffers.offsets(largest)[1])
    return 1 << max(needed - 1, 0).bit_length()


def room_for_experts(spec: MachineSpec, taken_bytes: int, alone: bool = False) -> int:
    """The default budget for experts in the run tier, next to KV, the router and the values of a step.

    If there is host memory below it, the run tier (HBM) is used by us alone, so experts get all that is left; a real
    device's spec has already deducted code and scratch space. Otherwise the tier is system memory and experts get a
    share of it, or, on a dedicated machine (`alone`), all that is left.
    """
    capacity = spec.tier(spec.run_tier).capacity_bytes
    return capacity - taken_bytes if alone or memories_below(spec) else int(capacity * EXPERTS_SHARE)


def _default_kv(models: Mapping[str, Model], block: int, capacity: int) -> int:
    blocks = max(_blocks(model, block, min(model.max_context, KV_CONTEXT)) for model in models.values())
    return max(min(blocks * KV_SEQUENCES * block, int(capacity * KV_SHARE)), block)


def block_bytes_for(models: Mapping[str, Model], kv_bytes: int | None) -> int:
    """A KV block size for all of these. Raises CapacityError if a KV cache of this size holds no such block."""
    block = max(page_bytes(model.kv) for model in models.values())
    if kv_bytes is not None and kv_bytes < block:
        raise CapacityError("--kv", "one KV block", block, kv_bytes, [f"set --kv to at least {block} B"])
    return block


def page_bytes(kv: KvShape) -> int:
    """A KV block size for this architecture: PAGE_TOKENS tokens or slightly more, a multiple of BLOCK_BYTES.

    Large enough for a unit of recurrent state, too.
    """
    return -(-max(kv.bytes_per_token * PAGE_TOKENS, kv.unit_bytes) // BLOCK_BYTES) * BLOCK_BYTES


def _blocks(model: Model, block: int, tokens: int) -> int:
    return model.kv.blocks_for(tokens, block)


def wire(models: Mapping[str, Model], made: Plan, settings: Settings, device: Device) -> Parts:
    """Compile and wire everything on a given device.

    Raises CapacityError, UnsupportedError; UsageError for `pool_bytes` without a memory between run tier and disk.
    """
    recording = Recording(settings.record) if settings.record else None
    device = Timeline(device, recording)
    spec = device.spec
    between = memories_below(spec)  # these keep every expert that fits
    if settings.pool_bytes is not None and not between:
        fact = f"{spec.name} has no memory between {spec.run_tier} and the files"
        raise UsageError("--pool", fact, "leave it out, or serve on a device that has")
    pool_bytes = made.total_bytes if settings.pool_bytes is None else min(made.total_bytes, settings.pool_bytes)
    lower = {name: min(pool_bytes, spec.tier(name).capacity_bytes - made.router_bytes) for name in between}
    cache = ExpertCache(device, {spec.run_tier: made.near_bytes, **lower}, settings.evict)
    others: dict[Side, tuple[ExpertCache, Set[str]]] = {}
    bases, found = bases_of(models), dict[str, Base]()
    if bases:
        shared, found = load_bases(device, bases)
        others["bases"] = shared, bases.keys()
    if made.router_bytes:
        own = ExpertCache(device, dict.fromkeys((spec.run_tier, *between), made.router_bytes))
        others["router"] = own, {ROUTER}
    all_weights: Cache = SplitCache(cache, others) if others else cache
    # Sequences fill it gradually: where it is system memory, untouched pages stay with the system.
    kv = KVPool(device.reserve(spec.run_tier, made.kv_bytes, touched=False), made.block_bytes, settings.reuse)
    programs = made.programs or _programs(models, settings.rule_set or spec.rule_set)
    loaded = {key: device.load(program) for key, program in programs.items()}
    for one in expected_steps(models, programs, made.base_of, settings.policy):
        device.expect(loaded[one.key], one.limits, made.block_bytes, one.shared)
    served: dict[str, ServedExpert] = {}
    for name, model in models.items():
        served[name] = served_of(name, model, loaded[model.key], found.get(base_of(model, bases)))
    engine = Engine(device, all_weights, kv, served, settings.policy, recording)
    return Parts(device, engine, all_weights, cache, kv, made, served, recording)


def served_of(name: str, model: Model, exe: Executable, base: Base | None) -> ServedExpert:
    """The ServedExpert of a model."""
    limits = model.max_context, model.config.vocab_size
    return ServedExpert(name, model.layout, exe, model.kv, *limits, base, model.draft)


@dataclass(frozen=True, slots=True)
class ExpectedSteps:
    """What a program may be asked to run: its architecture key, and the limits of a step.

    `shared`: for steps of several experts, the weights (by index) that they have in common; None: steps of one expert.
    """

    key: str
    limits: Limits
    shared: tuple[int, ...] | None = None


def expected_steps(
    models: Mapping[str, Model], programs: Mapping[str, Program], base_of: Mapping[str, str], policy: Policy
) -> tuple[ExpectedSteps, ...]:
    """What serving these models may require of their programs, without duplicates. `base_of`: each adapter's base."""
    limits = _limits(models, programs, policy)
    variants = Counter(
        (model.key, base_of[name], shared_places(programs[model.key].weights, model.layout))
        for name, model in models.items()
        if policy.share_steps and name in base_of
    )
    mixed = [ExpectedSteps(key, limits[key], shared) for (key, _, shared), count in variants.items() if count > 1]
    return tuple(dict.fromkeys([*(ExpectedSteps(key, limit) for key, limit in limits.items()), *mixed]))


def limits_of(program: Program, max_context: int, policy: Policy) -> Limits:
    """The limits of one step; if a step must hold a whole text, it may have more tokens than the policy says."""
    tokens = max(policy.max_step_tokens, max_context) if program.bidirectional else policy.max_step_tokens
    return Limits(policy.max_batch, tokens, max_context)


def _limits(models: Mapping[str, Model], programs: Mapping[str, Program], policy: Policy) -> dict[str, Limits]:
    """The limits of a step of each program, by architecture key."""
    contexts: dict[str, int] = {}
    for model in models.values():
        contexts[model.key] = max(contexts.get(model.key, 0), model.max_context)
    return {key: limits_of(programs[key], context, policy) for key, context in contexts.items()}


def warm_up(parts: Parts, models: Mapping[str, Model], order: Iterable[str]) -> float:
    """Load experts one after the other, so that each tier ends up as full as it gets. Returns the seconds taken.

    Raises CapacityError for one that will never fit, and the failure of a load.
    """
    device, start_s = parts.device, parts.device.now()
    for name in order:
        ready = parts.all_weights.want(name, models[name].layout).ready
        if ready is not None:
            wait_for(device, ready)
        failed = [failure for _, failure in parts.all_weights.poll() if failure is not None]
        if failed:
            raise failed[0]
    return device.now() - start_s

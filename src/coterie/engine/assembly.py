"""From models to an engine on a device that is given: what memory each part gets, one program per architecture, wiring.

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

PAGE_TOKENS = 16  # tokens of the largest architecture in one KV block; smaller ones get more
KV_SEQUENCES = 16  # the default KV budget holds this many sequences of the longest default context
KV_CONTEXT = 4096  # contexts above this are possible, but the default budget is not sized for many of them
KV_SHARE = 0.2  # of the run tier, at most, by default
EXPERTS_SHARE = 0.5  # of a run tier that is the system's own memory; the rest is left to everybody else


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve, whatever the device. None means: chosen by `plan`, which says what it chose.

    `pool_bytes`: of each tier between the run tier and the files, at most; None: all experts, as far as there is room.
    `record`: how much work to remember for a trace or a replay (pieces of work, the last ones); 0 keeps no record.
    `reuse`: whether prompts that begin as earlier ones share their KV state.
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
    """Where the bytes go: `near_bytes` for experts in the run tier, `kv_bytes` in blocks of `block_bytes`.

    `router_bytes` of the run tier are the router's own model's, 0 where it has none; `work_bytes` hold what the largest
    step stores. `expert_bytes`: of experts that come and go; `base_bytes`: of bases that adapters share, which stay in
    the run tier beside `near_bytes`; `base_of`: each adapter's. `programs`: what was compiled to know all that, by
    architecture key.
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
        """All experts that come and go, together."""
        return sum(self.expert_bytes.values())

    @property
    def bases_bytes(self) -> int:
        """What bases take of the run tier, together."""
        return sum(round_up(size) for size in self.base_bytes.values())


@dataclass(frozen=True, slots=True)
class Parts:
    """A running assembly. `device` decides as of one instant (engine/timeline.py).

    `cache` holds the experts; `all_weights` also the router's own model, and bases that adapters share. `served`: what
    the engine serves, which may grow (engine/additions.py).
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
        """What is remembered of the work that has ended. Raises UsageError without Options.record."""
        name, made_up = self.device.spec.name, int(self.device.synthetic())
        return self.recorded().trace(device=name, synthetic_tokens=made_up)


def plan(models: Mapping[str, Model], spec: MachineSpec, settings: Settings) -> Plan:
    """Split the run tier. Raises CapacityError when the largest expert or one full context does not fit."""
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
    else:  # the usual share, or what the largest expert needs, as far as there is so much
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
    """One program for each architecture key."""
    graphs = {model.key: model.graph for model in models.values()}
    return {key: compile_graph(graph, rule_set) for key, graph in graphs.items()}


def work_bytes(models: Mapping[str, Model], rule_set: str, policy: Policy) -> int:
    """What the stored values of the largest step of any of these models take."""
    return _work_bytes(_programs(models, rule_set), models, policy)


def _work_bytes(programs: Mapping[str, Program], models: Mapping[str, Model], policy: Policy) -> int:
    """What the stored values of the largest step take on a device that grows their place by doubling it."""
    needed = 0
    for key, limits in _limits(models, programs, policy).items():
        tokens, rows = limits.tokens, limits.tokens if programs[key].sees_all else limits.sequences
        largest = Sizes(T=tokens, B=limits.sequences, R=rows, context_tokens=0, pairs=0)
        needed = max(needed, programs[key].buffers.offsets(largest)[1])
    return 1 << max(needed - 1, 0).bit_length()


def room_for_experts(spec: MachineSpec, taken_bytes: int, alone: bool = False) -> int:
    """What experts get of the run tier by default, beside KV, the router and the values of a step.

    With host memory below it the run tier (HBM) is ours alone, and what is free there helps nobody: experts get all
    that is left. What code and scratch need, a real device's spec has kept back. Without, the tier is the system's
    memory, and a share of it is theirs, unless the machine does nothing else: `alone`.
    """
    capacity = spec.tier(spec.run_tier).capacity_bytes
    return capacity - taken_bytes if alone or memories_below(spec) else int(capacity * EXPERTS_SHARE)


def _default_kv(models: Mapping[str, Model], block: int, capacity: int) -> int:
    blocks = max(_blocks(model, block, min(model.max_context, KV_CONTEXT)) for model in models.values())
    return max(min(blocks * KV_SEQUENCES * block, int(capacity * KV_SHARE)), block)


def block_bytes_for(models: Mapping[str, Model], kv_bytes: int | None) -> int:
    """The size of a KV block that suits all of these. Raises CapacityError where a KV cache of this size has none."""
    block = max(page_bytes(model.kv) for model in models.values())
    if kv_bytes is not None and kv_bytes < block:
        raise CapacityError("--kv", "one KV block", block, kv_bytes, [f"set --kv to at least {block} B"])
    return block


def page_bytes(kv: KvShape) -> int:
    """The size of a KV block that suits this architecture: PAGE_TOKENS tokens or a little more, in whole 4096s.

    A unit of recurrent state fits too.
    """
    return -(-max(kv.bytes_per_token * PAGE_TOKENS, kv.unit_bytes) // BLOCK_BYTES) * BLOCK_BYTES


def _blocks(model: Model, block: int, tokens: int) -> int:
    return model.kv.blocks_for(tokens, block)


def wire(models: Mapping[str, Model], made: Plan, settings: Settings, device: Device) -> Parts:
    """Compile and wire on a device that is given. Raises CapacityError, UnsupportedError."""
    recording = Recording(settings.record) if settings.record else None
    device = Timeline(device, recording)
    spec = device.spec
    between = memories_below(spec)  # they keep every expert that fits there
    if settings.pool_bytes is not None and not between:
        fact = f"{spec.name} has no memory between {spec.run_tier} and the files"
        raise UsageError("--pool", fact, "leave it out, or serve on a device that has")
    most = made.total_bytes if settings.pool_bytes is None else min(made.total_bytes, settings.pool_bytes)
    lower = {name: min(most, spec.tier(name).capacity_bytes - made.router_bytes) for name in between}
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
    # Conversations write it step by step: where it is the system's memory, what they do not need stays the system's.
    kv = KVPool(device.reserve(spec.run_tier, made.kv_bytes, touched=False), made.block_bytes, settings.reuse)
    programs = made.programs or _programs(models, settings.rule_set or spec.rule_set)
    loaded = {key: device.load(program) for key, program in programs.items()}
    for one in asked_of(models, programs, made.base_of, settings.policy):
        device.expect(loaded[one.key], one.limits, made.block_bytes, one.shared)
    served: dict[str, ServedExpert] = {}
    for name, model in models.items():
        served[name] = served_of(name, model, loaded[model.key], found.get(base_of(model, bases)))
    engine = Engine(device, all_weights, kv, served, settings.policy, recording)
    return Parts(device, engine, all_weights, cache, kv, made, served, recording)


def served_of(name: str, model: Model, exe: Executable, base: Base | None) -> ServedExpert:
    """What the engine must know of a model."""
    limits = model.max_context, model.config.vocab_size
    return ServedExpert(name, model.layout, exe, model.kv, *limits, base, model.draft)


@dataclass(frozen=True, slots=True)
class Asked:
    """What steps may be asked of a program: its architecture key, and the most that one has. `shared`: those of several
    experts at once, which have the weights at these places in common; None: those of one.
    """

    key: str
    limits: Limits
    shared: tuple[int, ...] | None = None


def asked_of(
    models: Mapping[str, Model], programs: Mapping[str, Program], base_of: Mapping[str, str], policy: Policy
) -> tuple[Asked, ...]:
    """What serving these models may ask of their programs, each once. `base_of`: each adapter's."""
    limits = _limits(models, programs, policy)
    variants = Counter(
        (model.key, base_of[name], shared_places(programs[model.key].weights, model.layout))
        for name, model in models.items()
        if policy.share_steps and name in base_of
    )
    mixed = [Asked(key, limits[key], shared) for (key, _, shared), count in variants.items() if count > 1]
    return tuple(dict.fromkeys([*(Asked(key, most) for key, most in limits.items()), *mixed]))


def limits_of(program: Program, max_context: int, policy: Policy) -> Limits:
    """The most of one step: of tokens more than the policy says where a step must have all of a text."""
    tokens = max(policy.max_step_tokens, max_context) if program.sees_all else policy.max_step_tokens
    return Limits(policy.max_batch, tokens, max_context)


def _limits(models: Mapping[str, Model], programs: Mapping[str, Program], policy: Policy) -> dict[str, Limits]:
    """The most of a step of each program, by architecture key."""
    contexts: dict[str, int] = {}
    for model in models.values():
        contexts[model.key] = max(contexts.get(model.key, 0), model.max_context)
    return {key: limits_of(programs[key], context, policy) for key, context in contexts.items()}


def warm_up(parts: Parts, models: Mapping[str, Model], order: Iterable[str]) -> float:
    """Bring experts up one after the other, as at registration: then each tier holds what fits. Returns the seconds.

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

"""Builds what serves a composition: opens models, compiles a program per architecture, splits memory, wires the engine.

    composition -> models -> Plan (who needs what, does it fit) -> Parts (device, cache, KV pool, engine)

The one place that resolves every "auto" and knows concrete devices. Knows nothing about prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coterie.checkpoint.files import read_object
from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.composition.composition import Composition
from coterie.composition.expert import Expert
from coterie.core.errors import CapacityError, CompositionError, UsageError
from coterie.core.trace import Trace
from coterie.device import Device, Executable
from coterie.devices.cpu import CpuDevice
from coterie.devices.modelled import ModelledDevice
from coterie.engine.engine import Engine
from coterie.engine.kv import KVPool
from coterie.engine.policy import Policy
from coterie.engine.recording import Recording
from coterie.engine.served import ServedExpert
from coterie.engine.timeline import Timeline
from coterie.graph.compile import compile_graph
from coterie.graph.program import KvShape
from coterie.memory.budget import plan_budget
from coterie.memory.cache import ExpertCache
from coterie.models.model import Model, open_model, synthetic_model
from coterie.spec.load import load_machine
from coterie.spec.machine import MachineSpec
from coterie.spec.this_machine import this_machine

PAGE_TOKENS = 16  # tokens of the largest architecture in one KV block; smaller ones get more
KV_SEQUENCES = 16  # the default KV budget holds this many sequences of the longest default context
KV_CONTEXT = 4096  # contexts above this are possible, but the default budget is not sized for many of them
EXPERTS_SHARE, KV_SHARE = 0.5, 0.2  # of the run tier, at most, by default; the rest is left to the system


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve. None means: chosen by `plan`, which says what it chose.

    `device`: cpu, modelled:MACHINE (real tokens, modelled time) or synthetic:MACHINE (no numbers at all).
    `record`: how much work to remember for a trace or a replay (pieces of work, the last ones); 0 keeps no record.
    """

    device: str = "cpu"
    near_bytes: int | None = None
    kv_bytes: int | None = None
    threads: int | None = None
    rule_set: str | None = None
    evict: str = "lru"
    policy: Policy = field(default_factory=Policy)
    record: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the bytes go: `near_bytes` for experts in the run tier, `kv_bytes` in blocks of `block_bytes`."""

    spec: MachineSpec
    expert_bytes: Mapping[str, int]
    near_bytes: int
    kv_bytes: int
    block_bytes: int

    @property
    def total_bytes(self) -> int:
        """All experts together."""
        return sum(self.expert_bytes.values())


@dataclass(frozen=True, slots=True)
class Parts:
    """A running assembly. `device` decides as of one instant (engine/timeline.py)."""

    device: Device
    engine: Engine
    cache: ExpertCache
    kv: KVPool
    plan: Plan
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


def open_models(composition: Composition, device: str) -> dict[str, Model]:
    """Open every expert: headers and configs, no weights.

    Raises CheckpointError and UnsupportedError, and CompositionError for an expert without bytes on a real device.
    """
    synthetic = _kind(device)[0] == "synthetic"
    return {expert.name: _open(expert, synthetic, composition.name) for expert in composition.experts}


def _open(expert: Expert, synthetic: bool, where: str) -> Model:
    if expert.checkpoint is not None:
        return open_model(expert.checkpoint, expert.name)
    if not synthetic:
        fact = f"expert {expert.name} has a config but no weights"
        raise CompositionError(where, fact, "give it a checkpoint, or use --device synthetic:MACHINE")
    path = Path(expert.config or "")
    if not path.is_file():
        raise CompositionError(where, f"config {expert.config!r} of {expert.name} is not a file", "give a config.json")
    return synthetic_model(read_object(path), expert.name)


def make_spec(options: Options) -> MachineSpec:
    """The machine that the device option names. Raises UsageError."""
    kind, machine = _kind(options.device)
    return this_machine() if kind == "cpu" else load_machine(machine)


def plan(models: Mapping[str, Model], spec: MachineSpec, options: Options) -> Plan:
    """Split the run tier. Raises CapacityError when the largest expert or one full context does not fit."""
    capacity = spec.tier(spec.run_tier).capacity_bytes
    sizes = {name: model.layout.size_bytes for name, model in models.items()}
    near = plan_budget(_default_near(sizes, capacity) if options.near_bytes is None else options.near_bytes, sizes)
    block = max(page_bytes(model.kv) for model in models.values())
    kv = _default_kv(models, block, capacity) if options.kv_bytes is None else options.kv_bytes
    if kv < block:
        raise CapacityError("--kv", "one KV block", block, kv, [f"set --kv to at least {block} B"])
    if near + kv > capacity:
        levers = ["lower --near", "lower --kv"]
        raise CapacityError(spec.run_tier, "experts and KV cache together", near + kv, capacity, levers)
    return Plan(spec, sizes, near, kv // block * block, block)


def _default_near(sizes: Mapping[str, int], capacity: int) -> int:
    return max(min(sum(sizes.values()), int(capacity * EXPERTS_SHARE)), *sizes.values())


def _default_kv(models: Mapping[str, Model], block: int, capacity: int) -> int:
    blocks = max(_blocks(model, block, min(model.max_context, KV_CONTEXT)) for model in models.values())
    return max(min(blocks * KV_SEQUENCES * block, int(capacity * KV_SHARE)), block)


def page_bytes(kv: KvShape) -> int:
    """The size of a KV block that suits this architecture: PAGE_TOKENS tokens or a little more, in whole 4096s."""
    return -(-kv.bytes_per_token * PAGE_TOKENS // BLOCK_BYTES) * BLOCK_BYTES


def _blocks(model: Model, block: int, tokens: int) -> int:
    return -(-tokens // model.kv.tokens_per_block(block))


def assemble(models: Mapping[str, Model], made: Plan, options: Options) -> Parts:
    """Reserve memory, compile one program per architecture key, and wire the engine.

    Raises CapacityError, UnsupportedError.
    """
    device = make_device(made.spec, options)
    try:
        return wire(models, made, options, device)
    except BaseException:
        device.close()
        raise


def wire(models: Mapping[str, Model], made: Plan, options: Options, device: Device) -> Parts:
    """Compile and wire on a device that is given. Raises CapacityError, UnsupportedError."""
    recording = Recording(options.record) if options.record else None
    device = Timeline(device, recording)
    spec = device.spec
    # Tiers between the run tier and the files keep every expert that fits there; the CPU has none.
    between = (
        spec.weight_tiers[1 : spec.weight_tiers.index("disk")] if "disk" in spec.weight_tiers else spec.weight_tiers[1:]
    )
    lower = {name: min(made.total_bytes, spec.tier(name).capacity_bytes) for name in between}
    cache = ExpertCache(device, {spec.run_tier: made.near_bytes, **lower}, options.evict)
    kv = KVPool(device.reserve(spec.run_tier, made.kv_bytes), made.block_bytes)
    rule_set = options.rule_set or spec.rule_set
    programs: dict[str, Executable] = {}
    served: dict[str, ServedExpert] = {}
    for name, model in models.items():
        if model.key not in programs:
            programs[model.key] = device.load(compile_graph(model.graph, rule_set))
        exe = programs[model.key]
        served[name] = ServedExpert(name, model.layout, exe, model.kv, model.max_context, model.config.vocab_size)
    engine = Engine(device, cache, kv, served, options.policy, recording)
    return Parts(device, engine, cache, kv, made, recording)


def make_device(spec: MachineSpec, options: Options) -> Device:
    """The device that the option names."""
    return _DEVICES[_kind(options.device)[0]](spec, options)


def _make_cpu(spec: MachineSpec, options: Options) -> Device:
    return CpuDevice(spec, threads=options.threads)


def _make_modelled(spec: MachineSpec, options: Options) -> Device:
    return ModelledDevice(spec, numerics=CpuDevice(this_machine(), threads=options.threads))


def _make_synthetic(spec: MachineSpec, options: Options) -> Device:
    return ModelledDevice(spec)


_DEVICES: Mapping[str, Callable[[MachineSpec, Options], Device]] = {
    "cpu": _make_cpu,
    "modelled": _make_modelled,
    "synthetic": _make_synthetic,
}


def _kind(device: str) -> tuple[str, str]:
    kind, _, machine = device.partition(":")
    if kind not in _DEVICES or (kind == "cpu") != (machine == ""):
        fact = f"{device!r} is not a device"
        raise UsageError("--device", fact, "use cpu, modelled:MACHINE or synthetic:MACHINE")
    return kind, machine

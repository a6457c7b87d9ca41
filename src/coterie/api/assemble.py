"""Puts a composition on the device that an option names: opens its models and wires them by engine/assembly.py.

    composition -> models -> Plan (who needs what, does it fit) -> Parts (device, cache, KV pool, engine)

The one place that knows concrete devices by name. Knows nothing about prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from coterie.api.sampling import CHECKPOINT
from coterie.composition.composition import Composition
from coterie.core.errors import UsageError
from coterie.device import Device
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.cuda.gpu import PREFIX, Gpu, gpu_number
from coterie.devices.modelled.device import ModelledDevice
from coterie.engine.assembly import Parts, Plan, Settings, wire
from coterie.engine.experts import open_experts
from coterie.engine.policy import Policy
from coterie.graph.ops import BF16, INT8
from coterie.kernels import cpu as kernels
from coterie.models.model import AUTO, FLOAT32, Model, with_activations, with_kv_type
from coterie.spec.load import load_machine
from coterie.spec.machine import MachineSpec
from coterie.spec.this_machine import allowed_cores, this_machine

# Sequences of one step on a CPU. A token costs a tenth less in a step of 64 than in one of 32, and hardly less in one
# of 128, whose logits take twice the memory.
CPU_BATCH = 64
HOST_TIER = "dram"  # what devices of one machine share
_HERE = ("cpu", PREFIX)  # kinds of devices that are parts of this machine
MET_BY = {INT8: "packed", BF16: "bfloat16"}  # which weights such activations are for
_FOUND = {INT8: "pack an expert with coterie quantize", BF16: "serve one whose matrices are stored so"}


@dataclass(frozen=True, slots=True)
class Options(Settings):
    """How to serve, and on what: Settings, and a device.

    `device`: cpu, cuda or cuda:NUMBER (a GPU), modelled:MACHINE (real tokens, modelled time) or synthetic:MACHINE (no
    numbers at all).
    `activations`: what they are rounded to on a CPU. float32 (int16 is the same): not at all for bfloat16 weights, to
    16 bits for packed ones; int8: 8 bits for packed ones; bf16: bfloat16 for bfloat16 ones; auto: see `rounded_for`.
    `kv_type`: how keys and values are kept: auto, as each model's weights are, or int8, which a CPU takes.
    `sampling`: whose defaults hold where a request does not say how to draw: checkpoint, or greedy.
    `draft`: the draft expert of all others with its vocabulary, unless they name one; empty: none.
    `beside`: further devices of the same kind, behind one endpoint (fleet.py); those that are parts of this machine
    share its cores and its memory evenly, `threads` are of all of them together, and other budgets are of each.
    `shared_by`: how many devices do so, of which this is one.
    `max_waiting`: how many requests may wait before more are refused; None: any number.
    """

    device: str = "cpu"
    threads: int | None = None
    activations: str = AUTO
    kv_type: str = AUTO
    max_waiting: int | None = None
    sampling: str = CHECKPOINT
    draft: str = ""
    beside: tuple[str, ...] = ()
    shared_by: int = 1

    @property
    def devices(self) -> tuple[str, ...]:
        """All of them."""
        return (self.device, *self.beside)


def open_models(composition: Composition, options: Options) -> dict[str, Model]:
    """Open every expert: headers and configs, no weights; without bytes only where no numbers are computed.

    Raises CheckpointError and UnsupportedError, CompositionError for an expert without bytes on a real device, and what
    `as_served` does.
    """
    models = open_experts(composition, synthetic=is_synthetic(options.device))
    return as_served(composition.name, models, options)


def is_synthetic(device: str) -> bool:
    """Whether the device option names one that computes no numbers. Raises UsageError."""
    return _kind(device)[0] == "synthetic"


def as_served(whole: str, models: Mapping[str, Model], options: Options) -> dict[str, Model]:
    """The models of `whole` with the activations and the type of keys and values that the options say.

    Raises UsageError where no expert has the weights for such activations, and for 8 bits of KV on a GPU,
    UnsupportedError for these with latent attention.
    """
    activations, device = options.activations, options.device
    if options.kv_type != AUTO and _kind(device)[0] == PREFIX:
        fact = f"a GPU's kernels keep keys and values as the weights are, not in {options.kv_type}"
        raise UsageError("--kv-type", fact, "leave it out, or serve on the CPU")
    kept = {name: with_kv_type(model, options.kv_type) for name, model in models.items()}
    chosen = {name: rounded_for(model, activations, device) for name, model in kept.items()}
    if activations in MET_BY and all(chosen[name].key == model.key for name, model in kept.items()):
        raise unmet(f"no expert of {whole} has {MET_BY[activations]} weights", activations, _FOUND[activations])
    return chosen


def unmet(fact: str, activations: str, remedy: str = "") -> UsageError:
    """What is said where weights, of which `fact` says how they are stored, are not for such activations."""
    fact = f"{fact}, and {activations} activations are only for {MET_BY.get(activations, 'packed')} weights"
    return UsageError("--activations", fact, f"{remedy}{remedy and ', or '}leave the option out")


def rounded_for(model: Model, activations: str, device: str) -> Model:
    """The model with such activations. Raises UsageError for an unknown word.

    Auto is bf16 for an expert that is dense, on a CPU that multiplies bfloat16 in one instruction: up to 1.6 times as
    fast there, for a tenth of what is lost where all is bfloat16. It is float32 elsewhere: another CPU gains little; a
    token that is rounded may take other branches, and a recurrence hands that on to all that follow.
    """
    if activations == AUTO:
        is_dense = not model.config.branches and not model.kv.recurrent
        activations = BF16 if device == "cpu" and kernels.BF16_PRODUCTS and is_dense else FLOAT32
    return with_activations(model, activations)


def policy_for(device: str, max_batch: int | None = None) -> Policy:
    """The policy for who serves on a device. `max_batch`: sequences of one step; None: what suits it.

    Raises UsageError.
    """
    policy = Policy()
    suits = CPU_BATCH if _kind(device)[0] == "cpu" else policy.max_batch
    return replace(policy, max_batch=suits if max_batch is None else max_batch)


def make_spec(options: Options) -> MachineSpec:
    """The machine that the device option names. Raises UsageError."""
    kind, machine = _kind(options.device)
    if kind in _HERE:
        spec = Gpu(int(machine or 0)).spec() if kind == PREFIX else this_machine()
        return _its_part(spec, options.shared_by)
    return load_machine(machine)


def _its_part(spec: MachineSpec, shared_by: int) -> MachineSpec:
    """A machine of which so many devices have an even part of the cores and of the host's memory each."""
    if shared_by == 1:
        return spec
    tiers = [
        replace(tier, capacity_bytes=tier.capacity_bytes // shared_by, source=f"a {shared_by}th of {tier.source}")
        if tier.name == HOST_TIER
        else tier
        for tier in spec.tiers
    ]
    return replace(spec, tiers=tuple(tiers), units=max(spec.units // shared_by, 1))


def check_alone(options: Options) -> Options:
    """The same options, for who takes one device. Raises UsageError where there are several."""
    if options.beside:
        fact = f"{len(options.devices)} devices are given, but one is opened"
        raise UsageError("--device", fact, "give one, or open a Fleet")
    return options


def each_device(options: Options) -> tuple[Options, ...]:
    """The options of each of several devices. Raises UsageError where they do not go together."""
    devices, kinds = options.devices, {_kind(device)[0] for device in options.devices}
    if len(kinds) > 1:
        fact = f"{' and '.join(sorted(kinds))} are of different kinds, of which one would wait for the other"
        raise UsageError("--device", fact, "give devices of one kind, or start a server for each")
    numbers = [number for device in devices if (number := gpu_number(device)) is not None]
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        fact = f"cuda:{twice[0]} is given {numbers.count(twice[0])} times"
        raise UsageError("--device", fact, "give each GPU once")
    if options.threads is not None and options.threads < len(devices):
        fact = f"{options.threads} threads are fewer than the {len(devices)} devices that share them"
        raise UsageError("--threads", fact, "give as many at least")
    return tuple([replace(options, device=device, beside=(), shared_by=len(devices)) for device in devices])


def _threads(options: Options) -> int | None:
    """Compute threads of a CPU device; None: as many as there are cores."""
    if options.shared_by == 1:
        return options.threads
    return max((options.threads or allowed_cores()[0]) // options.shared_by, 1)


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


def make_device(spec: MachineSpec, options: Options) -> Device:
    """The device that the option names."""
    return _DEVICES[_kind(options.device)[0]](spec, options)


_DEVICES: Mapping[str, Callable[[MachineSpec, Options], Device]] = {
    "cpu": lambda spec, options: CpuDevice(spec, threads=_threads(options)),
    PREFIX: lambda spec, options: Gpu(gpu_number(options.device) or 0).make(spec=spec),
    "modelled": lambda spec, options: ModelledDevice(spec, CpuDevice(this_machine(), threads=_threads(options))),
    "synthetic": lambda spec, options: ModelledDevice(spec),
}


def _kind(device: str) -> tuple[str, str]:
    kind, _, machine = device.partition(":")
    named = gpu_number(device) is not None if kind == PREFIX else (kind == "cpu") == (machine == "")
    if kind not in _DEVICES or not named:
        fact = f"{device!r} is not a device"
        raise UsageError("--device", fact, "use cpu, cuda, modelled:MACHINE or synthetic:MACHINE")
    return kind, machine

"""Puts a composition on the device that an option names: opens its models and wires them with engine/assembly.py.

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

# Sequences per step on a CPU. In a batch of 64 a token costs a tenth less than in one of 32; 128 saves hardly more, and
# its logits take twice the memory.
CPU_BATCH = 64
HOST_TIER = "dram"  # the tier that devices of one machine share
_HERE = ("cpu", PREFIX)  # kinds of device that are in this machine
MET_BY = {INT8: "packed", BF16: "bfloat16"}  # the weights that these activations apply to
_FOUND = {INT8: "pack an expert with coterie quantize", BF16: "serve one whose matrices are stored so"}


@dataclass(frozen=True, slots=True)
class Options(Settings):
    """How to serve, and on what: Settings, and a device.

    device: cpu, cuda or cuda:NUMBER (a GPU), modelled:MACHINE (real tokens, modelled time) or synthetic:MACHINE (no
        numbers at all).
    activations: rounding of activations on a CPU. float32 (same as int16): none for bfloat16 weights, 16 bits for
        packed ones; int8: 8 bits for packed ones; bf16: bfloat16 for bfloat16 ones; auto: see `rounded_for`.
    kv_type: type of keys and values: auto, that of each model's weights; or int8, on a CPU.
    max_waiting: how many requests may wait before more are refused; None: unlimited.
    sampling: whose defaults apply where a request says nothing: checkpoint, or greedy.
    draft: the draft expert of all others with its vocabulary, unless they name one; empty: none.
    beside: further devices of the same kind, behind one endpoint (fleet.py). Devices in this machine share its cores
        and memory evenly; `threads` is their total, other budgets are per device.
    shared_by: how many devices share the machine, including this one.
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
        """All devices."""
        return (self.device, *self.beside)


def open_models(composition: Composition, options: Options) -> dict[str, Model]:
    """Open every expert: headers and configs, no weights. Experts without bytes are allowed only on a synthetic device.

    Raises CheckpointError and UnsupportedError, CompositionError for an expert without bytes on a real device, and what
    `as_served` does.
    """
    models = open_experts(composition, synthetic=is_synthetic(options.device))
    return as_served(composition.name, models, options)


def is_synthetic(device: str) -> bool:
    """Whether the device option names one that computes no numbers. Raises UsageError."""
    return _kind(device)[0] == "synthetic"


def as_served(whole: str, models: Mapping[str, Model], options: Options) -> dict[str, Model]:
    """The models of `whole` with the activations and KV type of the options.

    Raises UsageError if no expert has weights for such activations, and for an 8-bit KV cache on a GPU;
    UnsupportedError for one with latent attention.
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
    """The error for activations that the weights, whose storage `fact` describes, do not support."""
    fact = f"{fact}, and {activations} activations are only for {MET_BY.get(activations, 'packed')} weights"
    return UsageError("--activations", fact, f"{remedy}{remedy and ', or '}leave the option out")


def rounded_for(model: Model, activations: str, device: str) -> Model:
    """The model with these activations. Raises UsageError for an unknown word.

    Auto means bf16 for dense experts on a CPU with bfloat16 dot products: up to 1.6 times as fast there, for a tenth of
    the error of computing in bfloat16 throughout. Elsewhere it means float32: other CPUs gain little, and in a mixture
    of experts rounding may change a token's branches, in a recurrence it propagates to all later tokens.
    """
    if activations == AUTO:
        is_dense = not model.config.branches and not model.kv.recurrent
        activations = BF16 if device == "cpu" and kernels.BF16_PRODUCTS and is_dense else FLOAT32
    return with_activations(model, activations)


def policy_for(device: str, max_batch: int | None = None) -> Policy:
    """The default policy for a device. `max_batch`: sequences of one step; None: what suits the device.

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
    """The machine's spec with its cores and host memory divided evenly among `shared_by` devices."""
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
    """The options, unchanged. Raises UsageError if they name several devices."""
    if options.beside:
        fact = f"{len(options.devices)} devices are given, but one is opened"
        raise UsageError("--device", fact, "give one, or open a Fleet")
    return options


def each_device(options: Options) -> tuple[Options, ...]:
    """The options for each of several devices. Raises UsageError if they do not go together."""
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
    """Compute threads of a CPU device; None: one per core."""
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

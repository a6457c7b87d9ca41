"""This machine's own benchmarks (benchmarks/results), against a model of its limits: decode, prefill, switch, fusion.

    limits        read bandwidth and multiply-add rate, measured along with each result (else those of decode-135m).
                  If a result has it, also the rate of products with weights from cache: for one token, unpacking may
                  take longer than reading; for many, it includes tiling and the machine's state at that moment, which
                  the multiply-add rate in registers does not
    calibration   decode and prefill of the 135M shape: start time of a region, share of a limit that each kernel
                  reaches (by type of weights and activations, few tokens or many); the disk's rate is the fetch's own.
                  The fusion bench repeats this work
    validation    everything else: the 1B shape, cold and warm switches, other rule sets

Knows nothing about GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.parsed import parse_json
from coterie.core.shapes import Sizes
from coterie.device import Binding, Event, prompt_rows, wait_for
from coterie.devices.modelled.device import ModelledDevice
from coterie.devices.modelled.price import step_time
from coterie.engine.assembly import page_bytes
from coterie.graph.compile import compile_graph
from coterie.graph.cost import program_cost
from coterie.graph.program import Program
from coterie.memory.rows import early_rows
from coterie.memory.transfer import early_gate, fetch_layout, stage_gates
from coterie.models.model import Model, synthetic_model
from coterie.models.packing import BY_NAME, KEY, Packing
from coterie.plan.validate.rows import CALIBRATION, CPU, VALIDATION, Row
from coterie.spec.load import load_machine
from coterie.spec.machine import Link, MachineSpec

BASE = "epyc-2core"  # provides tiers and names; every speed is replaced by a measured one
_SMALL = "135m"
IN_REGISTERS, IN_CACHE = "multiply-adds", "products from cache"
FEW_TOKENS, _FEW = 16, ", few tokens"  # up to this many, the small-batch kernels are used (csrc/tile.h)
GIVEN = (
    "this CPU: given to each row, not predicted: what memory and multiply-adds do alone, measured beside it or beside "
    "decode-135m; where its result has it, what its kernel does with weights from cache; a cold switch's fetching rate"
)

Shapes = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """Limits measured along with a result.

    `products`: flops per second by location of the weights: IN_REGISTERS and, if the result has it, IN_CACHE for the
    row's number of tokens.
    """

    bytes_per_s: float
    products: Mapping[str, float]


WRONG = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)  # raised by malformed results


@dataclass(frozen=True, slots=True)
class Fit:
    """The calibration: seconds to start a region, and shares of the product rates by (kernel, limit).

    `prompt`: the kernel of the calibration prompt, the fallback for kernels that are not calibrated.
    """

    launch_s: float
    shares: Mapping[tuple[str, str], float]
    prompt: str

    def flops_per_s(self, limits: MachineLimits, kind: str, tokens: int) -> float:
        """The rate that a step of `tokens` tokens reaches, by its kernel or the nearest calibrated one."""
        for kernel in dict.fromkeys((_kernel(kind, tokens), kind, f"{kind}{_FEW}", self.prompt)):
            for limit in (IN_CACHE, IN_REGISTERS):
                if limit in limits.products and (kernel, limit) in self.shares:
                    return limits.products[limit] * self.shares[kernel, limit]
        raise KeyError(IN_REGISTERS)


def cpu_rows(results: Path, shapes: Shapes) -> tuple[list[Row], tuple[str, ...]]:
    """Rows, and the fit in words. Raises UsageError for a malformed result, or if the 135M results are missing."""
    try:
        return _cpu_rows(results, shapes)
    except WRONG as error:
        raise not_a_result(str(results), "", error) from error


def not_a_result(where: str, file: str, error: Exception) -> UsageError:
    """The error for a malformed result, in `file` if that is known."""
    at = f" in {file}" if file else ""
    fact = f"has no {error}{at}" if isinstance(error, KeyError) else f"has a value{at} that is none there ({error})"
    return UsageError(where, f"{fact}, as coterie bench writes it", "run it again")


def _cpu_rows(results: Path, shapes: Shapes) -> tuple[list[Row], tuple[str, ...]]:
    found = {name: raw for name, raw in read_results(results).items() if not (of_gpu(raw) or of_checkpoint(raw))}
    decodes = {name: raw for name, raw in found.items() if raw.get("bench") == "decode"}
    fit = _fit(found, shapes, str(results))
    rows: list[Row] = []
    for name, raw in decodes.items():
        rows += _decode_rows(name, raw, shapes, fit)
    main = _limits(found["decode-135m"])
    for name, raw in found.items():
        if raw.get("bench") == "prefill":
            rows.append(_prefill_row(name, raw, shapes, fit, main))
        elif raw.get("bench") == "switch":
            rows += _switch_rows(name, raw, shapes, fit, main)
        elif raw.get("bench") == "fusion":
            rows += _fusion_rows(name, raw, shapes, fit, main)
    said = [f"this CPU: {fit.launch_s * 1e6:.1f} us to start a region"]
    for limit in (IN_REGISTERS, IN_CACHE):
        reached = [f"{share:.2f} with {kernel}" for (kernel, by), share in fit.shares.items() if by == limit]
        if reached:
            said.append(f"of {limit} {', '.join(reached)}")
    return rows, ("; ".join(said), GIVEN)


def _fit(found: Mapping[str, Mapping[str, Any]], shapes: Shapes, where: str) -> Fit:
    small = {k: v for k, v in found.items() if v.get("bench") == "decode" and v["workload"]["shape"] == _SMALL}
    if "decode-135m" not in small or "prefill-135m" not in found:
        fact = "has no decode-135m.json and prefill-135m.json, from which the model is calibrated"
        raise UsageError(where, fact, "make them with coterie bench decode and prefill, --shape 135m")
    raw = small["decode-135m"]
    program = _program(shapes, raw["workload"])
    cost = program_cost(program, _decode_sizes(raw["workload"], 1))
    least_s = cost.total_bytes / _limits(raw).bytes_per_s
    launch_s = max(0.0, (raw["seconds_per_token"] - least_s) / len(program.regions))
    shares: dict[tuple[str, str], float] = {}
    for other in (raw, *small.values()):
        kind, size = kind_of(other["workload"]), other["batch"]["size"]
        if kind == "bf16" and other is not raw:
            continue  # longer contexts: attention, not products
        packed = _program(shapes, other["workload"])
        flops = program_cost(packed, _decode_sizes(other["workload"], size)).flops
        left_s = other["batch"]["seconds_per_step"] - launch_s * len(packed.regions)
        for limit, rate in _batch_limits(other).products.items():
            shares[_kernel(kind, size), limit] = _share(limit, flops / rate / left_s)
    # Last, to override large decode batches: they run the same kernel, but may be memory-bound.
    prefill = found["prefill-135m"]
    prompt = _kernel(kind_of(prefill["workload"]), prefill["workload"]["prompt_tokens"])
    left_s = prefill["seconds"] - launch_s * len(program.regions)
    for limit, rate in _prefill_limits(prefill, 0.0).products.items():
        shares[prompt, limit] = _share(limit, prefill["flops"] / rate / left_s)
    return Fit(launch_s, shares, prompt)


def _share(limit: str, found: float) -> float:
    """Cap shares of the in-register rate at 1, since nothing is faster; those of the in-cache rate may exceed it."""
    return min(1.0, found) if limit == IN_REGISTERS else found


def _spec(limits: MachineLimits, fit: Fit, kind: str, tokens: int, disk_bytes_per_s: float = 0.0) -> MachineSpec:
    base = load_machine(BASE)
    tiers = tuple(replace(t, bytes_per_s=limits.bytes_per_s) if t.name == base.run_tier else t for t in base.tiers)
    links: tuple[Link, ...] = base.links
    if disk_bytes_per_s:
        links = tuple(replace(link, bytes_per_s=disk_bytes_per_s, latency_s=0.0) for link in base.links)
    return replace(
        base, flops_per_s=fit.flops_per_s(limits, kind, tokens), flops_share=1.0, tiers=tiers, links=links,
        launch_host_s=0.0, launch_device_s=fit.launch_s,
    )  # fmt: skip


def _decode_rows(name: str, raw: Mapping[str, Any], shapes: Shapes, fit: Fit) -> Iterator[Row]:
    load, kind = raw["workload"], kind_of(raw["workload"])
    program, size = _program(shapes, load), raw["batch"]["size"]
    split = CALIBRATION if load["shape"] == _SMALL else VALIDATION
    for batch, measured_s in ((1, raw["seconds_per_token"]), (size, raw["batch"]["seconds_per_step"])):
        sizes = _decode_sizes(load, batch)
        limits = _limits(raw) if batch == 1 else _batch_limits(raw)
        if batch == 1 and IN_CACHE in limits.products:
            spec = replace(_spec(limits, fit, kind, 1), flops_per_s=limits.products[IN_CACHE])
            modelled_s = _one_token_s(spec, program, sizes)
        else:
            modelled_s = step_time(_spec(limits, fit, kind, batch), program, sizes).seconds
        label = f"{load['shape']} {kind}, batch {batch} ({name}, commit {raw['commit']})"
        yield Row("this CPU: decode", CPU, label, split, measured_s, modelled_s)


def _one_token_s(spec: MachineSpec, program: Program, sizes: Sizes) -> float:
    """Time of a one-token step: per region, the longer of memory time and products at the in-cache rate.

    The start of a region adds to the memory time, but is hidden behind products.
    """
    rows = step_time(spec, program, sizes).rows
    return sum(max(row.launch_s + max(row.memory_s.values()), row.compute_s) for row in rows)


def _prefill_row(name: str, raw: Mapping[str, Any], shapes: Shapes, fit: Fit, limits: MachineLimits) -> Row:
    load = raw["workload"]
    spec = _spec(_prefill_limits(raw, limits.bytes_per_s), fit, kind_of(load), load["prompt_tokens"])
    modelled_s = step_time(spec, _program(shapes, load), Sizes.prefill(1, load["prompt_tokens"])).seconds
    label = f"{load['shape']}, {load['prompt_tokens']} tokens ({name}, commit {raw['commit']})"
    split = CALIBRATION if load["shape"] == _SMALL else VALIDATION
    return Row("this CPU: prefill", CPU, label, split, raw["seconds"], modelled_s)


def _switch_rows(name: str, raw: Mapping[str, Any], shapes: Shapes, fit: Fit, limits: MachineLimits) -> Iterator[Row]:
    load = raw["workload"]
    beside = MachineLimits(limits.bytes_per_s, _products(limits.products[IN_REGISTERS], raw))
    spec = _spec(beside, fit, kind_of(load), load["prompt_tokens"], raw["fetch_bytes_per_s"])
    model, label = model_of(shapes, load), f"{load['shape']}, {load['prompt_tokens']} tokens"
    for kind, warm in (("cold", False), ("warm", True)):
        modelled_s = first_token_s(spec, model, load["prompt_tokens"], warm)
        row = f"{kind} {label} ({name}, commit {raw['commit']})"
        yield Row("this CPU: switch", CPU, row, VALIDATION, raw[f"{kind}_ttft_s"], modelled_s)


def _fusion_rows(name: str, raw: Mapping[str, Any], shapes: Shapes, fit: Fit, limits: MachineLimits) -> Iterator[Row]:
    load = raw["workload"]
    for way in raw["grid"]:
        fused, by = way["way"].split("/")
        if by != "device":
            continue  # the cost of starting a region from Python is not calibrated
        program = compile_graph(model_of(shapes, load).graph, "cache" if fused == "fused" else "none")
        decodes = way["phase"] == "decode"
        sizes = Sizes.decode(1, load["decode_context"]) if decodes else Sizes.prefill(1, way["tokens"])
        label = f"{way['way']} {way['phase']} {load['shape']} ({name}, commit {raw['commit']})"
        split = CALIBRATION if fused == "fused" and load["shape"] == _SMALL else VALIDATION
        bare = MachineLimits(limits.bytes_per_s, {IN_REGISTERS: limits.products[IN_REGISTERS]})
        modelled_s = step_time(_spec(bare, fit, "bf16", sizes.T), program, sizes).seconds
        yield Row("this CPU: fusion", CPU, label, split, way["seconds_per_step"], modelled_s)


def first_token_s(spec: MachineSpec, model: Model, tokens: int, warm: bool) -> float:
    """Time to first token with a resident expert (`warm`), or one that is fetched while its first layers run."""
    device = ModelledDevice(spec)
    weights = device.reserve(spec.run_tier, model.layout.size_bytes)
    block = page_bytes(model.kv)
    kv = device.reserve(spec.run_tier, block * model.kv.blocks_for(tokens, block))
    exe = device.load(compile_graph(model.graph, spec.rule_set))
    ids = np.random.default_rng(tokens).integers(0, model.config.vocab_size, tokens, dtype=np.int32)
    gates: dict[str, Event] = {}
    if not warm:
        issued: list[Event] = []
        early = early_rows(model.layout, frozenset(ids.tolist()))
        fetch_layout(device, model.layout, weights, issued, early)
        gates = dict(stage_gates(model.layout, issued, early))
        first = early_gate(model.layout, issued, early)
        if first is not None:
            gates[first.stage] = first.gate
    rows = prompt_rows(ids, kv.size_bytes // block)
    binding = Binding(weights, model.layout.offsets(exe.program.weights), kv, block, rows)
    event = device.run(exe, binding, gates)
    wait_for(device, event)
    return device.span(event).end_s


def _program(shapes: Shapes, load: Mapping[str, Any]) -> Program:
    return compile_graph(model_of(shapes, load).graph, "cache")


def model_of(shapes: Shapes, load: Mapping[str, Any]) -> Model:
    """The model of a workload, without bytes."""
    raw = dict(shapes(load["shape"]))
    packed = BY_NAME.get(weights_of(load))
    if packed:
        raw[KEY] = Packing(packed, DType.Q8).to_config()
    return synthetic_model(raw, load["shape"])


def weights_of(load: Mapping[str, Any]) -> str:
    """The weight type of a workload: bf16, int8, int6, int4 or int4z."""
    kind = str(load.get("weights", "bf16")).split()[-1]
    return kind if kind in BY_NAME else "bf16"


def kind_of(load: Mapping[str, Any]) -> str:
    """The kind of kernels: the weight type, plus the activation type unless it is the default.

    The default is float32, or int16 for packed weights; kernels for other types have a rate of their own.
    """
    weights, met = weights_of(load), load.get("activations", "float32")
    return weights if met == ("float32" if weights == "bf16" else "int16") else f"{weights} with {met} activations"


def _decode_sizes(load: Mapping[str, Any], batch: int) -> Sizes:
    return Sizes.decode(batch, int(load["context"]))


def _kernel(kind: str, tokens: int) -> str:
    """Which of a kind's two kernels a step of `tokens` tokens runs."""
    return f"{kind}{_FEW}" if tokens <= FEW_TOKENS else kind


def _limits(raw: Mapping[str, Any]) -> MachineLimits:
    """Limits of a decode result, for one token."""
    return MachineLimits(raw["read_limit"]["bytes_per_s"], _products(raw["multiply_add_flops_per_s"], raw))


def _batch_limits(raw: Mapping[str, Any]) -> MachineLimits:
    """Limits of a decode result, for its batch."""
    return MachineLimits(raw["read_limit"]["bytes_per_s"], _products(raw["multiply_add_flops_per_s"], raw["batch"]))


def _prefill_limits(raw: Mapping[str, Any], bytes_per_s: float) -> MachineLimits:
    return MachineLimits(bytes_per_s, _products(raw["peak_flops_per_s"], raw))


def _products(in_registers: float, raw: Mapping[str, Any]) -> dict[str, float]:
    cached = {IN_CACHE: float(raw["cached_flops_per_s"])} if "cached_flops_per_s" in raw else {}
    return {IN_REGISTERS: float(in_registers), **cached}


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results in a folder, by file name. Raises UsageError for a file that is not a result."""
    return {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}


def of_gpu(raw: Mapping[str, Any]) -> bool:
    """Whether a result is from a GPU."""
    return _names(raw, "gpu")


def of_checkpoint(raw: Mapping[str, Any]) -> bool:
    """Whether a result is for a user's own checkpoint, in which case it has no shape."""
    return _names(raw, "checkpoint")


def _names(raw: Mapping[str, Any], key: str) -> bool:
    workload = raw.get("workload")
    return isinstance(workload, dict) and key in workload


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise UsageError(
            str(file), f"cannot be read: {error.strerror}", "give a folder of results of coterie bench"
        ) from error
    raw = parse_json(text, str(file), "give a folder of results of coterie bench")
    if not isinstance(raw, dict):
        raise UsageError(str(file), "is not a bench's result", "give a folder of results of coterie bench")
    return raw

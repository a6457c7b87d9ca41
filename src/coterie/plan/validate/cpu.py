"""This machine's own benches (benchmarks/results): decode, prefill, switch and fusion, against a model of its sticks.

    sticks        read loop, multiply-adds; one token's products with weights of that type in cache, where a result has
                  it: unpacking may take longer than the bytes. Each result carries its own, taken beside it
    calibration   decode and prefill of the 135M shape: time of a region's start, share of the multiply-add rate reached
                  with each type of weights and activations; the disk's rate is the fetch's own. The fusion bench does
                  this work again
    validation    all else: the 1B shape, cold and warm switches, other rule sets

Knows nothing about GPUs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.device import Binding, Event, Rows, Sampling
from coterie.devices.modelled import ModelledDevice
from coterie.devices.modelled_price import step_time
from coterie.engine.assembly import page_bytes
from coterie.graph.compile import compile_graph
from coterie.graph.cost import program_cost
from coterie.graph.program import Program
from coterie.memory.rows import early_rows
from coterie.memory.transfer import early_gate, fetch_layout, stage_gates
from coterie.models.model import Model, synthetic_model
from coterie.models.packing import KEY, Packing
from coterie.plan.validate.rows import CALIBRATION, CPU, VALIDATION, Row
from coterie.spec.load import load_machine
from coterie.spec.machine import Link, MachineSpec

BASE = "epyc-2core"  # tiers and names of a machine of two cores; every speed is replaced by a measured one
_SMALL = "135m"
_BITS = {"int8": 8, "int4": 4}

Shapes = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Sticks:
    """What a result measured beside itself. `cached_flops_per_s`: one token's products, if memory were free."""

    bytes_per_s: float
    flops_per_s: float
    cached_flops_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Fit:
    """What the calibration rows gave: seconds to start a region, and the share of multiply-adds by type of weights."""

    launch_s: float
    shares: Mapping[str, float]


def cpu_rows(results: Path, shapes: Shapes) -> tuple[list[Row], tuple[str, ...]]:
    """Rows, and what was fitted, in words. Raises UsageError for a file that is no result, or when 135M ones lack."""
    try:
        return _cpu_rows(results, shapes)
    except KeyError as error:
        fact = f"holds a result without {error}, which coterie bench writes"
        raise UsageError(str(results), fact, "make its results anew") from error


def _cpu_rows(results: Path, shapes: Shapes) -> tuple[list[Row], tuple[str, ...]]:
    found = {name: raw for name, raw in read_results(results).items() if not of_gpu(raw)}
    decodes = {name: raw for name, raw in found.items() if raw.get("bench") == "decode"}
    fit = _fit(found, shapes, str(results))
    rows: list[Row] = []
    for name, raw in decodes.items():
        rows += _decode_rows(name, raw, shapes, fit)
    main = _sticks(found["decode-135m"])
    for name, raw in found.items():
        if raw.get("bench") == "prefill":
            rows.append(_prefill_row(name, raw, shapes, fit, main))
        elif raw.get("bench") == "switch":
            rows += _switch_rows(name, raw, shapes, fit, main)
        elif raw.get("bench") == "fusion":
            rows += _fusion_rows(name, raw, shapes, fit, main)
    shares = ", ".join(f"{share:.2f} with {kind}" for kind, share in fit.shares.items())
    return rows, (f"this CPU: {fit.launch_s * 1e6:.1f} us to start a region, of the multiply-add rate {shares}",)


def _fit(found: Mapping[str, Mapping[str, Any]], shapes: Shapes, where: str) -> Fit:
    small = {k: v for k, v in found.items() if v.get("bench") == "decode" and v["workload"]["shape"] == _SMALL}
    if "decode-135m" not in small or "prefill-135m" not in found:
        fact = "has no decode-135m.json and prefill-135m.json, from which the model is calibrated"
        raise UsageError(where, fact, "make them with coterie bench decode and prefill, --shape 135m")
    raw = small["decode-135m"]
    program = _program(shapes, raw["workload"])
    cost = program_cost(program, _decode_sizes(raw["workload"], 1))
    least_s = cost.total_bytes / _sticks(raw).bytes_per_s
    launch_s = max(0.0, (raw["seconds_per_token"] - least_s) / len(program.regions))
    prefill = found["prefill-135m"]
    left_s = prefill["seconds"] - launch_s * len(program.regions)
    shares = {"bf16": prefill["flops"] / prefill["peak_flops_per_s"] / left_s}
    for other in small.values():
        kind = _kind(other["workload"])
        if kind != "bf16":
            packed = _program(shapes, other["workload"])
            flops = program_cost(packed, _decode_sizes(other["workload"], other["batch"]["size"])).flops
            left_s = other["batch"]["seconds_per_step"] - launch_s * len(packed.regions)
            shares[kind] = flops / _sticks(other).flops_per_s / left_s
    return Fit(launch_s, {kind: min(1.0, share) for kind, share in shares.items()})


def _spec(sticks: Sticks, fit: Fit, kind: str, disk_bytes_per_s: float = 0.0) -> MachineSpec:
    base = load_machine(BASE)
    tiers = tuple(replace(t, bytes_per_s=sticks.bytes_per_s) if t.name == base.run_tier else t for t in base.tiers)
    links: tuple[Link, ...] = base.links
    if disk_bytes_per_s:
        links = tuple(replace(link, bytes_per_s=disk_bytes_per_s, latency_s=0.0) for link in base.links)
    share = fit.shares.get(kind, fit.shares["bf16"])
    return replace(
        base, flops_per_s=sticks.flops_per_s, flops_share=share, tiers=tiers, links=links, launch_host_s=0.0,
        launch_device_s=fit.launch_s,
    )  # fmt: skip


def _decode_rows(name: str, raw: Mapping[str, Any], shapes: Shapes, fit: Fit) -> Iterator[Row]:
    load, kind = raw["workload"], _kind(raw["workload"])
    sticks, program = _sticks(raw), _program(shapes, load)
    spec = _spec(sticks, fit, kind)
    split = CALIBRATION if load["shape"] == _SMALL else VALIDATION
    for batch, measured_s in ((1, raw["seconds_per_token"]), (raw["batch"]["size"], raw["batch"]["seconds_per_step"])):
        sizes = _decode_sizes(load, batch)
        modelled_s = step_time(spec, program, sizes).seconds
        if batch == 1 and sticks.cached_flops_per_s is not None:
            cached = replace(spec, flops_share=min(1.0, sticks.cached_flops_per_s / sticks.flops_per_s))
            modelled_s = _one_token_s(cached, program, sizes)
        label = f"{load['shape']} {kind}, batch {batch} ({name}, commit {raw['commit']})"
        yield Row("this CPU: decode", CPU, label, split, measured_s, modelled_s)


def _one_token_s(spec: MachineSpec, program: Program, sizes: Sizes) -> float:
    """In each region the longer of its bytes, with the pause of memory at its start, and its products at the rate that
    they have in cache: cores that are late with these do not see the pause.
    """
    rows = step_time(spec, program, sizes).rows
    return sum(max(row.launch_s + max(row.memory_s.values()), row.compute_s) for row in rows)


def _prefill_row(name: str, raw: Mapping[str, Any], shapes: Shapes, fit: Fit, sticks: Sticks) -> Row:
    load = raw["workload"]
    spec = _spec(Sticks(sticks.bytes_per_s, raw["peak_flops_per_s"]), fit, _kind(load))
    modelled_s = step_time(spec, _program(shapes, load), Sizes.prefill(1, load["prompt_tokens"])).seconds
    label = f"{load['shape']}, {load['prompt_tokens']} tokens ({name}, commit {raw['commit']})"
    split = CALIBRATION if load["shape"] == _SMALL else VALIDATION
    return Row("this CPU: prefill", CPU, label, split, raw["seconds"], modelled_s)


def _switch_rows(name: str, raw: Mapping[str, Any], shapes: Shapes, fit: Fit, sticks: Sticks) -> Iterator[Row]:
    load = raw["workload"]
    spec = _spec(sticks, fit, "bf16", raw["fetch_bytes_per_s"])
    model, label = model_of(shapes, load), f"{load['shape']}, {load['prompt_tokens']} tokens"
    for kind, warm in (("cold", False), ("warm", True)):
        modelled_s = first_token_s(spec, model, load["prompt_tokens"], warm)
        row = f"{kind} {label} ({name}, commit {raw['commit']})"
        yield Row("this CPU: switch", CPU, row, VALIDATION, raw[f"{kind}_ttft_s"], modelled_s)


def _fusion_rows(name: str, raw: Mapping[str, Any], shapes: Shapes, fit: Fit, sticks: Sticks) -> Iterator[Row]:
    load = raw["workload"]
    spec = _spec(sticks, fit, "bf16")
    for way in raw["grid"]:
        fused, by = way["way"].split("/")
        if by != "device":
            continue  # what software needs to start a region from Python is measured nowhere else
        program = compile_graph(model_of(shapes, load).graph, "cache" if fused == "fused" else "none")
        decodes = way["phase"] == "decode"
        sizes = Sizes.decode(1, load["decode_context"]) if decodes else Sizes.prefill(1, way["tokens"])
        label = f"{way['way']} {way['phase']} {load['shape']} ({name}, commit {raw['commit']})"
        split = CALIBRATION if fused == "fused" and load["shape"] == _SMALL else VALIDATION
        modelled_s = step_time(spec, program, sizes).seconds
        yield Row("this CPU: fusion", CPU, label, split, way["seconds_per_step"], modelled_s)


def first_token_s(spec: MachineSpec, model: Model, tokens: int, warm: bool) -> float:
    """Seconds to the first token of a prompt whose expert is resident, or is fetched while its first layers run."""
    device = ModelledDevice(spec)
    weights = device.reserve(spec.run_tier, model.layout.size_bytes)
    block = page_bytes(model.kv)
    kv = device.reserve(spec.run_tier, block * -(-tokens // model.kv.tokens_per_block(block)))
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
    rows = Rows(
        tokens_T=ids,
        positions_T=np.arange(tokens, dtype=np.int32),
        sequence_T=np.zeros(tokens, np.int32),
        block_tables_BM=np.arange(kv.size_bytes // block, dtype=np.int32).reshape(1, -1),
        lengths_B=np.array([tokens], np.int32),
        rows_R=np.array([tokens - 1], np.int32),
        sampling=(Sampling(),),
    )
    binding = Binding(weights, model.layout.offsets(exe.program.weights), kv, block, rows)
    event = device.run(exe, binding, gates)
    device.wait_any([event])
    return device.span(event).end_s


def _program(shapes: Shapes, load: Mapping[str, Any]) -> Program:
    return compile_graph(model_of(shapes, load).graph, "cache")


def model_of(shapes: Shapes, load: Mapping[str, Any]) -> Model:
    """The model of a workload, without bytes."""
    raw = dict(shapes(load.get("shape", _SMALL)))
    bits = _BITS.get(weights_of(load))
    if bits:
        raw[KEY] = Packing(bits, 8).to_config()
    return synthetic_model(raw, load.get("shape", _SMALL))


def weights_of(load: Mapping[str, Any]) -> str:
    """The type of weights of a workload: bf16, int8 or int4."""
    kind = str(load.get("weights", "bf16")).split()[-1]
    return kind if kind in _BITS else "bf16"


def _kind(load: Mapping[str, Any]) -> str:
    """The type of weights, and what they meet where that is not float32: other kernels, with a rate of their own."""
    met = load.get("activations", "float32")
    return weights_of(load) if met == "float32" else f"{weights_of(load)} with {met} activations"


def _decode_sizes(load: Mapping[str, Any], batch: int) -> Sizes:
    return Sizes.decode(batch, int(load["context"]))


def _sticks(raw: Mapping[str, Any]) -> Sticks:
    cached = raw.get("cached_flops_per_s")
    rates = float(raw["stick"]["bytes_per_s"]), float(raw["multiply_add_flops_per_s"])
    return Sticks(*rates, None if cached is None else float(cached))


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Every result of a folder, by the name of its file. Raises UsageError for a file that is none."""
    return {file.stem: _read(file) for file in sorted(folder.glob("*.json"))}


def of_gpu(raw: Mapping[str, Any]) -> bool:
    """Whether a result is a GPU's: its workload names one."""
    return "gpu" in raw.get("workload", ())


def _read(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(str(file), f"is not JSON: {error}", "give a folder of results of coterie bench") from error
    if not isinstance(raw, dict):
        raise UsageError(str(file), "is not a bench's result", "give a folder of results of coterie bench")
    return raw

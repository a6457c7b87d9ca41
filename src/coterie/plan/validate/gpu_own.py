"""A GPU's own benchmarks (decode, prefill, switch), against a model by the machine file that was measured on it.

    machine.toml    written by coterie info --calibrate --device cuda, in the folder of the results
    calibration     decode and prefill of the shape used for calibration
    validation      everything else: other shapes, weights and batches, cold and warm first tokens

Decode steps and prompts are priced as captured CUDA graphs, as the device runs them once warm; prompts whose weights
are still arriving are launched as the machine file says (`gated_launch`), as in any simulation.
Knows nothing about how a GPU is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.devices.modelled.device import ModelledDevice
from coterie.devices.modelled.price import step_time
from coterie.engine.assembly import Parts, Settings, page_bytes, plan, warm_up, wire
from coterie.engine.policy import Policy
from coterie.engine.request import Request
from coterie.graph.compile import compile_graph
from coterie.models.model import Model
from coterie.plan.validate.cpu import WRONG, Shapes, model_of, not_a_result, weights_of
from coterie.plan.validate.rows import CALIBRATION, GPU, VALIDATION, Row
from coterie.spec.load import load_machine
from coterie.spec.machine import MachineSpec

MACHINE = "machine.toml"
STEPS = 8  # steps per call of the decode benchmark, for results that do not state it
KINDS = ("cold", "warm")


def calibrated_on(shape: str) -> str:
    """The note in a machine file that names the shape used to calibrate its achieved shares."""
    return f"calibrated on the {shape} shape"


def gpu_rows(found: Mapping[str, Mapping[str, Any]], folder: Path, shapes: Shapes) -> tuple[list[Row], tuple[str, ...]]:
    """Rows of results, and in words what they are compared with.

    Raises UsageError if there is no machine file, if it is of another GPU, or if a result is malformed.
    """
    if not found:
        return [], ()
    spec = _machine(folder, found)
    rows: list[Row] = []
    for name, raw in found.items():
        try:
            if of_bench := _ROWS.get(str(raw.get("bench"))):
                rows += of_bench(name, raw, shapes, spec)
        except WRONG as error:
            raise not_a_result(str(folder), f"{name}.json", error) from error
    return rows, (f"this GPU: against {MACHINE} of the same folder, {spec.flops_source}",)


def _machine(folder: Path, found: Mapping[str, Mapping[str, Any]]) -> MachineSpec:
    file = folder / MACHINE
    if not file.is_file():
        fact = f"has results of a GPU ({', '.join(found)}) but no {MACHINE}"
        raise UsageError(str(folder), fact, f"make it with coterie info --calibrate --device cuda --out {file}")
    spec = load_machine(str(file))
    for name, raw in found.items():
        if f"GPU: {raw['workload']['gpu']}" not in spec.notes:
            fact = f"{name} is of {raw['workload']['gpu']}, which {MACHINE} is not of"
            raise UsageError(str(folder), fact, "keep the results of each GPU in a folder of its own")
    return spec


def _decode_rows(name: str, raw: Mapping[str, Any], shapes: Shapes, spec: MachineSpec) -> Iterator[Row]:
    load, program = raw["workload"], compile_graph(model_of(shapes, raw["workload"]).graph, spec.rule_set)
    many = raw["batch"]["size"]
    for batch, measured_s in ((1, raw["seconds_per_token"]), (many, many / raw["batch"]["tokens_per_s"])):
        sizes, steps = Sizes.decode(batch, int(load["context"])), int(load.get("steps", STEPS))
        first, later = (step_time(spec, program, sizes, starts_run=starts).seconds for starts in (True, False))
        modelled_s = (first + (steps - 1) * later) / steps
        label = f"{load['shape']} {weights_of(load)}, batch {batch} ({name}, commit {raw['commit']})"
        split = _split(spec, load) if batch == 1 else VALIDATION
        yield Row("this GPU: decode", GPU, label, split, measured_s, modelled_s)


def _prefill_rows(name: str, raw: Mapping[str, Any], shapes: Shapes, spec: MachineSpec) -> Iterator[Row]:
    load, tokens = raw["workload"], int(raw["workload"]["prompt_tokens"])
    program = compile_graph(model_of(shapes, load).graph, spec.rule_set)
    modelled_s = step_time(spec, program, Sizes.prefill(1, tokens)).seconds
    label = f"{load['shape']} {weights_of(load)}, {tokens} tokens ({name}, commit {raw['commit']})"
    yield Row("this GPU: prefill", GPU, label, _split(spec, load), raw["seconds"], modelled_s)


def _switch_rows(name: str, raw: Mapping[str, Any], shapes: Shapes, spec: MachineSpec) -> Iterator[Row]:
    load, tokens = raw["workload"], int(raw["workload"]["prompt_tokens"])
    modelled = first_tokens_s(spec, model_of(shapes, load), tokens)
    for kind, modelled_s in modelled.items():
        label = f"{kind} {load['shape']}, {tokens} tokens ({name}, commit {raw['commit']})"
        yield Row("this GPU: switch", GPU, label, VALIDATION, raw[f"{kind}_ttft_s"], modelled_s)


_ROWS = {"decode": _decode_rows, "prefill": _prefill_rows, "switch": _switch_rows}


def _split(spec: MachineSpec, load: Mapping[str, Any]) -> str:
    mine = weights_of(load) == "bf16" and calibrated_on(Path(load["shape"]).stem) in spec.notes
    return CALIBRATION if mine else VALIDATION


def first_tokens_s(spec: MachineSpec, model: Model, tokens: int) -> dict[str, float]:
    """Time to first token in seconds: `cold`, with the expert in host memory, and `warm`, in HBM.

    As in the benchmark: two experts, both in the pinned pool, and HBM for one.
    """
    return {kind: _first_token_s(spec, model, tokens, kind) for kind in KINDS}


def _first_token_s(spec: MachineSpec, model: Model, tokens: int, kind: str) -> float:
    models = {"one": model, "other": model}
    block = page_bytes(model.kv)
    settings = Settings(
        near_bytes=model.layout.size_bytes,
        kv_bytes=2 * block * model.kv.blocks_for(tokens + 1, block),
        policy=Policy(max_steps=1),
    )
    device = ModelledDevice(spec)
    try:
        parts = wire(models, plan(models, spec, settings), settings, device)
        last = "other" if kind == "cold" else "one"  # the one that stays in HBM
        warm_up(parts, models, sorted(models, key=lambda name: name == last))
        return _ask(parts, model, kind, tokens)
    finally:
        device.close()


def _ask(parts: Parts, model: Model, request_id: str, tokens: int) -> float:
    """Time to first token of one prompt to the first expert. Raises the error of a failed request."""
    ids = np.random.default_rng(tokens).integers(0, model.config.vocab_size, tokens)
    parts.engine.submit(Request(request_id, "one", tuple(int(i) for i in ids), 1, ignore_end=True, reuse=False))
    while True:
        for output in parts.engine.step():
            if output.error is not None:
                raise output.error
            if output.timings is not None and output.timings.ttft_s is not None:
                return output.timings.ttft_s

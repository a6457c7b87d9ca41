"""A GPU's own benches, against a model of the machine file that was measured on it: decode, prefill, switch.

    machine.toml    what coterie info --calibrate --device cuda wrote, in the folder of the results
    calibration     decode and prefill of the shape that was calibrated on
    validation      all else: other shapes, other weights, batches, cold and warm first tokens

Decode steps and prompts are priced as captured graphs, as the device runs them once they are warm; who starts a prompt
whose weights are still coming is what the machine file says (`gated_launch`), as for any simulation.
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
STEPS = 8  # of one call of the decode bench, in results that do not say
KINDS = ("cold", "warm")


def calibrated_on(shape: str) -> str:
    """The note of a machine file that says which shape its achieved shares are from."""
    return f"calibrated on the {shape} shape"


def gpu_rows(found: Mapping[str, Mapping[str, Any]], folder: Path, shapes: Shapes) -> tuple[list[Row], tuple[str, ...]]:
    """Rows of results by name, and what they are held against, in words.

    Raises UsageError for results without the machine file, of another GPU, or that lack what coterie bench writes.
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
    """Seconds from a request to its first token: `cold`, the expert in host memory, and `warm`, in hbm.

    As the bench does it: two experts, hbm for one, both in the pool, the same prompt.
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
        last = "other" if kind == "cold" else "one"  # it stays in hbm
        warm_up(parts, models, sorted(models, key=lambda name: name == last))
        return _ask(parts, model, kind, tokens)
    finally:
        device.close()


def _ask(parts: Parts, model: Model, request_id: str, tokens: int) -> float:
    """One prompt to the first of the experts. Raises the CoterieError that ended it."""
    ids = np.random.default_rng(tokens).integers(0, model.config.vocab_size, tokens)
    parts.engine.submit(Request(request_id, "one", tuple(int(i) for i in ids), 1, ignore_end=True, reuse=False))
    while True:
        for output in parts.engine.step():
            if output.error is not None:
                raise output.error
            if output.timings is not None and output.timings.ttft_s is not None:
                return output.timings.ttft_s

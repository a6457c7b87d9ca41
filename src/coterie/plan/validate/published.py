"""Published steps and requests of single models, on machines for which whole steps are not calibrated.

    decode    a number of sequences at some context; total tokens per second
    prefill   one prompt; tokens per second
    request   a number of concurrent prompts and answers; output tokens per second, including prefill time

Their quantised types differ from ours (Q4_K_M has 4.9 bits per weight, Q4_0, MLC's and int4 4.5; Q8_0 8.5, int8 8.1,
FP8 8), and so does their software. If several results are published for a machine and model, the fastest is used.
Nothing is fitted to validation rows. If kernels are carried over, the former rule is shown for comparison.
Knows nothing about kernels beyond `step_time`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from coterie.core.shapes import Sizes
from coterie.devices.modelled.price import step_time
from coterie.devices.modelled.shard import rank_program
from coterie.graph.compile import compile_graph
from coterie.graph.program import Program
from coterie.models.model import declared_dtype, synthetic_model
from coterie.models.packing import BY_NAME, KEY, WITHOUT_BYTES, Packing
from coterie.models.zoo import SOURCE, model_names, zoo_config
from coterie.plan.validate.carry import SPECIFIED
from coterie.plan.validate.rows import FIRST_TOKEN, REQUEST, TOKEN_TIME, Row
from coterie.spec.load import load_machine
from coterie.spec.machine import MachineSpec
from coterie.spec.measured import ANALYTIC, CARRIED, read_table

DECODE, PREFILL, WHOLE = "decode", "prefill", "request"
METRICS = {DECODE: TOKEN_TIME, PREFILL: FIRST_TOKEN, WHOLE: REQUEST}
BEFORE = "0.7 and 0.8 of the peaks"  # of arithmetic and bandwidth, unless measured on the machine itself


def published_metric(phase: str, known: str) -> str:
    """The metric's name, with the provenance of the kernels that take most of the time."""
    return f"{METRICS[phase]}, published; {known}"


def published_rows() -> Iterator[Row]:
    """Each row of data/published.csv, compared with the model by the machine's file."""
    for raw in read_table("coterie.plan.validate", "data/published.csv"):
        spec = load_machine(raw["machine"])
        program = rank_program(spec, packed_program(raw["model"], raw["weights"], raw["tables"], spec.rule_set))
        batch, tokens = int(raw["batch"]), int(raw["tokens"])
        counted = {DECODE: 1, PREFILL: tokens, WHOLE: int(raw["output"] or 0)}[raw["phase"]]
        measured_s = batch * counted / float(raw["per_s"])
        where = {DECODE: "context", PREFILL: "prompt", WHOLE: f"{counted} tokens after"}[raw["phase"]]
        weights = raw["weights"] or "16 bits"
        name = f"{raw['machine']} {raw['model']} {weights}, {where} {tokens}, batch {batch}, {raw['software']}"
        modelled_s, known = published_s(spec, program, raw)
        dataset = f"published, {raw['machine']}"
        yield Row(dataset, published_metric(raw["phase"], known), name, raw["split"], measured_s, modelled_s, known)
        if known == CARRIED:
            before_s, _ = published_s(by_specification(spec), program, raw)
            yield Row(
                dataset, published_metric(raw["phase"], BEFORE), name, raw["split"], measured_s, before_s, ANALYTIC
            )


def published_s(spec: MachineSpec, program: Program, raw: Mapping[str, str]) -> tuple[float, str]:
    """Modelled time of a row, and the provenance of most of that time."""
    batch, tokens = int(raw["batch"]), int(raw["tokens"])
    each = [((Sizes.decode if raw["phase"] == DECODE else Sizes.prefill)(batch, tokens), 1)]
    if raw["phase"] == WHOLE:
        steps = int(raw["output"]) - 1
        each.append((Sizes.decode(batch, tokens + 1 + steps // 2), steps))
    seconds, known = 0.0, defaultdict[str, float](float)
    for sizes, times in each:
        step = step_time(spec, program, sizes)
        seconds += times * step.seconds
        for row in step.rows:
            known[row.provenance] += times * (row.seconds - row.collective_s)
    return seconds, max(known, key=lambda name: known[name])


def by_specification(spec: MachineSpec) -> MachineSpec:
    """The machine by the former rule, without carried-over kernels.

    Shares measured on the machine itself are kept, the others are 0.7 of peak arithmetic and 0.8 of peak bandwidth.
    """
    found = spec.carried
    if found is None:
        return spec
    flops_share = spec.flops_share if found.own_flops else SPECIFIED.flops_share
    tiers = tuple(
        replace(tier, share=SPECIFIED.bytes_share) if tier.name == spec.run_tier and not found.own_bytes else tier
        for tier in spec.tiers
    )
    return replace(spec, carried=None, flops_share=flops_share, tiers=tiers)


@cache
def packed_program(model: str, weights: str, tables: str, rule_set: str) -> Program:
    """A model's program with layers quantised to `weights`, and embedding and head to `tables`; empty: unquantised."""
    raw = zoo_config(model) if model in model_names() else published_config(model)
    if weights:
        packing = Packing({**BY_NAME, **WITHOUT_BYTES}[weights], BY_NAME[tables] if tables else None)
        raw = {**raw, KEY: packing.to_config()}
    found = synthetic_model(raw, model, declared_dtype(raw, model))
    return compile_graph(found.graph, rule_set)


def published_config(model: str) -> dict[str, Any]:
    """The config of a model that is not in the zoo, but has published results."""
    text = (files("coterie.plan.validate") / "data" / f"{model}.json").read_text(encoding="utf-8")
    raw: dict[str, Any] = json.loads(text)
    del raw[SOURCE]
    return raw

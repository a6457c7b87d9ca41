"""Steps on machines without measured kernels, as their owners published them: tokens a second of one model alone.

    decode    so many sequences at a context; their tokens a second together
    prefill   one prompt; its tokens a second

Their packed types are not ours (Q4_K_M has 4.9 bits a weight, Q4_0, MLC's and int4 4.5; Q8_0 8.5 and int8 8.1), and
their software is not ours. Where several are published for one machine and model the fastest is taken. Nothing is
fitted to rows that validate. Knows nothing about kernels beyond `step_time`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from coterie.core.shapes import Sizes
from coterie.devices.modelled.price import step_time
from coterie.graph.compile import compile_graph
from coterie.graph.program import Program
from coterie.models.model import declared_dtype, synthetic_model
from coterie.models.packing import BY_NAME, KEY, Packing
from coterie.models.zoo import SOURCE, model_names, zoo_config
from coterie.plan.validate.rows import PUBLISHED_PROMPT, PUBLISHED_TOKEN, Row
from coterie.spec.load import load_machine
from coterie.spec.measured import read_table

DECODE = "decode"


def published_rows() -> Iterator[Row]:
    """Each row of data/published.csv beside what a step of that size takes by the machine's file."""
    for raw in read_table("coterie.plan.validate", "data/published.csv"):
        spec = load_machine(raw["machine"])
        batch, tokens = int(raw["batch"]), int(raw["tokens"])
        decode = raw["phase"] == DECODE
        sizes = Sizes.decode(batch, tokens) if decode else Sizes.prefill(batch, tokens)
        program = packed_program(raw["model"], raw["weights"], raw["tables"], spec.rule_set)
        measured_s = batch * (1 if decode else tokens) / float(raw["per_s"])
        where = f"context {tokens}" if decode else f"prompt {tokens}"
        name = f"{raw['machine']} {raw['model']} {raw['weights']}, {where}, batch {batch}, {raw['software']}"
        metric = PUBLISHED_TOKEN if decode else PUBLISHED_PROMPT
        modelled_s = step_time(spec, program, sizes).seconds
        yield Row(f"published, {raw['machine']}", metric, name, raw["split"], measured_s, modelled_s, "analytic")


@cache
def packed_program(model: str, weights: str, tables: str, rule_set: str) -> Program:
    """A model's program with layers packed in one type and embedding and head in another, as they are where empty."""
    raw = zoo_config(model) if model in model_names() else published_config(model)
    packing = Packing(BY_NAME[weights], BY_NAME[tables] if tables else None)
    found = synthetic_model({**raw, KEY: packing.to_config()}, model, declared_dtype(raw, model))
    return compile_graph(found.graph, rule_set)


def published_config(model: str) -> dict[str, Any]:
    """The config of a model that is in no zoo, but was published about."""
    text = (files("coterie.plan.validate") / "data" / f"{model}.json").read_text(encoding="utf-8")
    raw: dict[str, Any] = json.loads(text)
    del raw[SOURCE]
    return raw

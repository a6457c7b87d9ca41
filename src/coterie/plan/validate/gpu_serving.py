"""Whole steps and requests on DGX machines: SplitwiseSim (Llama-2-70B, BLOOM-176B), NVIDIA's NeMo page (Llama-2).

Only the factors of a software stack (spec/stacks) are fitted to them, to these rows:

    splitwise-2023   Llama-2-70B: the token times of prompt 512 on 2 and 8 GPUs at batch 1, and on 8 at batch 16;
                     prompts of 128 tokens on 4 and 8 GPUs, which take equally long: software, not the machine
                     BLOOM-176B: steps of more than 2048 prompt tokens; those of 2048, which determine the threshold
    nemo-2023        the rows of one GPU; those of more GPUs, including the paper's 20-token figures, are predicted

Knows nothing about kernels beyond `step_time`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from statistics import mean

from coterie.core.shapes import Sizes
from coterie.devices.modelled.price import roofline_s, step_time
from coterie.graph.compile import compile_graph
from coterie.graph.program import Program
from coterie.graph.shard import shard
from coterie.models.zoo import zoo_graph
from coterie.plan.validate.rows import (
    CALIBRATION,
    FIRST_TOKEN,
    REQUEST,
    TOKEN_TIME,
    VALIDATION,
    Dropped,
    Row,
)
from coterie.spec.load import load_machine
from coterie.spec.machine import MachineSpec
from coterie.spec.measured import read_table

SPLITWISE, NEMO = "splitwise-2023", "nemo-2023"
_LOOKS = 3  # contexts at which decode steps are priced; their time is nearly linear in the context
SHORT_ON = ("4", "8")  # numbers of GPUs on which prompts of 128 tokens determine a stack's prompt_floor
FLOORS_OF, EXCHANGES_OF = "llama-2-70b", "bloom-176b"  # models of SplitwiseSim that determine a stack's factors
_FITTED_SPLITWISE = {("2", "1"), ("8", "1"), ("8", "16")}  # GPUs and batch, at prompt 512


@cache
def rank_program(model: str, gpus: int, rule_set: str) -> Program:
    """One rank's program of a zoo model."""
    return compile_graph(shard(zoo_graph(model), gpus), rule_set)


def prompt_s(spec: MachineSpec, model: str, batch: int, tokens: int) -> float:
    """Time to first token of a batch of prompts."""
    return step_time(spec, rank_program(model, spec.units, spec.rule_set), Sizes.prefill(batch, tokens)).seconds


def token_s(spec: MachineSpec, model: str, batch: int, context: int) -> float:
    """Time of one decode step."""
    return step_time(spec, rank_program(model, spec.units, spec.rule_set), Sizes.decode(batch, context)).seconds


def request_s(spec: MachineSpec, model: str, batch: int, prompt: int, output: int) -> float:
    """Time of a whole request: prefill gives the first token, decode steps the others."""
    steps = output - 1
    contexts = [prompt + 1 + round(i * (steps - 1) / (_LOOKS - 1)) for i in range(_LOOKS)]
    return prompt_s(spec, model, batch, prompt) + steps * mean(token_s(spec, model, batch, c) for c in contexts)


def splitwise_rows() -> Iterator[Row | Dropped]:
    """Prompt and token times of Llama-2-70B on 2, 4 and 8 GPUs, and of BLOOM-176B on 8."""
    for raw in read_table("coterie.plan.validate", "data/splitwise.csv"):
        spec = load_machine(f"{raw['machine']}:units={raw['gpus']},stack={SPLITWISE}")
        batch, tokens = int(raw["batch"]), int(raw["prompt_tokens"])
        name = f"{raw['machine']} {raw['gpus']} GPUs, prompt {tokens}, batch {batch}"
        fitted = raw["model"] == FLOORS_OF and tokens == 512 and (raw["gpus"], raw["batch"]) in _FITTED_SPLITWISE
        dataset = f"SplitwiseSim {raw['model']}"
        measured_s = float(raw["token_ms"]) * 1e-3
        yield Row(
            dataset, TOKEN_TIME, name, CALIBRATION if fitted else VALIDATION, measured_s,
            token_s(spec, raw["model"], batch, tokens), spec.stack,
        )  # fmt: skip
        modelled_s = prompt_s(spec, raw["model"], batch, tokens)
        of_exchanges = gives_exchanges(raw, spec.large_step) or gives_large_step(raw, spec.large_step)
        split = CALIBRATION if gives_prompt_floor(raw) or of_exchanges else VALIDATION
        yield Row(dataset, FIRST_TOKEN, name, split, float(raw["prompt_ms"]) * 1e-3, modelled_s, spec.stack)


def gives_prompt_floor(raw: Mapping[str, str]) -> bool:
    """Whether a row of SplitwiseSim is one of the short prompts that determine a stack's prompt_floor."""
    return raw["model"] == FLOORS_OF and raw["prompt_tokens"] == "128" and raw["gpus"] in SHORT_ON


def gives_exchanges(raw: Mapping[str, str], large_step: int) -> bool:
    """Whether it is one of the large steps that determine a stack's exchange_share."""
    return raw["model"] == EXCHANGES_OF and int(raw["batch"]) * int(raw["prompt_tokens"]) > large_step


def gives_large_step(raw: Mapping[str, str], large_step: int) -> bool:
    """Whether it is one of the largest steps below those, which determine the threshold (large_step)."""
    return raw["model"] == EXCHANGES_OF and int(raw["batch"]) * int(raw["prompt_tokens"]) == large_step


def nemo_rows() -> Iterator[Row | Dropped]:
    """Latencies with 128 input and 20 output tokens."""
    for raw in read_table("coterie.plan.validate", "data/nemo.csv"):
        spec = load_machine(f"{raw['machine']}:units={raw['gpus']},stack={NEMO}")
        batch, prompt, output = int(raw["batch"]), int(raw["prompt_tokens"]), int(raw["output_tokens"])
        name = f"{raw['machine']} {raw['gpus']} GPUs, batch {batch}"
        dataset, measured_s = f"NeMo {raw['model']}", float(raw["ms"]) * 1e-3
        program = rank_program(raw["model"], spec.units, spec.rule_set)
        least_s = output * roofline_s(spec, program, Sizes.decode(batch, prompt))
        if raw["model"] != "llama-2-7b":
            reason = f"faster than the 7B model, and quantised or mislabelled: {measured_s * 1e3:.4g} ms"
            yield Dropped(dataset, name, f"{reason}, where 16-bit weights need {least_s * 1e3:.4g} ms at the peaks")
            continue
        if least_s > measured_s:
            yield Dropped(dataset, name, f"below the {least_s * 1e3:.4g} ms that the peaks allow")
            continue
        modelled_s = request_s(spec, raw["model"], batch, prompt, output)
        split = CALIBRATION if raw["gpus"] == "1" else VALIDATION
        yield Row(dataset, REQUEST, name, split, measured_s, modelled_s, spec.stack)

"""The factors of software stacks, from the rows that calibrate them; spec/stacks holds what comes out.

    nemo-2023        what a request on one GPU takes above its kernels, for each of its steps: a line over the batch
    splitwise-2023   kernel_share: token times on 2 GPUs; step_floor: on 8; step_sequence: what batch 16 adds on 8;
                     prompt_floor: a prompt of 128 tokens, mean of 4 and 8 GPUs

Knows nothing about where the factors are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import mean

from coterie.plan.validate.gpu_serving import SHORT_ON, request_s, token_s
from coterie.spec.load import load_machine
from coterie.spec.machine import MachineSpec
from coterie.spec.measured import read_table


def fit_nemo(machine: str) -> Mapping[str, float]:
    """step_host and step_sequence in seconds."""
    spec = _bare(f"{machine}:units=1,stack=nemo-2023")
    points = []
    for raw in read_table("coterie.plan.validate", "data/nemo.csv"):
        if (raw["machine"], raw["model"], raw["gpus"]) == (machine, "llama-2-7b", "1"):
            batch, prompt, output = int(raw["batch"]), int(raw["prompt_tokens"]), int(raw["output_tokens"])
            above_s = float(raw["ms"]) * 1e-3 - request_s(spec, raw["model"], batch, prompt, output)
            points.append((float(batch), above_s / output))
    n, sx, sy = len(points), sum(x for x, _ in points), sum(y for _, y in points)
    slope = (n * sum(x * y for x, y in points) - sx * sy) / (n * sum(x * x for x, _ in points) - sx * sx)
    return {"step_host": (sy - slope * sx) / n, "step_sequence": slope}


def fit_splitwise(machine: str) -> Mapping[str, float]:
    """kernel_share, and step_floor, prompt_floor and step_sequence in seconds."""
    mine = [raw for raw in read_table("coterie.plan.validate", "data/splitwise.csv") if raw["machine"] == machine]
    tokens = {
        (raw["gpus"], raw["batch"]): float(raw["token_ms"]) * 1e-3 for raw in mine if raw["prompt_tokens"] == "512"
    }
    short = [
        float(raw["prompt_ms"]) * 1e-3 for raw in mine if raw["prompt_tokens"] == "128" and raw["gpus"] in SHORT_ON
    ]
    sequence_s = (tokens["8", "16"] - tokens["8", "1"]) / 15
    floor_s = tokens["8", "1"] - sequence_s
    wanted_s = tokens["2", "1"] - sequence_s
    low, high = 0.1, 1.0
    for _ in range(40):
        share = (low + high) / 2
        spec = replace(_bare(f"{machine}:units=2,stack=splitwise-2023"), kernel_share=share)
        low, high = (share, high) if token_s(spec, "llama-2-70b", 1, 512) > wanted_s else (low, share)
    floors = {"step_floor": floor_s, "prompt_floor": mean(short) - sequence_s}
    return {"kernel_share": (low + high) / 2, "step_sequence": sequence_s, **floors}


def _bare(ref: str) -> MachineSpec:
    """The stack's machine without what is fitted."""
    spec = replace(load_machine(ref), step_host_s=0.0, step_sequence_s=0.0, kernel_share=1.0)
    return replace(spec, step_floor_s=0.0, prompt_floor_s=0.0)

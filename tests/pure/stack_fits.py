"""The factors of software stacks, from the rows that calibrate them; spec/stacks holds what comes out.

    nemo-2023        what a request on one GPU takes above its kernels, for each of its steps: a line over the batch
    splitwise-2023   kernel_share: token times on 2 GPUs; step_floor: on 8; step_sequence: what batch 16 adds on 8;
                     prompt_floor: a prompt of 128 tokens, mean of 4 and 8 GPUs; exchange_share: least squares of the
                     relative errors of large steps, one for all machines

Knows nothing about where the factors are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from statistics import mean

from coterie.plan.validate.gpu_serving import (
    FLOORS_OF,
    SPLITWISE,
    gives_exchanges,
    gives_prompt_floor,
    prompt_s,
    request_s,
    token_s,
)
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
    rows = read_table("coterie.plan.validate", "data/splitwise.csv")
    mine = [raw for raw in rows if (raw["machine"], raw["model"]) == (machine, FLOORS_OF)]
    tokens = {
        (raw["gpus"], raw["batch"]): float(raw["token_ms"]) * 1e-3 for raw in mine if raw["prompt_tokens"] == "512"
    }
    short = [float(raw["prompt_ms"]) * 1e-3 for raw in mine if gives_prompt_floor(raw)]
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


def fit_exchanges(without: int | None = None) -> float:
    """exchange_share of splitwise-2023; `without` leaves out one of its rows, for the error of a row not fitted to."""
    slow, wanted = [], []
    for i, (measured_s, alone_s, exchanges_s) in enumerate(large_steps()):
        if i != without:
            slow.append(exchanges_s / measured_s)
            wanted.append((measured_s - alone_s + exchanges_s) / measured_s)
    return sum(x * x for x in slow) / sum(x * y for x, y in zip(slow, wanted, strict=True))


def large_steps() -> list[tuple[float, float, float]]:
    """Of each step behind exchange_share: seconds measured; modelled with exchanges as fast as alone; these alone."""
    found = []
    for raw in read_table("coterie.plan.validate", "data/splitwise.csv"):
        spec = load_machine(f"{raw['machine']}:units={raw['gpus']},stack={SPLITWISE}")
        if gives_exchanges(raw, spec.large_step):
            load = raw["model"], int(raw["batch"]), int(raw["prompt_tokens"])
            alone_s, twice_s = (prompt_s(replace(spec, exchange_share=share), *load) for share in (1.0, 0.5))
            found.append((float(raw["prompt_ms"]) * 1e-3, alone_s, twice_s - alone_s))
    return found


def _bare(ref: str) -> MachineSpec:
    """The stack's machine without what is fitted."""
    spec = replace(load_machine(ref), step_host_s=0.0, step_sequence_s=0.0, kernel_share=1.0)
    return replace(spec, step_floor_s=0.0, prompt_floor_s=0.0)

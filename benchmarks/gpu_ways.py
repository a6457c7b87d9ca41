"""Compares alternative ways to run a decode step on a GPU, interleaved in one process.

    calls    decode steps per call, which share the fixed cost of a run
    tiles    other tile sizes of a kernel, with which consecutive launches fit on the GPU at once (docs/cuda.md)

    python -m benchmarks.gpu_ways --shape 1b                    one token in bfloat16
    python -m benchmarks.gpu_ways --shape 1b --weights int4 --batch 4
    python -m benchmarks.gpu_ways --shape 1b --batch 8

Ways with different tiles have their own devices, with the same weights; rounds interleave all ways. A line of JSON is
printed after 1, 2, 4, 8, ... rounds and at the end, so that an early end loses little.
Knows nothing about which way a device uses by default.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

from coterie.bench.experts import packed_expert, random_experts
from coterie.bench.shapes import shape_config, with_context
from coterie.bench.step import Loaded, Step
from coterie.core.errors import CoterieError
from coterie.devices.cuda.gpu import Gpu, gpu_number
from coterie.kernels.triton.product.tile import CudaCoreTile
from coterie.kernels.triton.tiles import ANY, H100

if TYPE_CHECKING:
    from coterie.devices.cuda.device import CudaDevice

SEEN, STEPS, WARM_ROUNDS, SECONDS = 512, 8, 3, 40.0


@dataclass(frozen=True, slots=True)
class Way:
    """The differences from the default: fields of the device's tiles, and decode steps per call."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    steps: int = STEPS


def _one(*others: tuple[int, int, CudaCoreTile]) -> dict[str, Any]:
    """The tiles for one token, with those for these columns and rows replaced."""
    own = {(columns, rows): few for columns, rows, few in others}
    return {"one": tuple((columns, rows, own.get((columns, rows), few)) for columns, rows, few in H100.one)}


DOWN, GATE_UP = (
    (8192, ANY, CudaCoreTile(2, 1024, 4, registers=64)),
    (2048, 16384, CudaCoreTile(4, 2048, 8, registers=40)),
)
HEADS = {"one_heads": ((2048, CudaCoreTile(4, 2048, 4, registers=80)), *H100.one_heads[1:])}
ONE: Mapping[str, Way] = {
    "as it is": Way(),
    "16 steps a call": Way(steps=16),
    "32 steps a call": Way(steps=32),
    "down in one wave": Way(_one(DOWN)),
    "gate and up in 40 registers": Way(_one(GATE_UP)),
    "q, k and v in 80 registers": Way(HEADS),
    "all three": Way({**_one(DOWN, GATE_UP), **HEADS}),
    "all three, 32 steps a call": Way({**_one(DOWN, GATE_UP), **HEADS}, 32),
    "spans of 32 positions": Way({"spans": ((64, 32, 8), *H100.spans[1:])}),
}
PACKED: Mapping[str, Way] = {
    "as it is": Way(),
    "by the general kernel": Way({"packed_tokens": 1}),
    "on tensor cores": Way({"few_tokens": 1}),
    "32 steps a call": Way(steps=32),
}
BATCH: Mapping[str, Way] = {
    "as it is": Way(),
    "weights asked for after the wait": Way({"narrow_ahead": False}),
    "tiles of 64 rows": Way({"narrow_tokens": 0}),
}


def ways_of(weights: str, batch: int) -> Mapping[str, Way]:
    """The ways to compare for this type of weights and batch size."""
    if batch > H100.few_tokens:
        return BATCH
    return ONE if weights == "bf16" else PACKED


def measure(
    shape: str,
    weights: str,
    batch: int,
    seconds: float,
    gpu: Gpu,
    ways: Mapping[str, Way],
    say: Callable[[dict[str, Any]], None],
) -> None:
    """Run rounds until the time is up; `say` gets each way's median seconds per step so far. Raises CoterieError."""
    room = SEEN + max(way.steps for way in ways.values())
    config = with_context(shape_config(shape), room)
    with random_experts(config, 1) as (plain,), packed_expert(plain, weights) as model, ExitStack() as stack:
        steps: dict[str, Step] = {}
        devices: dict[str, Loaded[CudaDevice]] = {}
        for name, way in ways.items():
            tiles = repr(way.changes)
            if tiles not in devices:
                devices[tiles] = Loaded(model, gpu.make_with(way.changes), room, batch)
                stack.callback(devices[tiles].close)
            steps[name] = devices[tiles].step("cache", SEEN - 1, 1, batch, way.steps)
        for step in steps.values():
            for _ in range(WARM_ROUNDS):
                step.seconds()
        samples: dict[str, list[float]] = {name: [] for name in steps}
        end_s, rounds = monotonic() + seconds, 0
        while rounds == 0 or monotonic() < end_s:
            for name, step in steps.items():
                samples[name].append(step.seconds())
            rounds += 1
            if rounds & (rounds - 1) == 0 or monotonic() >= end_s:
                found = {name: median(times) for name, times in samples.items()}
                say(
                    {
                        "bench": "ways",
                        "gpu": gpu.name,
                        "shape": shape,
                        "weights": weights,
                        "batch": batch,
                        "context": SEEN,
                        "rounds": rounds,
                        "seconds_per_step": found,
                    }
                )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit status, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_ways", description="Ways to run a decode step.")
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:NUMBER.")
    parser.add_argument("--shape", default="1b", help="What is measured.")
    parser.add_argument("--weights", default="bf16", help="bf16, int8, int6, int4 or int4z.")
    parser.add_argument("--batch", type=int, default=1, help="Sequences of a step.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="For the rounds.")
    parser.add_argument("--way", action="append", help="These alone, beside how it is.")
    given = parser.parse_args(arguments)
    ways = ways_of(given.weights, given.batch)
    chosen = {name: way for name, way in ways.items() if not given.way or name in ("as it is", *given.way)}
    try:
        gpu = Gpu(gpu_number(given.device) or 0)
        measure(
            given.shape,
            given.weights,
            given.batch,
            given.seconds,
            gpu,
            chosen,
            lambda line: print(json.dumps(line), flush=True),
        )
    except CoterieError as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

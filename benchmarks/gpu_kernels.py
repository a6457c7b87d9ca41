"""Compiles the kernels that the benches of first_gpu.py launch, in advance and on all cores.

    bf16    calibration and decode (of a 7B too), a prompt, what serving launches (switch, coe), unfused ways of fusion
    int8, int4    decode and a prompt; int6 decode          then the ways of gpu_ways.py, and mixture-of-experts layers

    python -m benchmarks.gpu_kernels                        for the GPU in this machine
    python -m benchmarks.gpu_kernels --capability 9.0       for an H100 or H200, without one

Each kernel goes into Triton's cache as it is compiled, so that an early end loses nothing. The last line of output is
JSON. A test checks this list against what the benches launch.
Knows nothing about what they measure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_ways import ways_of

from coterie.bench.calibrate import CONTEXT, TINY
from coterie.bench.decode import STEPS
from coterie.bench.experts import WEIGHTS
from coterie.bench.shapes import shape_config
from coterie.cli.bench import BATCH, PROMPT_TOKENS
from coterie.core.errors import CoterieError
from coterie.core.shapes import Sizes
from coterie.device import Limits
from coterie.devices.cuda.gpu import ahead_of
from coterie.engine.assembly import page_bytes
from coterie.engine.policy import Policy
from coterie.graph.compile import compile_graph
from coterie.models.model import synthetic_model
from coterie.models.packing import KEY

if TYPE_CHECKING:
    from coterie.devices.cuda.dry_run import DryRun, Wanted

SEEN, PROMPT, IN_FLIGHT = 512, 2048, 8  # context of a decode step, tokens of a prompt, requests in flight
LARGE = "7b"
SERVED = 1024  # the longest context of the requests of switch and coe


@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of a shape with these weights and fusion rules; `each`: (tokens, sequences, longest context)."""

    shape: str
    weights: str
    rules: str
    each: tuple[tuple[int, int, int], ...]
    served: bool = False  # also all steps that the engine may run when serving
    changes: Mapping[str, Any] = field(default_factory=dict)  # to tile sizes, as in gpu_ways.py


def steps_of(shape: str) -> Iterator[Steps]:
    """The steps that the benches run, in the order in which they are measured."""
    alone, many, prompt = (1, 1, SEEN - 1 + STEPS), (BATCH, BATCH, SEEN - 1 + STEPS), (PROMPT, 1, PROMPT)
    calibrated = ((256, 1, 256), (1, 1, CONTEXT + STEPS), (1, 1, CONTEXT + 1))
    grid = ((PROMPT_TOKENS, 1, PROMPT_TOKENS), (1, 1, PROMPT_TOKENS + STEPS))
    yield Steps(shape, "bf16", "cache", (alone, many, prompt, *calibrated, *grid))
    yield Steps(LARGE, "bf16", "cache", (alone, many))
    yield Steps(TINY, "bf16", "cache", calibrated[1:])
    for weights in ("int8", "int4"):
        yield Steps(shape, weights, "cache", (alone, many, prompt))
    yield Steps(shape, "int6", "cache", (alone, many))
    yield Steps(shape, "bf16", "cache", (), served=True)
    four = (4, 4, SEEN - 1 + STEPS)
    for weights, steps in (("bf16", alone), ("int4", four), ("bf16", many)):
        for changes in {repr(way.changes): way.changes for way in ways_of(weights, steps[1]).values()}.values():
            yield Steps(shape, weights, "cache", (steps,), changes=changes)
    yield Steps(shape, "bf16", "none", grid)
    yield Steps("moe", "bf16", "cache", (alone, many))


def wanted_by(ahead: DryRun, each: Steps) -> dict[Wanted, None]:
    """The distinct kernels of these steps."""
    packing, ahead = WEIGHTS[each.weights], ahead.with_tiles(each.changes) if each.changes else ahead
    config: Mapping[str, Any] = shape_config(each.shape) | ({KEY: packing.to_config()} if packing else {})
    model = synthetic_model(config)
    exe, block = ahead.load(compile_graph(model.graph, each.rules)), page_bytes(model.kv)
    steps = [(Sizes(T, B, B, 0, 0), context) for T, B, context in each.each]
    found = ahead.of_steps(exe, steps, block)
    if each.served:
        found |= ahead.everything(exe, Limits(IN_FLIGHT, Policy().max_step_tokens, SERVED), block)
    return found


def wanted(ahead: DryRun, shape: str) -> dict[Wanted, None]:
    """All distinct kernels, in the order of `steps_of`."""
    found = ahead.always()
    for each in steps_of(shape):
        found |= wanted_by(ahead, each)
    return found


def compile_all(ahead: DryRun, shape: str, processes: int | None = None) -> dict[str, Any]:
    """Compile missing kernels; returns counts, failures and times."""
    start_s = perf_counter()
    kept = ahead.kept(wanted(ahead, shape))
    missing = [one for one, is_there in kept.items() if not is_there]
    found_s, compilers = perf_counter() - start_s, ahead.compilers(processes)
    try:
        asked = compilers.ask(missing)
        for done, _ in enumerate(as_completed(asked), 1):
            if done % 10 == 0:
                print(f"{done} of {len(asked)} kernels, {perf_counter() - start_s:.1f} s", flush=True)
        failed = [answer for future in asked if isinstance(answer := future.result(), str)]
    finally:
        compilers.close()
    found = {"kernels": len(kept), "there": len(kept) - len(missing), "failed": failed}
    times = {"found_s": found_s, "seconds": perf_counter() - start_s}
    return {"bench": "kernels", **found, "processes": compilers.processes, **times, "folder": ahead.folder}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile all; returns the exit status: 1 if some failed, 2 if the target GPU is unknown or not supported."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_kernels", description="Compile the benches' kernels."
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:NUMBER.")
    parser.add_argument("--capability", default="", help="Of a GPU that need not be here, e.g. 9.0.")
    parser.add_argument("--multiprocessors", type=int, default=None, help="Of that GPU, where not 132.")
    parser.add_argument("--shape", default="1b", help="What is measured.")
    parser.add_argument("--processes", type=int, default=None, help="As many as there are cores by default.")
    given = parser.parse_args(arguments)
    try:
        ahead = ahead_of(given.device, given.capability, given.multiprocessors)
        found = compile_all(ahead, given.shape, given.processes)
    except CoterieError as error:
        print(error)
        return 2
    print(json.dumps(found), flush=True)
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

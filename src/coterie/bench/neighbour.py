"""A noisy neighbour: decode alone, and next to a busy-looping process that is pinned to one of our CPUs.

    round 1:  alone  beside  |  round 2:  alone  beside  ...       each for many steps, as scheduler slices are long

Knows nothing about how threads wait for one another, although that is what it measures.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import mean, median
from time import perf_counter, sleep
from typing import Any

from rich.table import Table

from coterie.bench.experts import random_experts
from coterie.bench.report import Effort, Report, paired_ratio
from coterie.bench.shapes import shape_config
from coterie.bench.step import Step, on_cpu
from coterie.core.errors import UsageError
from coterie.core.units import format_seconds

STRETCH_S = 0.5  # dozens of scheduler slices
SETTLE_S = 0.1  # until the neighbour is running
BOUND = 2.2  # acceptable slow-down; engines whose threads only spin slow down tenfold


def neighbour(shape: str, context_tokens: int, threads: int | None, effort: Effort) -> Report:
    """Measure decode steps alone and next to a busy process. Raises UsageError, CapacityError."""
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("neighbour", "this system cannot pin a process to a CPU", "run it on Linux")
    with random_experts(shape_config(shape), 1) as (model,):
        context = min(context_tokens, model.max_context)
        with on_cpu(model, "device", threads, context) as loaded:
            step = loaded.step("cache", context - 1, 1)
            samples = _rounds(step, effort)
    ratio = paired_ratio(samples["beside"], samples["alone"])
    results = {
        "alone_s": median(samples["alone"]),
        "beside_s": median(samples["beside"]),
        **ratio.plain("slowdown"),
        "bound": BOUND,
        "rounds": len(samples["alone"]),
    }
    workload = {"shape": shape, "batch": 1, "context": context, "threads": loaded.device.threads}
    notes = (
        f"mean seconds per step of stretches of {STRETCH_S:g} s; the neighbour is one loop without memory, on one CPU; "
        f"{results['rounds']} rounds",
    )
    return Report("neighbour", workload, results, (_table(results, str(ratio)),), notes)


def _rounds(step: Step, effort: Effort) -> dict[str, list[float]]:
    """Mean seconds per step over STRETCH_S, alternating alone and next to the busy process."""
    samples: dict[str, list[float]] = {"alone": [], "beside": []}
    step.seconds()
    start = perf_counter()
    while len(samples["alone"]) < effort.rounds or perf_counter() - start < effort.seconds:
        samples["alone"].append(_stretch(step))
        with _busy():
            samples["beside"].append(_stretch(step))
    return samples


def _stretch(step: Step) -> float:
    start, taken = perf_counter(), []
    while perf_counter() - start < STRETCH_S:
        taken.append(step.seconds())
    return mean(taken)


@contextmanager
def _busy() -> Iterator[None]:
    """A process that loops forever on the first CPU that we may use."""
    process = subprocess.Popen([sys.executable, "-c", "n = 0\nwhile True: n += 1"])
    try:
        os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        sleep(SETTLE_S)
        yield
    finally:
        process.kill()
        process.wait()


def _table(results: Mapping[str, Any], ratio: str) -> Table:
    table = Table("decode", "per step", "times as long (quartiles)")
    table.add_row("alone", format_seconds(results["alone_s"]), "")
    table.add_row("beside a busy process", format_seconds(results["beside_s"]), ratio)
    return table

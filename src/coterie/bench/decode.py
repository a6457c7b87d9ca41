"""Decode at batch 1: tokens per second, the bytes that a token must read, and the rate beside a simple measured read.

Knows nothing about requests or experts of a composition.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from statistics import median
from typing import Any

from rich.table import Table

from coterie.bench.experts import random_experts
from coterie.bench.fusion import WAYS
from coterie.bench.report import Effort, Report, Spread, interleave, last_level_cache_bytes, paired_ratio
from coterie.bench.shapes import shape_config
from coterie.bench.step import Loaded
from coterie.bench.sticks import read_loops
from coterie.core.units import format_bytes, format_rate, format_seconds
from coterie.graph.cost import program_cost

MEASURED = ("fused/host", "fused/device")
BEST = "fused/device"
MEASURING_ERROR = 1.02  # a share above this says that the stick is short, not that the machine was exceeded


def decode(shape: str, context_tokens: int, threads: int | None, effort: Effort) -> Report:
    """Measure decode steps and the stick in the same rounds. Raises UsageError, CapacityError."""
    config = shape_config(shape)
    with random_experts(config, 1) as (model,), ExitStack() as stack:
        context = min(context_tokens, model.max_context)
        loaded = {way: Loaded(model, WAYS[way][1], threads, context) for way in MEASURED}
        for one in loaded.values():
            stack.callback(one.close)
        steps = {way: loaded[way].step(WAYS[way][0], context - 1, 1) for way in MEASURED}
        device = loaded[BEST].device
        pool = stack.enter_context(ThreadPoolExecutor(device.threads))
        sticks = read_loops(device.memory(loaded[BEST].weights), pool, device.threads)
        samples = interleave({way: step.seconds for way, step in steps.items()} | sticks, effort)
        cost = program_cost(steps[BEST].exe.program, steps[BEST].binding.rows.sizes)
    workload = {"shape": shape, "batch": 1, "context": context, "weights": "random bf16", "threads": device.threads}
    results = _results(samples, list(sticks), cost.weight_bytes, cost.kv_read_bytes, model.layout.size_bytes)
    return Report("decode", workload, results, (_table(results),), _notes(results, model.layout.size_bytes))


def _results(
    samples: Mapping[str, list[float]], sticks: list[str], weight_bytes: int, kv_bytes: int, stick_bytes: int
) -> dict[str, Any]:
    stick = min(sticks, key=lambda name: median(samples[name]))
    read = weight_bytes + kv_bytes
    ways = {}
    for way in MEASURED:
        seconds = median(samples[way])
        # Both are rates, and each round has its own pair: (read / step) / (stick_bytes / stick)
        share = paired_ratio(samples[stick], samples[way]).scaled(read / stick_bytes)
        ways[way] = {
            "seconds_per_token": seconds,
            "tokens_per_s": 1 / seconds,
            "read_bytes_per_s": read / seconds,
            "share_of_stick": share.median,
            "share_of_stick_quartiles": [share.low, share.high],
        }
    return {
        "way": BEST,
        **ways[BEST],
        "weight_bytes_per_token": weight_bytes,
        "kv_bytes_per_token": kv_bytes,
        "stick": {"name": stick, "bytes_per_s": stick_bytes / median(samples[stick])},
        "rounds": len(samples[BEST]),
        "ways": ways,
    }


def _table(results: Mapping[str, Any]) -> Table:
    table = Table("way", "per token", "tokens/s", "reads", "share of the stick (quartiles)")
    for way, row in results["ways"].items():
        rate = format_rate(row["read_bytes_per_s"])
        tokens = f"{row['tokens_per_s']:.1f}"
        table.add_row(way, format_seconds(row["seconds_per_token"]), tokens, rate, _share(row))
    return table


def _share(row: Mapping[str, Any]) -> str:
    low, high = row["share_of_stick_quartiles"]
    return str(Spread(row["share_of_stick"], low, high))


def _notes(results: Mapping[str, Any], expert_bytes: int) -> tuple[str, ...]:
    weight, kv = (format_bytes(results[key]) for key in ("weight_bytes_per_token", "kv_bytes_per_token"))
    stick = results["stick"]
    notes = [
        f"a token must read {weight} of weights and {kv} of KV; medians of {results['rounds']} rounds, interleaved",
        f"the stick: {stick['name']}, over the weights' own bytes: {format_rate(stick['bytes_per_s'])}."
        " A plain loop, not the best that this machine can do",
    ]
    cache = last_level_cache_bytes()
    if cache is not None and expert_bytes <= cache:
        notes.append(f"these weights fit the {format_bytes(cache)} of cache, so this is no measure of the memory")
    if any(way["share_of_stick"] > MEASURING_ERROR for way in results["ways"].values()):
        notes.append("a share above 1 is a measuring error: here the stick is too short to measure the kernels by")
    return tuple(notes)

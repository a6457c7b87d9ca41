"""Switching between experts: cold, from disk to the first token; and resident, from a step to another expert's step.

    cold      near budget of one expert; page cache dropped; want -> fetch ... -> first token
    resident  near budget of all; turns of two steps each:   A A B B A A ...     gap(A,B) minus gap(A,A)

Knows nothing about routers or text: prompts are token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from itertools import cycle, pairwise
from statistics import median
from time import perf_counter
from typing import Any

from rich.table import Table

from coterie.api.assemble import rounded_for
from coterie.bench.disk import DiskLimit
from coterie.bench.experts import random_experts
from coterie.bench.limits import CachedProducts, drop_page_cache
from coterie.bench.report import Effort, Report, Spread, paired_ratio
from coterie.bench.shapes import shape_config
from coterie.bench.step import fetch
from coterie.bench.subject import Target
from coterie.bench.switch_peers import switch_peers
from coterie.bench.switch_serve import (
    COLD_TOKENS,
    TURN_STEPS,
    RecordingDevice,
    ask,
    raise_failure,
    request,
    serve_models,
    ttft,
)
from coterie.bench.two_lanes import first_token_bytes, ideal_seconds, stage_shares
from coterie.checkpoint.folder import SINGLE
from coterie.core.dtypes import DType
from coterie.core.trace import Trace
from coterie.core.units import format_bytes, format_rate, format_seconds
from coterie.devices.cpu.device import CpuDevice
from coterie.models.model import AUTO, Model
from coterie.spec.this_machine import this_machine

MAX_GAPS = 200
RECORD = 1 << 12  # pieces of work in a trace, enough for the last switches


# What each cold round measures, in seconds, bytes per second or flops per second.
COLD = (
    "cold_ttft_s",  # from want to first token
    "cold_arrival_s",  # from want to the last byte, while the first layers already run
    "warm_ttft_s",  # the same prompt once resident
    "fetch_s",  # the same ranges fetched with nothing else running
    "fetch_bytes_per_s",
    "disk_bytes_per_s",  # the same file read sequentially, the fastest of several ways; with O_DIRECT if possible
    "cold_ideal_s",  # the ideal two-lane schedule at this round's fetch rate and prefill time
    "cached_flops_per_s",  # products of as many tokens with cached weights
)


def switch(
    target: Target, prompt_tokens: int, experts: int, threads: int | None, effort: Effort, record: bool = False
) -> tuple[Report, Trace | None]:
    """Measure both kinds of switch, and those of peers; with `record`, also a trace of the last cold ones.

    A user's own checkpoint is served under several names instead of random experts.
    Raises UsageError, CapacityError, and what opening a checkpoint raises.
    """
    engines, own = target.engines(), target.own
    random = partial(random_experts, shape_config(target.shape), experts)
    with random() if own is None else nullcontext(own.experts(experts)) as stored:
        models = tuple(rounded_for(model, AUTO, "cpu") for model in stored)  # as they are served
        prompt = min(prompt_tokens, models[0].max_context - COLD_TOKENS)
        cold, limit, trace = _cold(models, prompt, threads, effort, RECORD if record else 0)
        same, changed = _resident(models[:2], threads, effort)
        peers = switch_peers((models[0], models[1]), prompt, threads, effort, engines)
        size = models[0].layout.size_bytes
    workload = ({"shape": target.shape} if own is None else own.workload) | {
        "experts": experts,
        "expert_bytes": size,
        "prompt_tokens": prompt,
        "threads": threads or this_machine().units,
        "activations": models[0].activations,
    }
    results = _results(cold, limit, same, changed) | {"peers": peers}
    return Report("switch", workload, results, (_table(results),), _notes(results, size, prompt)), trace


def _cold(
    models: tuple[Model, ...], prompt: int, threads: int | None, effort: Effort, record: int
) -> tuple[dict[str, list[float]], DiskLimit, Trace | None]:
    """Cold switches round robin, each with reads of the same file: the samples, the disk's limit, a trace."""
    shares, need = stage_shares(models[0], prompt, threads), first_token_bytes(models[0], prompt)
    parts, device = serve_models(models, 1, prompt + COLD_TOKENS, threads, record)
    rounds: dict[str, list[float]] = {name: [] for name in COLD}
    try:
        disk = _Disk(device, models[0])
        config, activations = models[0].config, models[0].activations
        cached = CachedProducts(device.threads, DType.BF16, config.hidden_size, activations, prompt)
        start = perf_counter()
        for number, model in enumerate(cycle(models)):
            drop_page_cache(model.checkpoint.path / SINGLE)
            cold = ask(parts, model, f"cold-{number}", prompt, COLD_TOKENS)
            warm = ask(parts, model, f"warm-{number}", prompt)
            ran = device.span(device.runs[-1].event)
            products = cached.flops_per_s()
            fetch_s, rate = disk.both(model, limit_first=number % 2 == 0)
            fetched = model.layout.size_bytes / fetch_s
            if number > 0:  # the first round includes one-time set-up: lanes, rows, the workspace
                ideal_s = ideal_seconds(need, fetched, shares, ran.end_s - ran.start_s)
                took = ttft(cold), cold.switch_s, ttft(warm), fetch_s, fetched, rate, ideal_s, products
                for name, value in zip(COLD, took, strict=True):
                    rounds[name].append(value)
            if number >= effort.rounds and perf_counter() - start >= effort.seconds:
                return rounds, disk.limit, parts.trace() if record else None
        raise RuntimeError("no models were given")
    finally:
        device.close()


class _Disk:
    """Reads an expert twice with nothing else running: like a fetch, and sequentially."""

    def __init__(self, device: CpuDevice, model: Model) -> None:
        self.limit = DiskLimit()
        self.limit.search(model.checkpoint.path / SINGLE)
        self._device = device
        self._extent = device.reserve(device.spec.run_tier, model.layout.size_bytes)

    def both(self, model: Model, limit_first: bool) -> tuple[float, float]:
        """Seconds of the fetch, and bytes per second of the plain read.

        Under a hypervisor, the second read of a file may come from the host's memory, so callers alternate the order.
        """
        if limit_first:
            rate = self._plain(model)
            return self._fetched(model), rate
        return self._fetched(model), self._plain(model)

    def _fetched(self, model: Model) -> float:
        drop_page_cache(model.checkpoint.path / SINGLE)
        return fetch(self._device, model, self._extent)

    def _plain(self, model: Model) -> float:
        return self.limit.read(model.checkpoint.path / SINGLE)


def _resident(models: tuple[Model, ...], threads: int | None, effort: Effort) -> tuple[list[float], list[float]]:
    """Gaps between decode steps, in seconds: before a step of the same expert, and before one of another expert."""
    context = models[0].max_context
    steps = min(MAX_GAPS, context - 1)
    parts, device = serve_models(models, len(models), 1 + steps, threads)
    try:
        for model in models:
            ask(parts, model, f"bring-{model.name}", 1)
        device.runs.clear()
        for model in models:
            parts.engine.submit(request(model, f"turns-{model.name}", 1, steps))
        start = perf_counter()
        while not parts.engine.idle:
            for output in parts.engine.step():
                raise_failure(output)
            enough = len(device.runs) >= 2 * TURN_STEPS * effort.rounds + len(models)
            if enough and perf_counter() - start >= effort.seconds:
                break
        return _gaps(device)
    finally:
        device.close()


def _gaps(device: RecordingDevice) -> tuple[list[float], list[float]]:
    same: list[float] = []
    changed: list[float] = []
    for left, right in pairwise(device.runs):
        if left.tokens == right.tokens:
            gap = device.span(right.event).start_s - device.span(left.event).end_s
            (same if left.weights == right.weights else changed).append(gap)
    count = min(len(same), len(changed))
    if count == 0:
        raise RuntimeError("the engine did not take turns between two resident experts")
    return same[:count], changed[:count]


def _results(
    cold: Mapping[str, list[float]], limit: DiskLimit, same: list[float], changed: list[float]
) -> dict[str, Any]:
    ttfts, ideal = cold["cold_ttft_s"], paired_ratio(cold["cold_ttft_s"], cold["cold_ideal_s"])
    # The time if fetch and prefill overlapped completely.
    floors = [max(both) for both in zip(cold["fetch_s"], cold["warm_ttft_s"], strict=True)]
    share, over = paired_ratio(cold["fetch_bytes_per_s"], cold["disk_bytes_per_s"]), paired_ratio(ttfts, floors)
    gap = Spread.of(b - a for a, b in zip(same, changed, strict=True))
    return {
        **{name: median(values) for name, values in cold.items()},
        "disk_read_is_direct": limit.direct,
        "disk_read_by": limit.way[0],
        "disk_read_block_bytes": limit.way[1],
        "disk_read_depth": limit.way[2],
        **ideal.plain("cold_ttft_over_ideal"),
        **share.plain("share_of_disk"),
        **over.plain("cold_ttft_over_floor"),
        "cold_rounds": len(ttfts),
        "resident_switch_s": gap.median,
        "resident_switch_quartiles_s": [gap.low, gap.high],
        "gap_same_expert_s": median(same),
        "gap_other_expert_s": median(changed),
        "gap_pairs": len(same),
    }


def _table(results: Mapping[str, Any]) -> Table:
    seconds, rate = format_seconds, format_rate
    table = Table("what", "measured", "beside it", "ratio")
    disk = f"sequential read: {rate(results['disk_bytes_per_s'])}"
    table.add_row("fetch of an expert", rate(results["fetch_bytes_per_s"]), disk, f"{results['share_of_disk']:.2f}")
    floor = f"fetch alone {seconds(results['fetch_s'])}, prefill alone {seconds(results['warm_ttft_s'])}"
    ratio = f"{results['cold_ttft_over_floor']:.2f} of the longer"
    table.add_row("cold switch to first token", seconds(results["cold_ttft_s"]), floor, ratio)
    ideal = f"ideal two-lane schedule {seconds(results['cold_ideal_s'])}"
    table.add_row("", "", ideal, f"{results['cold_ttft_over_ideal']:.2f}")
    gaps = f"gap A,B {seconds(results['gap_other_expert_s'])}, gap A,A {seconds(results['gap_same_expert_s'])}"
    table.add_row("resident switch", seconds(results["resident_switch_s"]), gaps, "")
    for name, row in results["peers"].items():
        cold, warm = f"ours {seconds(row['ours_cold_ttft_s'])}", f"ours {seconds(row['ours_warm_ttft_s'])}"
        table.add_row(f"{name}, cold", seconds(row["cold_ttft_s"]), cold, f"{row['ratio']:.2f}")
        table.add_row(f"{name}, reload", seconds(row["reload_s"]), warm, f"{row['warm_ratio']:.2f}")
        table.add_row(f"{name}, both open", seconds(row["both_open_s"]), warm, f"{row['both_open_ratio']:.2f}")
    return table


def _notes(results: Mapping[str, Any], expert_bytes: int, prompt: int) -> tuple[str, ...]:
    how = "O_DIRECT" if results["disk_read_is_direct"] else "an ordinary read, as this file system refuses O_DIRECT"
    by = "one thread's queue" if results["disk_read_by"] == "queue" else "threads"
    low, high = results["resident_switch_quartiles_s"]
    notes = [
        f"cold: near budget of one expert of {format_bytes(expert_bytes)}, prompt of {prompt} tokens, page cache "
        f"dropped; {results['cold_rounds']} rounds, each beside the same file read again",
        f"the limit: {how}, {results['disk_read_depth']} reads of {format_bytes(results['disk_read_block_bytes'])} at "
        f"once, by {by}: the best of several ways, block sizes and depths on the same file",
        "the ideal: stage after stage of the warm prefill, each when its bytes are there at the fetch's own rate; of "
        "an embedding only the prompt's rows come first",
        "the fetch and the limit go first in turn: below a virtual disk, its host's memory may serve the second",
        f"resident: from the end of a step to the start of the next, Python included, {results['gap_pairs']} pairs; "
        f"the difference is the switch (quartiles {format_seconds(low)} to {format_seconds(high)})",
    ]
    for name, row in results["peers"].items():
        notes.append(
            f"{name} at its best: {row['settings']}; cold: open, prefill, first token, page cache dropped; reload: the "
            "same from the page cache with one token; both open: nothing to load. Ratios: its time over ours"
        )
    if low <= 0:
        notes.append("the resident switch cannot be told from the noise of this run: its lower quartile is not above 0")
    if results["cold_ttft_over_floor"] < 1:
        notes.append("a cold first token before the longer of fetch and prefill is a measuring error: a noisy machine")
    return tuple(notes)

"""One run of a composition of many experts: a closed loop of requests through the real engine, and its results.

    in_flight requests at once; each one that ends is replaced by the next one of the mix

Knows nothing about which policies are compared, or how the numbers are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from math import ceil
from time import process_time
from typing import Any

import numpy as np

from coterie.core.trace import Trace
from coterie.core.units import format_seconds
from coterie.device import Device
from coterie.engine.assembly import Parts, Settings, page_bytes, plan, wire
from coterie.engine.request import Request, Timings
from coterie.models.model import Model
from coterie.plan.setups import Setup

RECORD = 1 << 14  # pieces of work kept for a trace; a lane's totals do not depend on it


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order, by expert name, with `in_flight` of them at once. `priorities`: empty if all are equal."""

    mix: str
    in_flight: int
    experts: Sequence[str]
    prompt_tokens: int
    new_tokens: int
    priorities: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run's row, the order in which experts ran, and a trace of its last part."""

    row: dict[str, Any]
    order: tuple[str, ...]
    trace: Trace


def serve(
    models: Mapping[str, Model], setup: Setup, load: Workload, near_bytes: int, device: Device, link_bytes_per_s: float
) -> Outcome:
    """Serve the whole workload, then close the device. Raises the CoterieError that ended a request."""
    settings = Settings(
        near_bytes=near_bytes,
        kv_bytes=_kv_bytes(models, load),
        policy=replace(setup.policy, max_guesses=0),  # no speculation: random weights repeat themselves unnaturally
        evict=setup.evict,
        record=RECORD,
    )
    try:
        parts = wire(models, plan(models, device.spec, settings), settings, device)
        start_s, worked_s = device.now(), process_time()
        timings = _closed_loop(parts, _requests(models, load, setup.ranks), load.in_flight)
        worked_s = process_time() - worked_s
        ended = list(timings.values())
        row = _row(parts, setup, load, ended, device.now() - start_s, link_bytes_per_s) | {"processor_s": worked_s}
        if load.priorities:
            of = ((priority, timings[f"r{number}"]) for number, priority in enumerate(load.priorities))
            row["priorities"] = by_priority([(one, t.ttft_s or 0.0, t.end_s - t.arrival_s) for one, t in of])
        # A step's log entry: "run", the expert, tokens, rows, then any other experts in the same step.
        runs = (entry for entry in parts.engine.decisions if entry[0] == "run")
        ran = (name for _, first, _, _, *others in runs for name in (first, *others))
        order = tuple(name for name, _ in groupby(map(str, ran)))
        return Outcome(row, order, parts.trace())
    finally:
        device.close()


def _kv_bytes(models: Mapping[str, Model], load: Workload) -> int:
    """Bytes for the KV cache of all requests in flight, so that it limits no policy."""
    block = max(page_bytes(model.kv) for model in models.values())
    tokens = load.prompt_tokens + load.new_tokens
    pages = max(model.kv.blocks_for(tokens, block) for model in models.values())
    return load.in_flight * pages * block


def _closed_loop(parts: Parts, asked: Sequence[Request], in_flight: int) -> dict[str, Timings]:
    requests = iter(asked)
    timings: dict[str, Timings] = {}
    for request in islice(requests, in_flight):
        parts.engine.submit(request)
    while not parts.engine.idle:
        for output in parts.engine.step():
            if output.error is not None:
                raise output.error
            if output.timings is not None:
                timings[output.request_id] = output.timings
                for request in islice(requests, 1):
                    parts.engine.submit(request)
    return timings


def _requests(models: Mapping[str, Model], load: Workload, ranked: bool) -> list[Request]:
    priorities = (ranked and load.priorities) or [0] * len(load.experts)
    each = zip(load.experts, prompts_of(models, load), priorities, strict=True)
    return [
        Request(f"r{number}", name, tuple(prompt), load.new_tokens, ignore_end=True, priority=priority)
        for number, (name, prompt, priority) in enumerate(each)
    ]


def prompts_of(models: Mapping[str, Model], load: Workload) -> list[list[int]]:
    """Random prompt tokens for each request, from ids that all models have."""
    rng = np.random.default_rng(len(load.experts))
    words = min(model.config.vocab_size for model in models.values())
    prompts: list[list[int]] = rng.integers(0, words, (len(load.experts), load.prompt_tokens)).tolist()
    return prompts


def by_priority(took: Sequence[tuple[int, float, float]]) -> dict[int, dict[str, Any]]:
    """Counts and percentiles by priority, from requests (priority, seconds to the first token, to the last)."""
    found: dict[int, dict[str, Any]] = {}
    for priority in sorted({one for one, _, _ in took}):
        its = [times for one, *times in took if one == priority]
        found[priority] = {
            "requests": len(its),
            **percentiles("ttft", [first_s for first_s, _ in its], (50, 99)),
            **percentiles("e2e", [last_s for _, last_s in its], (50, 99)),
        }
    return found


def priority_notes(who: str, row: Mapping[str, Any]) -> list[str]:
    """A row's times by priority, in words; empty if all requests have the same."""
    notes = []
    for priority, its in (row.get("priorities") or {}).items():
        first, last = (", ".join(format_seconds(its[f"{name}_p{p}_s"]) for p in (50, 99)) for name in ("ttft", "e2e"))
        whose = f"{who}: the {its['requests']} of priority {priority}"
        notes.append(f"{whose}: first token p50, p99 {first}; last {last}")
    return notes


def _row(
    parts: Parts, setup: Setup, load: Workload, timings: Sequence[Timings], elapsed_s: float, link_bytes_per_s: float
) -> dict[str, Any]:
    metrics = parts.engine.metrics
    if setup.policy.schedule == "grouped" and metrics.max_overtaken > setup.policy.age_bound:
        raise RuntimeError(
            f"a request was overtaken {metrics.max_overtaken} times; {setup.policy.age_bound} is the bound"
        )
    lane = "->".join(reversed(parts.device.spec.weight_tiers[:2]))  # the last link on the way up
    use = parts.recorded().use[lane]
    return {
        "mix": load.mix,
        "in_flight": load.in_flight,
        "policy": setup.name,
        "requests": len(timings),
        "switches": metrics.switches,
        "hit_rate": 1 - metrics.switches / len(timings),
        "resident_at_arrival": metrics.hits / len(timings),
        "tokens_per_s": metrics.drawn_tokens / elapsed_s,
        **percentiles("ttft", [t.ttft_s for t in timings if t.ttft_s is not None], (50, 95, 99)),
        "moved_bytes": use.moved_bytes,
        "link_busy_share": use.busy_s / elapsed_s,
        "link_rate_share": use.moved_bytes / elapsed_s / link_bytes_per_s,
        "longest_wait_admissions": max(t.queue_admissions for t in timings),
        "longest_overtaken": metrics.max_overtaken,
        "tokens_per_step": metrics.drawn_tokens / metrics.steps,
        "elapsed_s": elapsed_s,
    }


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed (nearest rank)."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def percentiles(name: str, values: Iterable[float], shares: Sequence[int]) -> dict[str, float | None]:
    """Percentiles of times in seconds, as entries of a row; None if there are no times."""
    ordered = sorted(values)
    return {f"{name}_p{share}_s": percentile(ordered, share / 100) if ordered else None for share in shares}


def fewest_switches(sizes: Mapping[str, int], order: Sequence[str], near_bytes: int) -> tuple[int, int]:
    """Switches and bytes moved under Belady's rule on a known order of experts: evict the one needed furthest ahead.

    Fragmentation is ignored. The minimum number of switches if sizes are equal, otherwise a heuristic.
    Source: L. A. Belady, IBM Systems Journal 5(2), 1966.
    """
    later = [len(order)] * len(order)
    seen: dict[str, int] = {}
    for turn in reversed(range(len(order))):
        later[turn], seen[order[turn]] = seen.get(order[turn], len(order)), turn
    needed: dict[str, int] = {}
    switches = moved = used = 0
    for turn, name in enumerate(order):
        if name not in needed:
            while used + sizes[name] > near_bytes:
                last = max(needed, key=lambda other: needed[other])
                used -= sizes[last]
                del needed[last]
            switches, moved, used = switches + 1, moved + sizes[name], used + sizes[name]
        needed[name] = later[turn]
    return switches, moved

"""Decode: tokens per second and share of the memory's read rate, at batch 1 and a larger batch, compared with peers.

    round:  coterie | batch of coterie | read loops ... | multiply-adds | cached products | peer ...   each once

Knows nothing about requests or experts of a composition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

from rich.table import Table

from coterie.bench.limits import CachedProducts, multiply_adds, read_loops
from coterie.bench.peers.best import Work, seconds_of
from coterie.bench.peers.open_peers import add_peer_rows, open_peers, peer_notes, peer_row
from coterie.bench.peers.peer import Session
from coterie.bench.report import (
    MEASURING_ERROR,
    SHORT_LIMIT,
    Effort,
    Report,
    Spread,
    interleave,
    last_level_cache_bytes,
    paired_ratio,
)
from coterie.bench.step import on_cpu, prompt_ids
from coterie.bench.subject import Target, subject
from coterie.core.units import format_bytes, format_rate, format_seconds
from coterie.graph.cost import Cost

STEPS = 8  # decode steps per call, as in a server when no other request waits
OURS, BATCH, PEAK = "coterie", "coterie batch", "multiply-adds"
CACHED, CACHED_BATCH = "cached products", "cached products of a batch"


def decode(target: Target, context_tokens: int, threads: int | None, effort: Effort, batch: int = 8) -> Report:
    """Measure decode steps, the limits and the peers, interleaved, on a random expert or the user's own.

    Raises UsageError, CapacityError, and what opening a checkpoint raises.
    """
    engines, room = target.engines(), context_tokens + STEPS
    with subject(target, room) as measured, ExitStack() as stack:
        model = measured.model
        loaded = stack.enter_context(on_cpu(model, "device", threads, room, batch))
        one = loaded.step("cache", context_tokens - 1, 1, steps=STEPS)
        many = loaded.step("cache", context_tokens - 1, 1, batch, STEPS)
        cpus = loaded.device.threads
        limits = read_loops(loaded.device.memory(loaded.weights), cpus)
        prompt = prompt_ids(model, context_tokens - 1)
        work = Work(lambda session: session.decode(STEPS), lambda session: session.prefill(prompt))
        opened = open_peers(stack, engines, measured.plain, measured.weights, cpus, room, work)
        for other in opened:
            other.session.prefill(prompt)
        ways: dict[str, Callable[[], float]] = {OURS: one.seconds, BATCH: many.seconds} | limits
        cached = partial(CachedProducts, cpus, measured.stored, model.config.hidden_size, measured.activation_type)
        ways |= {PEAK: partial(multiply_adds, cpus, measured.activation_type), CACHED: cached(tokens=1).flops_per_s}
        ways[CACHED_BATCH] = cached(tokens=batch).flops_per_s
        ways |= {other.name: partial(_peer_seconds, other.session, context_tokens) for other in opened}
        samples = interleave(ways, effort)
    limit = min(limits, key=lambda name: median(samples[name]))
    results = read_rates(samples, one.cost(), limit, model.layout.size_bytes)
    results["multiply_add_flops_per_s"] = median(samples[PEAK])
    results["cached_flops_per_s"] = median(samples[CACHED])
    results["batch"] = _batch(samples, batch, one.cost(), many.cost().flops, results["read_limit"]["bytes_per_s"])
    results["peers"] = {other.name: peer_row(samples, OURS, other) for other in opened}
    workload = measured.workload | {
        "batch": 1,
        "context": context_tokens,
        "threads": cpus,
        "activations": measured.activation_type,
    }
    return Report("decode", workload, results, (_table(results),), _notes(results, model.layout.size_bytes))


def _peer_seconds(session: Session, context: int) -> float:
    """Seconds per step, at the same positions in every round."""
    session.rewind(context - 1)
    return seconds_of(lambda: session.decode(STEPS)) / STEPS


def read_rates(samples: Mapping[str, list[float]], cost: Cost, limit: str, limit_bytes: int) -> dict[str, Any]:
    """The rates of one token, from the samples of OURS, and their share of the limit, which reads `limit_bytes`."""
    seconds, read = median(samples[OURS]), cost.weight_bytes + cost.kv_read_bytes
    # The ratio of rates in each round: (read / step) / (limit_bytes / limit)
    mbu = paired_ratio(samples[limit], samples[OURS]).scaled(read / limit_bytes)
    return {
        **mbu.plain("mbu"),
        "read_bytes_per_s": read / seconds,
        "tokens_per_s": 1 / seconds,
        "seconds_per_token": seconds,
        "weight_bytes_per_token": cost.weight_bytes,
        "kv_bytes_per_token": cost.kv_read_bytes,
        "read_limit": {"name": limit, "bytes_per_s": limit_bytes / median(samples[limit])},
        "rounds": len(samples[OURS]),
    }


def gain_aim(
    batch: int, flops: float, weight_bytes: float, kv_bytes: float, flops_per_s: float, read_rate: float
) -> float:
    """0.7 of the gain of a batch over batch 1 that the tighter limit allows: bytes read, or multiply-adds (`flops`).

    Weights are read once per step, `kv_bytes` for each sequence.
    """
    one = (weight_bytes + kv_bytes) / read_rate
    return 0.7 * batch * one / max((weight_bytes + batch * kv_bytes) / read_rate, flops / flops_per_s)


def _batch(samples: Mapping[str, list[float]], batch: int, one: Cost, flops: int, read_rate: float) -> dict[str, Any]:
    gain = paired_ratio(samples[OURS], samples[BATCH]).scaled(batch)
    aim = gain_aim(batch, flops, one.weight_bytes, one.kv_read_bytes, median(samples[PEAK]), read_rate)
    return {
        "size": batch,
        "seconds_per_step": median(samples[BATCH]),
        "tokens_per_s": batch / median(samples[BATCH]),
        **gain.plain("gain"),
        "gain_aim": aim,
        "flops_per_s": flops / median(samples[BATCH]),
        "cached_flops_per_s": median(samples[CACHED_BATCH]),
    }


def _table(results: Mapping[str, Any]) -> Table:
    table = Table("way", "per token", "tokens/s", "share", "ratio")
    share, each = str(Spread.read(results, "mbu")), format_seconds(results["seconds_per_token"])
    table.add_row("batch 1", each, f"{results['tokens_per_s']:.1f}", share, "")
    batch = results["batch"]
    name, each = f"batch {batch['size']}", format_seconds(1 / batch["tokens_per_s"])
    table.add_row(name, each, f"{batch['tokens_per_s']:.1f}", "", str(Spread.read(batch, "gain")))
    add_peer_rows(table, results["peers"])
    return table


def _notes(results: Mapping[str, Any], expert_bytes: int) -> tuple[str, ...]:
    weight, kv = (format_bytes(results[key]) for key in ("weight_bytes_per_token", "kv_bytes_per_token"))
    limit = results["read_limit"]
    batch = results["batch"]
    notes = [
        f"a token must read {weight} of weights and {kv} of KV; medians of {results['rounds']} rounds, interleaved; "
        f"{STEPS} steps a call",
        f"share: of the fastest read loop; batch 1: {format_rate(results['read_bytes_per_s'])}; in brackets: quartiles",
        f"ratio: tokens/s over batch 1's (0.7 of the limit is {batch['gain_aim']:.2f}); of a peer, its time over ours",
        f"the fastest read loop over the weights' own bytes: {limit['name']}, {format_rate(limit['bytes_per_s'])}",
        f"multiply-adds of all threads: {results['multiply_add_flops_per_s'] / 1e9:.0f} GFLOP/s",
        "one token's products with weights of this type from cache: "
        f"{results['cached_flops_per_s'] / 1e9:.0f} GFLOP/s; more of them than memory gives cannot be done",
        *peer_notes(results["peers"]),
    ]
    cache = last_level_cache_bytes()
    if cache is not None and expert_bytes <= cache:
        notes.append(f"these weights fit the {format_bytes(cache)} of cache, so this is no measure of the memory")
    if results["mbu"] > MEASURING_ERROR:
        notes.append(SHORT_LIMIT)
    return tuple(notes)

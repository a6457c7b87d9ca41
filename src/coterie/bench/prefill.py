"""Prefill: tokens per second of one prompt and share of the cores' multiply-add rate, compared with peers.

Knows nothing about requests or experts of a composition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

from rich.table import Table

from coterie.bench.limits import CachedProducts, multiplied, multiply_adds
from coterie.bench.peers.best import Work, seconds_of
from coterie.bench.peers.open_peers import add_peer_rows, open_peers, peer_notes, peer_row
from coterie.bench.report import MEASURING_ERROR, SHORT_LIMIT, Effort, Report, Spread, interleave
from coterie.bench.step import on_cpu, prompt_ids
from coterie.bench.subject import Target, subject
from coterie.core.resident import resident_bytes
from coterie.core.units import format_bytes, format_seconds

WHOLE_NUMBERS = (
    "for packed weights activations are integers, of which a CPU multiplies more at once: a share above 1 is no error"
)
OURS, PEAK, CACHED = "coterie", "multiply-adds", "cached products"


def prefill(target: Target, prompt_tokens: int, threads: int | None, effort: Effort) -> Report:
    """Measure one step over a whole prompt, the limit and the peers, on a random expert or the user's own.

    Raises UsageError, CapacityError, and what opening a checkpoint raises.
    """
    engines, room = target.engines(), prompt_tokens + 1
    with subject(target, room) as measured, ExitStack() as stack:
        model = measured.model
        before = resident_bytes()
        loaded = stack.enter_context(on_cpu(model, "device", threads, prompt_tokens))
        step = loaded.step("cache", 0, prompt_tokens)
        step.seconds()  # so that memory first touched by a step counts in `memory_bytes`
        memory_bytes, cpus = resident_bytes() - before, loaded.device.threads
        prompt = prompt_ids(model, prompt_tokens)
        work = Work(lambda session: session.prefill(prompt))
        opened = open_peers(stack, engines, measured.plain, measured.weights, cpus, room, work)
        peak = partial(multiply_adds, cpus, measured.activation_type)
        ways: dict[str, Callable[[], float]] = {OURS: step.seconds, PEAK: peak}
        cached = CachedProducts(
            cpus, measured.stored, model.config.hidden_size, measured.activation_type, prompt_tokens
        )
        ways[CACHED] = cached.flops_per_s
        ways |= {other.name: partial(seconds_of, partial(other.session.prefill, prompt)) for other in opened}
        samples = interleave(ways, effort)
        flops = step.cost().flops
    share = Spread.of(flops / ours / peak for ours, peak in zip(samples[OURS], samples[PEAK], strict=True))
    seconds = median(samples[OURS])
    results: dict[str, Any] = {
        **share.plain("share_of_peak"),
        "tokens_per_s": prompt_tokens / seconds,
        "seconds": seconds,
        "flops": flops,
        "flops_per_s": flops / seconds,
        "peak_flops_per_s": median(samples[PEAK]),
        "cached_flops_per_s": median(samples[CACHED]),
        "rounds": len(samples[OURS]),
        "memory_bytes": memory_bytes,
        "peers": {other.name: peer_row(samples, OURS, other, prompt_tokens) for other in opened},
    }
    workload = measured.workload | {
        "prompt_tokens": prompt_tokens,
        "threads": cpus,
        "activations": measured.activation_type,
    }
    return Report("prefill", workload, results, (_table(results),), _notes(results, measured.activation_type))


def _table(results: Mapping[str, Any]) -> Table:
    table = Table("way", "prompt", "tokens/s", "share", "ratio")
    share = str(Spread.read(results, "share_of_peak"))
    table.add_row("coterie", format_seconds(results["seconds"]), f"{results['tokens_per_s']:.0f}", share, "")
    add_peer_rows(table, results["peers"], results["tokens_per_s"] * results["seconds"])
    return table


def _notes(results: Mapping[str, Any], activation_type: str) -> tuple[str, ...]:
    limit = f"{results['peak_flops_per_s'] / 1e9:.0f} GFLOP/s {multiplied(activation_type)}"
    notes = [
        f"{results['flops'] / 1e9:.1f} GFLOP: causal attention, the head for the last token only; medians of "
        f"{results['rounds']} rounds, interleaved",
        "share: of the multiply-add rate; ratio: a peer's time over ours; in brackets: quartiles",
        f"multiply-adds in registers by all threads: {limit}",
        f"as many tokens' products with weights from cache: {results['cached_flops_per_s'] / 1e9:.0f} GFLOP/s",
        f"memory that it took, context and all: {format_bytes(results['memory_bytes'])}",
        *peer_notes(results["peers"]),
    ]
    if results["share_of_peak"] > MEASURING_ERROR:
        notes.append(WHOLE_NUMBERS if activation_type.startswith("int") else SHORT_LIMIT)
    return tuple(notes)

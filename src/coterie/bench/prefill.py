"""Prefill: tokens per second of one prompt, and the share of the cores' multiply-add rate, beside peers.

Knows nothing about requests or experts of a composition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

from rich.table import Table

from coterie.bench.decode import prompt_ids
from coterie.bench.experts import random_experts
from coterie.bench.peers.best import Chosen, Work, choose, peers_named, prepared_peer, seconds_of
from coterie.bench.peers.peer import Peer, Session
from coterie.bench.report import MEASURING_ERROR, SHORT_STICK, Effort, Report, Spread, interleave, paired_ratio
from coterie.bench.shapes import shape_config, with_context
from coterie.bench.step import Loaded
from coterie.bench.sticks import multiply_adds
from coterie.core.units import format_seconds
from coterie.models.model import Model

OURS, PEAK = "coterie", "multiply-adds"


def prefill(shape: str, prompt_tokens: int, threads: int | None, effort: Effort, peers: Sequence[str] = ()) -> Report:
    """Measure one step over a whole prompt, the stick and the peers. Raises UsageError, CapacityError."""
    engines = peers_named(peers)
    with random_experts(with_context(shape_config(shape), prompt_tokens), 1) as (model,), ExitStack() as stack:
        loaded = Loaded(model, "device", threads, prompt_tokens)
        stack.callback(loaded.close)
        step = loaded.step("cache", 0, prompt_tokens)
        cpus = loaded.device.threads
        chosen = {peer.name: _open(stack, peer, model, prompt_tokens, cpus) for peer in engines}
        ways: dict[str, Callable[[], float]] = {OURS: step.seconds, PEAK: partial(multiply_adds, cpus)}
        prompt = prompt_ids(model, prompt_tokens)
        ways |= {name: partial(_peer_seconds, session, prompt) for name, (_, session) in chosen.items()}
        samples = interleave(ways, effort)
        flops = step.cost().flops
    share = Spread.of(flops / ours / peak for ours, peak in zip(samples[OURS], samples[PEAK], strict=True))
    seconds = median(samples[OURS])
    results: dict[str, Any] = {
        "share_of_peak": share.median,
        "share_of_peak_quartiles": [share.low, share.high],
        "tokens_per_s": prompt_tokens / seconds,
        "seconds": seconds,
        "flops": flops,
        "flops_per_s": flops / seconds,
        "peak_flops_per_s": median(samples[PEAK]),
        "rounds": len(samples[OURS]),
        "peers": {name: _peer(samples, name, choice, prompt_tokens) for name, (choice, _) in chosen.items()},
    }
    workload = {"shape": shape, "prompt_tokens": prompt_tokens, "weights": "random bf16", "threads": cpus}
    return Report("prefill", workload, results, (_table(results),), _notes(results))


def _open(stack: ExitStack, peer: Peer, model: Model, prompt_tokens: int, cpus: int) -> tuple[Chosen, Session]:
    """The peer at its best for this prompt, open."""
    prepared = stack.enter_context(prepared_peer(peer, model.checkpoint.path, "bf16"))
    prompt = prompt_ids(model, prompt_tokens)
    choice = choose(peer, prepared, cpus, prompt_tokens + 1, Work(lambda session: session.prefill(prompt)))
    if choice is None:
        raise AssertionError(f"{peer.name} has no bf16 precision")
    session = peer.open(choice.prepared, choice.settings, prompt_tokens + 1)
    stack.callback(session.close)
    return choice, session


def _peer_seconds(session: Session, prompt: list[int]) -> float:
    return seconds_of(lambda: session.prefill(prompt))


def _peer(samples: Mapping[str, list[float]], name: str, choice: Chosen, tokens: int) -> dict[str, Any]:
    ratio = paired_ratio(samples[name], samples[OURS])
    return {
        "tokens_per_s": tokens / median(samples[name]),
        "ratio": ratio.median,
        "ratio_quartiles": [ratio.low, ratio.high],
        "precision": choice.precision,
        "settings": str(choice.settings),
    }


def _table(results: Mapping[str, Any]) -> Table:
    table = Table("way", "prompt", "tokens/s", "share", "ratio")
    share = str(Spread(results["share_of_peak"], *results["share_of_peak_quartiles"]))
    table.add_row("coterie", format_seconds(results["seconds"]), f"{results['tokens_per_s']:.0f}", share, "")
    tokens = results["tokens_per_s"] * results["seconds"]
    for name, row in results["peers"].items():
        ratio = f"{Spread(row['ratio'], *row['ratio_quartiles'])}{'' if row['ratio'] >= 1 else ': it wins'}"
        seconds = format_seconds(tokens / row["tokens_per_s"])
        table.add_row(f"{name} {row['precision']}", seconds, f"{row['tokens_per_s']:.0f}", "", ratio)
    return table


def _notes(results: Mapping[str, Any]) -> tuple[str, ...]:
    notes = [
        f"{results['flops'] / 1e9:.1f} GFLOP: causal attention, the head for the last token only; medians of "
        f"{results['rounds']} rounds, interleaved",
        "share: of the multiply-add rate; ratio: a peer's time over ours; in brackets: quartiles",
        f"multiply-adds in registers by all threads: {results['peak_flops_per_s'] / 1e9:.0f} GFLOP/s in float32",
        *(f"{name} at its best: {row['precision']}, {row['settings']}" for name, row in results["peers"].items()),
    ]
    if results["share_of_peak"] > MEASURING_ERROR:
        notes.append(SHORT_STICK)
    return tuple(notes)

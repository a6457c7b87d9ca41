"""Switching between experts on a GPU: cold from the pinned pool to the first token, compared with a plain copy.

    cold      hbm budget of one expert, all in the pool: want -> copy of layer 0, 1, ... -> first token
    ideal     the stages of the warm prefill in order, each started when its bytes have arrived at the copy's rate

Knows nothing about routers or text: prompts are token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle
from statistics import median
from time import perf_counter
from typing import Any

from rich.table import Table

from coterie.bench.experts import random_experts
from coterie.bench.gpu_peers import check_peers
from coterie.bench.gpu_switch_peers import add_rows, switch_peers
from coterie.bench.gpu_switch_peers import notes as peer_notes
from coterie.bench.report import Effort, Report, paired_ratio
from coterie.bench.shapes import shape_config
from coterie.bench.subject import Target
from coterie.bench.switch_serve import COLD_TOKENS, ask, settings_for, ttft
from coterie.bench.two_lanes import first_token_bytes, ideal_seconds
from coterie.core.shapes import Sizes
from coterie.core.trace import Trace
from coterie.core.units import format_bytes, format_rate, format_seconds
from coterie.devices.cuda.gpu import Gpu
from coterie.engine.assembly import plan, warm_up, wire
from coterie.graph.compile import compile_graph
from coterie.graph.cost import region_cost
from coterie.models.model import Model

RECORD = 1 << 12  # pieces of work in a trace, enough for the last switches
WARM_ROUNDS = 2  # over all experts: compiles kernels, and reads experts from the disk into the pool


def switch(
    target: Target, prompt_tokens: int, experts: int, effort: Effort, gpu: Gpu, record: bool = False
) -> tuple[Report, Trace | None]:
    """Cold switches round robin, each with a warm prompt and a plain copy; then peers.

    Raises UsageError, CapacityError.
    """
    names = check_peers(target.peers)
    rounds: dict[str, list[float]] = {name: [] for name in ("cold", "warm", "arrival", "copied", "ideal")}
    with random_experts(shape_config(target.shape), experts) as models:
        prompt = min(prompt_tokens, models[0].max_context - COLD_TOKENS)
        size, limits = models[0].layout.size_bytes, gpu.limits(models[0].layout.size_bytes)
        shares, need = stage_shares(models[0], prompt), first_token_bytes(models[0], prompt)
        named, made = {model.name: model for model in models}, gpu.make()
        settings = replace(settings_for(models, 1, prompt + COLD_TOKENS), record=RECORD if record else 0)
        try:
            parts = wire(named, plan(named, made.spec, settings), settings, made)
            warm_up(parts, named, named)
            start = perf_counter()
            for number, model in enumerate(cycle(models)):
                cold = ask(parts, model, f"cold-{number}", prompt, COLD_TOKENS)
                warm = ask(parts, model, f"warm-{number}", prompt)
                copied_s = limits.copy_seconds()
                if number >= WARM_ROUNDS * experts:
                    ideal_s = ideal_seconds(need, size / copied_s, shares, ttft(warm))
                    times = (ttft(cold), ttft(warm), cold.switch_s, copied_s, ideal_s)
                    for name, seconds in zip(rounds, times, strict=True):
                        rounds[name].append(seconds)
                if len(rounds["cold"]) >= effort.rounds and perf_counter() - start >= effort.seconds:
                    break
            trace = parts.trace() if record else None
            remarks = made.remarks
        finally:
            made.close()
        del limits, parts, made  # free their HBM for the peers' models
        peers = switch_peers(models[:2], prompt, effort, gpu) if names else {}
    workload = {"shape": target.shape, "experts": experts, "expert_bytes": size, "prompt_tokens": prompt}
    workload["gpu"] = gpu.name
    results = _results(rounds, size) | {"peers": peers}
    notes = (
        f"cold: hbm for one expert of {format_bytes(size)}, all experts in the pinned pool; {results['rounds']} rounds",
        "the ideal: stages of the warm prefill, split by flops, each when the copy's rate has brought its bytes",
        *remarks,
        *peer_notes(peers),
    )
    return Report("switch", workload, results, (_table(results),), notes), trace


def stage_shares(model: Model, prompt_tokens: int) -> dict[str, float]:
    """Each stage's share of a prefill's flops; on a GPU, timing single stages would change the times."""
    program, sizes = compile_graph(model.graph, "cache"), Sizes.prefill(1, prompt_tokens)
    flops = dict.fromkeys(model.graph.stages, 0)
    for region in program.regions:
        flops[region.stage] += region_cost(program, region, sizes).flops
    total = sum(flops.values())
    return {stage: count / total for stage, count in flops.items()}


def _results(rounds: Mapping[str, list[float]], size_bytes: int) -> dict[str, Any]:
    over, share = paired_ratio(rounds["cold"], rounds["ideal"]), paired_ratio(rounds["copied"], rounds["arrival"])
    return {
        "cold_ttft_s": median(rounds["cold"]),
        "cold_arrival_s": median(rounds["arrival"]),
        "warm_ttft_s": median(rounds["warm"]),
        "cold_ideal_s": median(rounds["ideal"]),
        **over.plain("cold_ttft_over_ideal"),
        "copy_bytes_per_s": size_bytes / median(rounds["copied"]),
        **share.plain("share_of_copy"),
        "rounds": len(rounds["cold"]),
    }


def _table(results: Mapping[str, Any]) -> Table:
    table = Table("what", "measured", "beside it", "ratio")
    copy = f"one copy of as much pinned memory: {format_rate(results['copy_bytes_per_s'])}"
    table.add_row(
        "arrival of an expert", format_seconds(results["cold_arrival_s"]), copy, f"{results['share_of_copy']:.2f}"
    )
    ideal = f"ideal two-lane schedule {format_seconds(results['cold_ideal_s'])}"
    ratio = f"{results['cold_ttft_over_ideal']:.2f}"
    table.add_row("cold switch to first token", format_seconds(results["cold_ttft_s"]), ideal, ratio)
    table.add_row("the same prompt, resident", format_seconds(results["warm_ttft_s"]), "", "")
    add_rows(table, results["peers"])
    return table

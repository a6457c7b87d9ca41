"""Tables of a GPU's stored results, with aims: `coterie bench ... --device cuda --json`.

Absolute times matter on a GPU, so they are shown. The runs' notes (the limit, peers' settings, why a peer did not run)
come below.
Knows nothing about where results are stored, or how anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import bullets, table

from coterie.core.units import format_bytes, format_seconds

Result = Mapping[str, Any]
_SIZES = {"context": "of context", "prompt_tokens": "tokens", "experts": "experts", "requests": "requests"}

# Aims at batch 1: shares of HBM's fastest read loop (by model size), of a bfloat16 product's rate, and of one copy of
# pinned memory; and the cold first token over the ideal two-lane schedule.
DECODE_AIMS: Mapping[str, float] = {"1b": 0.80, "7b": 0.85}
PREFILL_AIM, PREFILL_AIM_TOKENS = 0.60, 2048
COPY_AIM, COLD_AIM = 0.95, 1.10
MISSED = "**missed**"


def decode(results: Sequence[Result]) -> str:
    """Decode: tokens per second, alone and in a batch."""
    rows = []
    for r in results:
        work, batch, name = r["workload"], r["batch"], _shape(r)
        aim = next((aim for size, aim in DECODE_AIMS.items() if size in name.split("-")), None)
        cells = [
            f"{name}, {_weights(r)}, context {work['context']}",
            f"{r['tokens_per_s']:.1f}",
            format_seconds(r["seconds_per_token"]),
            f"{_at_least(r['mbu'], aim)} of {r['read_limit']['bytes_per_s'] / 1e12:.2f} TB/s",
            f"{batch['tokens_per_s']:.0f} with {batch['size']}",
            _ratios(r),
        ]
        rows.append(cells)
    head = (
        "| decode, batch 1 | tokens/s | a token | share of the read rate (aim) | in a batch, tokens/s | transformers |"
    )
    return table(head, rows)


def prefill(results: Sequence[Result]) -> str:
    """Prefill of one prompt."""
    rows = []
    for r in results:
        tokens = r["workload"]["prompt_tokens"]
        aim = PREFILL_AIM if tokens >= PREFILL_AIM_TOKENS else None
        cells = [
            f"{_shape(r)}, {_weights(r)}, {tokens} tokens",
            f"{r['tokens_per_s']:.0f}",
            format_seconds(r["seconds"]),
            f"{_at_least(r['share_of_peak'], aim)} of {r['product_flops_per_s'] / 1e12:.0f} TFLOP/s",
            _ratios(r),
        ]
        rows.append(cells)
    return table("| prefill | tokens/s | a prompt | share of a product's rate (aim) | transformers |", rows)


def switch(results: Sequence[Result]) -> str:
    """Switches to an expert in the pinned pool."""
    rows = []
    for r in results:
        work, over = r["workload"], r["cold_ttft_over_ideal"]
        cells = [
            f"{_shape(r)}, {format_bytes(work['expert_bytes'])}, {work['prompt_tokens']} tokens",
            format_seconds(r["cold_arrival_s"]),
            f"{_at_least(r['share_of_copy'], COPY_AIM)} of {r['copy_bytes_per_s'] / 1e9:.1f} GB/s",
            format_seconds(r["cold_ttft_s"]),
            f"{over:.2f} ({COLD_AIM:.2f}{_unless(over <= COLD_AIM)}) of {format_seconds(r['cold_ideal_s'])}",
            format_seconds(r["warm_ttft_s"]),
            _ratios(r),
        ]
        rows.append(cells)
    head = (
        "| switch | arrival | share of a pinned copy (aim) | cold first token | over the ideal (aim) | resident "
        "| transformers |"
    )
    return table(head, rows)


def fusion(results: Sequence[Result]) -> str:
    """The grid of fusion and orchestration."""
    rows = []
    for r in results:
        work = r["workload"]
        phases = {
            "prefill": f"prefill of {work['prefill_tokens']}",
            "decode": f"decode, {work['decode_steps']} steps a call",
        }
        for cell in r["grid"]:
            low, high = cell["speedup_quartiles"]
            cells = [
                f"{_shape(r)}, {phases[cell['phase']]}",
                cell["way"],
                str(cell["regions"]),
                format_seconds(cell["seconds_per_step"]),
                f"{cell['speedup']:.2f} x ({low:.2f} to {high:.2f})",
            ]
            rows.append(cells)
    return table("| fusion | way | regions | step | speed-up over the first (quartiles) |", rows)


def notes(results: Sequence[Result]) -> str:
    """The notes of these runs, labelled if there are several runs."""
    named = len(results) > 1
    return bullets(f"{_label(r)}: {note}" if named else note for r in results for note in r.get("notes", ()))


def machine(result: Result) -> str:
    """The GPU, its software and its host."""
    host = result["machine"]
    return f"{result['workload']['gpu']}; host: {host['cpu_model']}, {host['cpus']} CPUs, {host['isa']}"


def _shape(result: Result) -> str:
    """The name of a shape; for a config.json its folder's name."""
    path = Path(result["workload"].get("shape", ""))
    return path.parent.name if path.name == "config.json" else path.stem


def _weights(result: Result) -> str:
    return str(result["workload"]["weights"]).removeprefix("random ")


def _label(result: Result) -> str:
    work = result["workload"]
    sizes = [f"{work[key]} {word}" for key, word in _SIZES.items() if key in work]
    weights = [_weights(result)] if "weights" in work else []
    return ", ".join([name for name in (_shape(result), *weights, *sizes) if name])


def _at_least(share: float, aim: float | None) -> str:
    return f"{share:.2f}" if aim is None else f"{share:.2f} ({aim:.2f}{_unless(share >= aim)})"


def _unless(met: bool) -> str:
    return "" if met else f", {MISSED}"


def _ratios(result: Result) -> str:
    """For each way of each peer, its time over ours, or that it did not run; the run's notes say why."""
    return "; ".join(
        f"{way} did not run" if "failed" in row else f"{way} {row['ratio']:.2f} x"
        for peer in result["peers"].values()
        for way, row in peer["ways"].items()
    )

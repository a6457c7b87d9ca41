"""The paper's grid on this machine: fusion and orchestration measured separately, for prefill and decode.

    unfused/host -> fused/host      the gain from fusion: fewer launches, fewer bytes stored between kernels
    fused/host   -> fused/device    the gain from orchestration: one call for the whole step

Source of the grid: arXiv 2405.07518, section VI.
Knows nothing about experts of a composition.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median

from rich.table import Table

from coterie.bench.experts import random_experts
from coterie.bench.report import Effort, Report, Spread, interleave, paired_ratio
from coterie.bench.shapes import shape_config
from coterie.bench.step import Loaded, on_cpu
from coterie.core.units import format_bytes, format_seconds
from coterie.devices.cpu.device import CpuDevice, Orchestration
from coterie.graph.cost import intermediate_bytes

# Way -> rule set, and whether the host or the device starts the kernels. The first is the baseline.
WAYS: Mapping[str, tuple[str, Orchestration]] = {
    "unfused/host": ("none", "host"),
    "fused/host": ("cache", "host"),
    "fused/device": ("cache", "device"),
}
BASELINE = "unfused/host"


@dataclass(frozen=True, slots=True)
class Cell:
    """One way of one phase.

    `counted_bytes`: intermediates by the kernels' counters; `intermediate_bytes`: the same by the cost model.
    `speedup` is over unfused/host, from ratios within rounds; `launches` are calls by the host.
    """

    phase: str
    way: str
    tokens: int
    seconds_per_step: float
    speedup: Spread
    launches: int
    regions: int
    intermediate_bytes: int
    counted_bytes: int
    rounds: int


def fusion(shape: str, prompt_tokens: int, threads: int | None, effort: Effort) -> Report:
    """Measure all ways for prefill and decode. Raises UsageError, CapacityError."""
    config = shape_config(shape)
    with random_experts(config, 1) as (model,), ExitStack() as stack:
        prompt = min(prompt_tokens, model.max_context - 1)
        loaded: dict[Orchestration, Loaded[CpuDevice]] = {}
        for how in dict.fromkeys(how for _, how in WAYS.values()):
            loaded[how] = stack.enter_context(on_cpu(model, how, threads, prompt + 1))
        team = next(iter(loaded.values())).device.threads
        cells = [
            *_phase("prefill", loaded, (0, prompt), effort),
            *_phase("decode", loaded, (prompt, 1), effort),
        ]
    workload = {
        "shape": shape,
        "weights": f"{format_bytes(model.layout.size_bytes)} of random bf16",
        "prefill_tokens": prompt,
        "decode_batch": 1,
        "decode_context": prompt + 1,
        "threads": team,
    }
    results = {"grid": [asdict(cell) for cell in cells], "byte_counters_agree": _agree(cells)}
    return Report("fusion", workload, results, (_table(cells),), _notes(cells))


def _phase(
    phase: str, loaded: Mapping[Orchestration, Loaded[CpuDevice]], span: tuple[int, int], effort: Effort
) -> list[Cell]:
    steps = {way: loaded[how].step(rules, *span) for way, (rules, how) in WAYS.items()}
    counted = {way: step.counted() for way, step in steps.items()}
    samples = interleave({way: step.seconds for way, step in steps.items()}, effort)
    return [
        Cell(
            phase=phase,
            way=way,
            tokens=span[1],
            seconds_per_step=median(samples[way]),
            speedup=paired_ratio(samples[BASELINE], samples[way]),
            launches=counted[way].calls,
            regions=counted[way].instructions,
            intermediate_bytes=intermediate_bytes(step.exe.program, step.binding.rows.sizes),
            counted_bytes=step.intermediate_bytes(counted[way]),
            rounds=len(samples[way]),
        )
        for way, step in steps.items()
    ]


def _agree(cells: list[Cell]) -> bool:
    return all(cell.intermediate_bytes == cell.counted_bytes for cell in cells)


def _table(cells: list[Cell]) -> Table:
    table = Table("phase", "way", "per step", "speed-up", "launches", "stored")
    for cell in cells:
        took, stored = format_seconds(cell.seconds_per_step), format_bytes(cell.counted_bytes)
        table.add_row(cell.phase, cell.way, took, str(cell.speedup), str(cell.launches), stored)
    return table


def _notes(cells: list[Cell]) -> tuple[str, ...]:
    rounds = " and ".join(str(n) for n in dict.fromkeys(cell.rounds for cell in cells))
    agree = (
        "the kernels' own byte counter agrees with the graph's cost in every row"
        if _agree(cells)
        else "WRONG: the kernels' own byte counter disagrees with the graph's cost; see grid in the JSON"
    )
    return (
        agree,
        f"medians of {rounds} rounds, ways interleaved; speed-up: of ratios to {BASELINE} within rounds",
        "in brackets: quartiles. stored: bytes of intermediates. A step is timed from the call to its token in Python",
    )

"""The ideal two-lane schedule of a cold prefill: a stage starts when its bytes have arrived and the previous is done.

        disk      rows | layers.0 | layers.1 | ... | head       of the embedding only the prompt's rows come first, and
        compute         embed | layers.0 | layers.1 | ...       nothing that the first token does not need

Knows nothing about how a switch is really done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import median
from time import perf_counter

from coterie.bench.step import Loaded
from coterie.device import Event
from coterie.devices.cpu.device import CpuDevice
from coterie.kernels.cpu import I64
from coterie.models.blocks import EMBED_WEIGHT
from coterie.models.model import Model

EMBED, HEAD = "embed", "head"
ROUNDS = 5


class _StageDevice(CpuDevice):
    """Records the seconds of each instruction of its last run; host orchestration only."""

    row_seconds: tuple[float, ...] = ()

    def _start(self, waits: Mapping[int, Event], rows: I64, first: bool) -> None:
        taken = []
        for i in range(len(rows)):
            start = perf_counter()
            super()._start({}, rows[i : i + 1], False)
            taken.append(perf_counter() - start)
        self.row_seconds = tuple(taken)


def stage_shares(model: Model, prompt_tokens: int, threads: int | None) -> dict[str, float]:
    """Each stage's share of a warm prefill's time, with regions run one by one: medians of a few runs."""
    with Loaded(model, _StageDevice(threads=threads, orchestration="host"), prompt_tokens) as loaded:
        step = loaded.step(loaded.device.spec.rule_set, 0, prompt_tokens)
        step.seconds()
        runs = []
        for _ in range(ROUNDS):
            step.seconds()
            runs.append(loaded.device.row_seconds)
        stages: dict[str, float] = defaultdict(float)
        for region, taken in zip(step.exe.program.regions, zip(*runs, strict=True), strict=True):
            stages[region.stage] += median(taken)
    total = sum(stages.values())
    return {stage: seconds / total for stage, seconds in stages.items()}


def first_token_bytes(model: Model, prompt_tokens: int) -> dict[str, int]:
    """Bytes that each stage needs before the first token, in order; of the embedding only the prompt's rows."""
    table = model.checkpoint.tensors[EMBED_WEIGHT]
    need = dict.fromkeys(model.graph.stages, 0)
    for weight, stage in model.graph.weight_stage().items():
        if weight != EMBED_WEIGHT:
            need[stage] += model.checkpoint.tensors[weight].size_bytes
    need[EMBED] += min(prompt_tokens * table.size_bytes // table.shape[0], table.size_bytes)
    if model.config.tied_embeddings:
        need[HEAD] += table.size_bytes
    return need


def ideal_seconds(
    need_bytes: Mapping[str, int], bytes_per_s: float, shares: Mapping[str, float], prefill_s: float
) -> float:
    """Seconds from the start of the transfer to the end of the last stage."""
    arrived = done = 0.0
    for stage, size_bytes in need_bytes.items():
        arrived += size_bytes / bytes_per_s
        done = max(done, arrived) + shares.get(stage, 0.0) * prefill_s
    return done

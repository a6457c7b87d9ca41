"""A modelled time beside a measured one, and what many of them say.

    calibration   the model was given this row, or fitted to it: its error says only how well it fits
    validation    the model never saw it; rows are split by a rule, never picked

Knows nothing about where times are from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median

CALIBRATION, VALIDATION = "calibration", "validation"
GPU_KERNEL, TOKEN_TIME, FIRST_TOKEN, REQUEST, CPU, GPU = (
    "GPU kernel", "time per output token", "time to first token", "whole request", "this CPU", "this GPU",
)  # fmt: skip
AIMS = {GPU_KERNEL: 0.10, TOKEN_TIME: 0.08, FIRST_TOKEN: 0.15, CPU: 0.10, GPU: 0.10}  # mean error on validation rows


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement and what the model says. `split` is calibration or validation."""

    dataset: str
    metric: str
    name: str
    split: str
    measured_s: float
    modelled_s: float
    provenance: str = ""

    @property
    def error(self) -> float:
        """Relative and signed: above 0 where the model is slower than the measurement."""
        return self.modelled_s / self.measured_s - 1.0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that was not used, and why."""

    dataset: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """The errors of some rows: of their sizes the mean, the median and the worst; `bias` is the mean with signs."""

    dataset: str
    metric: str
    split: str
    n: int
    mean: float
    median: float
    bias: float
    worst: Row
    provenance: str

    @property
    def aim(self) -> float | None:
        """The error that was aimed at, on validation rows."""
        return AIMS.get(self.metric) if self.split == VALIDATION else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All rows, those dropped, and what to know about the data."""

    rows: tuple[Row, ...]
    dropped: tuple[Dropped, ...]
    caveats: tuple[str, ...]

    def summaries(self) -> tuple[Summary, ...]:
        """By data set, metric and split, in the order of the rows; then all validation rows of each metric."""
        keys = dict.fromkeys((row.dataset, row.metric, row.split) for row in self.rows)
        found = [
            summary(key[0], [row for row in self.rows if (row.dataset, row.metric, row.split) == key]) for key in keys
        ]
        for metric in dict.fromkeys(row.metric for row in self.rows):
            held = [row for row in self.rows if row.metric == metric and row.split == VALIDATION]
            if held:
                found.append(summary("all", held))
        return tuple(found)


def summary(dataset: str, rows: Sequence[Row]) -> Summary:
    """Of at least one row, all of one metric and split."""
    sizes = [abs(row.error) for row in rows]
    counts = dict.fromkeys(row.provenance for row in rows if row.provenance)
    said = ", ".join(f"{sum(row.provenance == name for row in rows)} {name}" for name in counts)
    worst = max(rows, key=lambda row: abs(row.error))
    bias = mean(row.error for row in rows)
    return Summary(dataset, rows[0].metric, rows[0].split, len(rows), mean(sizes), median(sizes), bias, worst, said)


def alternate(keys: Iterable[float]) -> dict[float, str]:
    """Sizes at both ends calibrate, and every other one between: what is asked for lies between two that are known."""
    ordered = sorted(set(keys))
    return {key: VALIDATION if i % 2 and i + 1 < len(ordered) else CALIBRATION for i, key in enumerate(ordered)}

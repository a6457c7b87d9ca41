"""Comparisons of modelled with measured times, and their summaries.

    calibration   the model was given this row or fitted to it: its error only shows the quality of the fit
    validation    the model never saw it; rows are assigned by rule, never picked by hand

Knows nothing about where times come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median

CALIBRATION, VALIDATION = "calibration", "validation"
GPU_KERNEL, TOKEN_TIME, FIRST_TOKEN, REQUEST, CPU, GPU = (
    "GPU kernel", "time per output token", "time to first token", "whole request", "this CPU", "this GPU",
)  # fmt: skip
AIMS = {GPU_KERNEL: 0.10, TOKEN_TIME: 0.08, FIRST_TOKEN: 0.15, CPU: 0.10, GPU: 0.10}  # target mean validation error


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement and its modelled time. `split`: calibration or validation."""

    dataset: str
    metric: str
    name: str
    split: str
    measured_s: float
    modelled_s: float
    provenance: str = ""

    @property
    def error(self) -> float:
        """Signed relative error; positive if the model is slower than the measurement."""
        return self.modelled_s / self.measured_s - 1.0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that was not used, and why."""

    dataset: str
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Summary:
    """Errors of a set of rows: mean, median and worst absolute error; `bias`: mean signed error."""

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
        """The target error, for validation rows."""
        return AIMS.get(self.metric) if self.split == VALIDATION else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """All rows, those that were dropped, and caveats about the data."""

    rows: tuple[Row, ...]
    dropped: tuple[Dropped, ...]
    caveats: tuple[str, ...]

    def summaries(self) -> tuple[Summary, ...]:
        """Summaries by data set, metric and split, in row order; then over all validation rows of each metric."""
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
    """Summarise rows of one metric and split; at least one."""
    sizes = [abs(row.error) for row in rows]
    counts = dict.fromkeys(row.provenance for row in rows if row.provenance)
    said = ", ".join(f"{sum(row.provenance == name for row in rows)} {name}" for name in counts)
    worst = max(rows, key=lambda row: abs(row.error))
    bias = mean(row.error for row in rows)
    return Summary(dataset, rows[0].metric, rows[0].split, len(rows), mean(sizes), median(sizes), bias, worst, said)


def alternate(keys: Iterable[float]) -> dict[float, str]:
    """Alternate between calibration and validation, with calibration at both ends, so that predictions interpolate."""
    ordered = sorted(set(keys))
    return {key: VALIDATION if i % 2 and i + 1 < len(ordered) else CALIBRATION for i, key in enumerate(ordered)}

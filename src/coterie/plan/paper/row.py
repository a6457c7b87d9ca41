"""The parts of an exhibit: rows (published value and ours), fitted constants, charts.

Knows nothing about any exhibit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from statistics import median


class Kind(Enum):
    """To what extent `ours` depends on published results; a row has the weakest kind among its inputs."""

    GIVEN = "given"  # computed from published inputs only, never from the row's own published value
    FITTED = "fitted"  # an input or a rule was chosen so that published results agree
    PREDICTED = "predicted"  # from a machine's specification and a mapped graph


class Method(Enum):
    """How `ours` was computed. Only machine rows count as our model."""

    CLOSED_FORM = "closed form"  # the paper's own arithmetic
    MACHINE = "machine"  # a graph from a config, priced or simulated on a machine from its file


@dataclass(frozen=True, slots=True)
class Row:
    """One value. `published`: None if the paper gives none; `ours`: None if it is not modelled (`note` says why)."""

    exhibit: str
    row: str
    published: float | None
    ours: float | None
    kind: Kind
    method: Method
    unit: str
    source: str
    note: str = ""

    @property
    def error(self) -> float | None:
        """Relative error of ours against published; None if either is missing."""
        if self.ours is None or self.published is None:
            return None
        return self.ours / self.published - 1

    def to_dict(self) -> dict[str, object]:
        """The row for JSON."""
        return asdict(self) | {"error": self.error, "kind": self.kind.value, "method": self.method.value}


@dataclass(frozen=True, slots=True)
class Fitted:
    """A constant that was chosen to agree with published results.

    `left_out_error`: leave-one-out median relative error on the published values; None if leaving one out leaves
    nothing to fit, or if a rule was chosen rather than a number.
    """

    name: str
    value: float
    unit: str
    fitted_to: str
    left_out_error: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Points of a chart. `label`: machine, then method; `is_published`: the published curve."""

    label: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]
    is_published: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart; `shape`: bars (x are indices into `names`), lines or steps."""

    title: str
    shape: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    names: tuple[str, ...] = ()
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One table or figure of the paper, or one question that it leaves open."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]
    fitted: tuple[Fitted, ...] = ()
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Summary:
    """The errors of the rows of one exhibit, method and kind."""

    exhibit: str
    method: Method
    kind: Kind
    num_rows: int
    num_not_modelled: int
    median_error: float | None
    worst: Row | None


def summaries(exhibits: Iterable[Exhibit]) -> tuple[Summary, ...]:
    """Median and worst absolute error of each exhibit's rows, by method and kind; rows not modelled are counted."""
    found = []
    for exhibit in exhibits:
        for method in Method:
            for kind in Kind:
                rows = [row for row in exhibit.rows if row.method is method and row.kind is kind]
                if not rows:
                    continue
                errors = {row.row: (abs(row.error), row) for row in rows if row.error is not None}
                middle = median(e for e, _ in errors.values()) if errors else None
                worst = max(errors.values(), key=lambda pair: pair[0])[1] if errors else None
                missing = sum(row.ours is None for row in rows)
                found.append(Summary(exhibit.title, method, kind, len(rows), missing, middle, worst))
    return tuple(found)


def bars(title: str, unit: str, rows: Iterable[Row], log_y: bool = False) -> Chart:
    """A bar chart with published, closed-form and machine values side by side for each row name."""
    rows = tuple(rows)
    names = tuple(dict.fromkeys(row.row for row in rows))
    x = tuple(float(i) for i in range(len(names)))
    published = {row.row: row.published for row in rows}
    series = [Series("published", x, tuple(published[name] for name in names), is_published=True)]
    for label, chosen in (
        ("closed form", [row for row in rows if row.method is Method.CLOSED_FORM]),
        ("machine, predicted", [row for row in rows if _is_machine(row, Kind.PREDICTED)]),
        ("machine, fitted", [row for row in rows if _is_machine(row, Kind.FITTED)]),
    ):
        if ours := {row.row: row.ours for row in chosen}:
            series.append(Series(label, x, tuple(ours.get(name) for name in names)))
    return Chart(title, "bars", "", unit, tuple(series), names, log_y)


def _is_machine(row: Row, kind: Kind) -> bool:
    return row.method is Method.MACHINE and row.kind is kind

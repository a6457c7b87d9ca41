"""Formats numbers, errors and rows of exhibits as text.

Knows nothing about where they are printed.
"""

from __future__ import annotations

from coterie.plan.paper.row import Fitted, Row, Summary


def number(value: float | None) -> str:
    """Four significant digits, integers in full; a dash for None."""
    if value is None:
        return "-"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def error_text(error: float | None, signed: bool = True) -> str:
    """A relative error in percent, or as a factor from ten times on."""
    if error is None:
        return "-"
    if error >= 9:
        return f"x{error + 1:.0f}"
    rounded = round(error, 3) or 0.0
    return f"{rounded:{'+' if signed else ''}.1%}"


def row_cells(row: Row) -> tuple[str, ...]:
    """Name, published, ours, unit, error, kind and method."""
    values = number(row.published), number(row.ours), row.unit, error_text(row.error)
    return (row.row, *values, row.kind.value, row.method.value)


def summary_cells(line: Summary) -> tuple[str, ...]:
    """Exhibit, method, kind, rows, rows not modelled, median error, worst error and its row."""
    worst = (error_text(line.worst.error), line.worst.row) if line.worst else ("-", "")
    counts = str(line.num_rows), str(line.num_not_modelled or "")
    middle = error_text(line.median_error, signed=False)
    return (line.exhibit, line.method.value, line.kind.value, *counts, middle, *worst)


def fitted_cells(constant: Fitted) -> tuple[str, ...]:
    """Name, value, unit, leave-one-out error, and what it was fitted to."""
    left_out = error_text(constant.left_out_error, signed=False)
    return constant.name, number(constant.value), constant.unit, left_out, constant.fitted_to

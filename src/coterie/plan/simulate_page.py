"""Renders simulation results as a self-contained HTML page: latency distributions, utilisation, a table.

Knows nothing about how they were obtained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from coterie.plan.mix import F64
from coterie.plan.outcome import SYNTHETIC
from coterie.plan.paper.html import document
from coterie.plan.paper.plots import svg
from coterie.plan.paper.row import Chart, Series

POINTS = 200  # per curve
LITTLE = 5e-4  # utilisation below which a resource is not shown

Curves = Mapping[str, tuple[F64, F64]]
"""By label: each request's time to first token and to last token, in seconds."""


def page(title: str, rows: Sequence[Mapping[str, Any]], curves: Curves) -> str:
    """Render the page."""
    charts = (_distribution("Time to the first token", 0, curves), _distribution("Time to the last token", 1, curves))
    pictures = map(svg, (*charts, _shares(rows)))
    parts = [f"<p>Modelled time; {SYNTHETIC}.</p>", *pictures, f'<div class="wide">{_table(rows)}</div>']
    return document(title, parts)


def _distribution(title: str, which: int, curves: Curves) -> Chart:
    """A cumulative distribution of latencies."""
    shares = np.linspace(0.0, 1.0, POINTS)
    series = [
        Series(label, tuple(np.quantile(times[which], shares).tolist()), tuple(shares.tolist()))
        for label, times in curves.items()
    ]
    return Chart(title, "lines", "seconds from arrival", "share of requests", tuple(series))


def _shares(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """The utilisation of each resource that was used."""
    used = (name for row in rows for name, share in row["utilisation"].items() if share >= LITTLE)
    names = list(dict.fromkeys(used))
    series = [
        Series(
            f"{row['machine']}, {row['policy']}",
            tuple(float(at) for at in range(len(names))),
            tuple(row["utilisation"].get(name) for name in names),
        )
        for row in rows
    ]
    return Chart("What was used", "bars", "", "share of what it can give", tuple(series), tuple(names))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name, value in rows[0].items() if not isinstance(value, Mapping)]
    lines = ["<table><tr><th></th>" + "".join(f'<th class="n">{escape(row["machine"])}</th>' for row in rows) + "</tr>"]
    for name in names[1:]:
        cells = "".join(f'<td class="n">{escape(_show(row[name]))}</td>' for row in rows)
        lines.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def _show(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

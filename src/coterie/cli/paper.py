"""`coterie paper`: compares the paper's tables and figures with our values; as a table, JSON or an HTML page.

Knows nothing about how values are computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from coterie.cli.in_parallel import in_parallel
from coterie.cli.options import JsonOpt, err, out, print_json, report_errors, write_text
from coterie.core.grouped import grouped
from coterie.plan.paper.exhibits import EXHIBITS, exhibits
from coterie.plan.paper.html import page
from coterie.plan.paper.plots import check_plots
from coterie.plan.paper.row import Exhibit, Kind, summaries
from coterie.plan.paper.text import fitted_cells, row_cells, summary_cells
from coterie.spec.this_machine import allowed_cpus


@report_errors
def paper(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[EXHIBIT]...", help=f"{', '.join(EXHIBITS)}; none shows all.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one page with tables and plots.")] = None,
    json_: JsonOpt = False,
) -> None:
    """Compare the paper's tables and figures with its own arithmetic and with our models of its machines."""
    if html is not None:
        check_plots("--html")
    cpus, _ = allowed_cpus()
    found = exhibits(names or (), lambda work, count: in_parallel(work, count, cpus))
    if html is not None:
        write_text(html, page(found), "--html")
        err.print(f"report: {len(found)} exhibits in {html}", markup=False)
    if json_:
        print_json([row.to_dict() for exhibit in found for row in exhibit.rows])
        return
    for exhibit in found:
        _print(exhibit)
    _print_summary(found)
    _print_fitted(found)


def _print(exhibit: Exhibit) -> None:
    table = Table(title=f"{exhibit.title}: {exhibit.about}", title_justify="left", title_style="bold")
    table.add_column("row", overflow="fold")
    for column in ("published", "ours", "unit", "error"):
        table.add_column(column, justify="left" if column == "unit" else "right", no_wrap=True)
    for column in ("kind", "method"):
        table.add_column(column, no_wrap=True)
    for row in exhibit.rows:
        style = "" if row.kind is Kind.PREDICTED else "dim"
        table.add_row(*map(escape, row_cells(row)), style=style)
    out.print(table)
    out.print(f"  published: {escape('; '.join(dict.fromkeys(row.source for row in exhibit.rows)))}")
    for text, rows in _notes(exhibit):
        out.print(f"  {escape(_few(rows))}: {escape(text)}")
    for note in exhibit.notes:
        out.print(f"  {escape(note)}")
    out.print()


def _notes(exhibit: Exhibit) -> Iterable[tuple[str, list[str]]]:
    """The distinct notes, each with its rows."""
    return grouped((row.note, row.row) for row in exhibit.rows if row.note).items()


def _few(rows: Sequence[str]) -> str:
    names = list(dict.fromkeys(rows))
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


def _print_summary(found: Sequence[Exhibit]) -> None:
    table = Table(title="How far off; only predicted rows are the model", title_justify="left", title_style="bold")
    for column in ("exhibit", "method", "kind"):
        table.add_column(column, overflow="fold")
    for column in ("rows", "not modelled", "median error", "worst"):
        table.add_column(column, justify="right")
    table.add_column("worst row", overflow="fold")
    for line in summaries(found):
        table.add_row(*map(escape, summary_cells(line)))
    out.print(table)
    out.print()


def _print_fitted(found: Sequence[Exhibit]) -> None:
    table = Table(title="Fitted constants, and rules chosen with the answers in view", title_justify="left")
    table.add_column("constant")
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("left-one-out error", justify="right")
    table.add_column("fitted to, or why it was chosen")
    for constant in dict.fromkeys(constant for exhibit in found for constant in exhibit.fitted):
        table.add_row(*map(escape, fitted_cells(constant)))
    out.print(table)

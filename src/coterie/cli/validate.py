"""`coterie validate`: compares modelled times with measured ones.

Knows nothing about how either is obtained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from coterie.bench.shapes import shape_config
from coterie.cli.options import JsonOpt, out, picked, print_json, report_errors
from coterie.core.errors import UsageError
from coterie.core.units import format_seconds
from coterie.plan.validate.rows import Outcome, Row, Summary
from coterie.plan.validate.run import validate as run

RESULTS = Path("benchmarks/results")


@report_errors
def validate(
    results: Annotated[
        Path | None, typer.Option(metavar="DIR", help=f"This machine's benches; {RESULTS} where there is one.")
    ] = None,
    rows: Annotated[bool, typer.Option("--rows", help="Print every row, not only the summary.")] = False,
    json_: JsonOpt = False,
) -> None:
    """Compare modelled times with measured ones: public data sets, and this machine's own benches."""
    if results is not None and not results.is_dir():
        raise UsageError("--results", f"{results} is not a folder", "give one with results of coterie bench")
    outcome = run(results or (RESULTS if RESULTS.is_dir() else None), shape_config)
    if json_:
        print_json(_plain(outcome))
        return
    out.print(_table(outcome.summaries()))
    out.print("mean, median: of modelled / measured - 1, sizes; bias: with signs, above 0 where the model is slower")
    if rows:
        out.print(_rows(outcome.rows))
    out.print(f"dropped: {len(outcome.dropped)} rows")
    for item in outcome.dropped:
        out.print(f"  {item.dataset}, {item.name}: {item.reason}", markup=False)
    for caveat in outcome.caveats:
        out.print(f"note: {caveat}", markup=False)


def _table(summaries: tuple[Summary, ...]) -> Table:
    numbers = [Column(head, no_wrap=True) for head in ("n", "mean", "median", "bias", "aim")]
    texts = [Column(head, overflow="fold") for head in ("what, and how it is known", "worst row")]
    table = Table(texts[0], *numbers, texts[1], box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for item in summaries:
        met = "" if item.aim is None else f"{item.aim:.0%} {'met' if item.mean <= item.aim else 'missed'}"
        what = f"{item.dataset}: {item.metric}, {item.split}" + (f"; {item.provenance}" if item.provenance else "")
        shares = f"{item.mean:.1%}", f"{item.median:.1%}", f"{item.bias:+.1%}"
        table.add_row(escape(what), str(item.n), *shares, met, escape(f"{item.worst.error:+.0%} {item.worst.name}"))
    return table


def _rows(rows: tuple[Row, ...]) -> Table:
    table = Table("data set", "row", "split", "measured", "modelled", "error", "known by")
    for row in rows:
        times = format_seconds(row.measured_s), format_seconds(row.modelled_s)
        table.add_row(row.dataset, escape(row.name), row.split, *times, f"{row.error:+.1%}", row.provenance)
    return table


def _plain(outcome: Outcome) -> dict[str, Any]:
    of_all = ("dataset", "metric", "split", "provenance")
    summaries = []
    for item in outcome.summaries():
        worst = {"row": item.worst.name, "error": item.worst.error}
        errors = {"mean_error": item.mean, "median_error": item.median, "worst": worst}
        summaries.append(picked(item, *of_all, "n", "bias", "aim") | errors)
    times = ("measured_s", "modelled_s", "error")
    return {
        "summaries": summaries,
        "rows": [picked(row, *of_all, *times) | {"row": row.name} for row in outcome.rows],
        "dropped": [picked(item, "dataset", "reason") | {"row": item.name} for item in outcome.dropped],
        "caveats": list(outcome.caveats),
    }

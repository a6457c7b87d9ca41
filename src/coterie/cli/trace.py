"""`coterie trace`: summarises a file written by `--trace`, and draws it.

Knows nothing about how it was recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from coterie.cli.options import out, report_errors, write_text
from coterie.core.errors import UsageError
from coterie.core.trace import read_trace
from coterie.core.trace_svg import render
from coterie.core.units import format_seconds


@report_errors
def trace(
    file: Annotated[Path, typer.Argument(help="A file that --trace wrote.")],
    svg: Annotated[Path | None, typer.Option(metavar="OUT", help="Draw the lanes into this file.")] = None,
    start: Annotated[float, typer.Option("--from", min=0, metavar="SECONDS", help="First moment to draw.")] = 0.0,
    until: Annotated[float | None, typer.Option("--to", min=0, metavar="SECONDS", help="Last moment to draw.")] = None,
    title: Annotated[str, typer.Option(help="Title of the picture.")] = "",
) -> None:
    """Show how busy each lane was; draw what ran when."""
    read = read_trace(file)
    end = max((piece.end_s for piece in read.slices), default=0.0)
    table = Table("lane", "pieces of work", "busy", "of")
    for lane in read.lanes:
        pieces = [piece for piece in read.slices if piece.lane == lane]
        busy = sum(piece.end_s - piece.start_s for piece in pieces)
        table.add_row(lane, str(len(pieces)), format_seconds(busy), format_seconds(end))
    out.print(table)
    if svg is not None:
        if until is not None and until <= start:
            raise UsageError("--to", f"{until:g} s is not after {start:g} s", "give a later moment")
        write_text(svg, render(read, start, until, title), "--svg")

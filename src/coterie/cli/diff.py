"""`coterie diff`: runs one prompt on a device and on the NumPy reference, and compares the results buffer by buffer.

Knows nothing about how either computes.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.api.assemble import Options
from coterie.api.compare import Row, compare, open_one
from coterie.cli.options import ActivationsOpt, DeviceOpt, JsonOpt, ThreadsOpt, out, print_json, report_errors
from coterie.core.errors import DeviceError
from coterie.graph.fuse import KERNEL_SETS
from coterie.models.model import FLOAT32


@report_errors
def diff(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, or a composition with --expert.")],
    expert: Annotated[str, typer.Option(help="Which expert of a composition.")] = "",
    prompt: Annotated[str, typer.Option(help="The prompt, without a chat template.")] = "What is 47 plus 85?",
    rule_set: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(KERNEL_SETS)}; the default is all.")
    ] = None,
    json_: JsonOpt = False,
    device: DeviceOpt = "cpu",
    activations: ActivationsOpt = FLOAT32,
    threads: ThreadsOpt = None,
) -> None:
    """Compare a device with the reference: first values and largest error of every stored buffer."""
    opened, ids = open_one(model, expert, prompt, activations, device)
    rows = compare(opened, ids, tuple(rule_set or KERNEL_SETS), Options(device=device, threads=threads))
    worst = max(rows, key=lambda row: row.excess)
    if json_:
        print_json({"model": opened.name, "tolerance": worst.tolerance, "rows": [row.to_dict() for row in rows]})
    else:
        out.print(_table(rows))
        out.print(
            f"worst: {escape(worst.name)} ({worst.rule_set}), off by {worst.max_error:.2e} of its largest value, "
            f"where {worst.tolerance:.0e} is allowed"
        )
    if not worst.excess <= 1:
        fact = f"{worst.name} is off by {worst.max_error:.2e} of its largest value, more than {worst.tolerance:.0e}"
        raise DeviceError(opened.name, fact, "report it: a kernel is wrong")


def _table(rows: list[Row]) -> Table:
    table = Table("rules", Column("buffer", overflow="fold"), "shape", "first values", "reference", "largest error")
    for row in rows:
        ours, theirs = (" ".join(f"{v:.5g}" for v in values) for values in (row.first, row.reference_first))
        table.add_row(
            row.rule_set, escape(row.name), "x".join(map(str, row.shape)), ours, theirs, f"{row.max_error:.2e}"
        )
    return table

"""`coterie merge`: writes whole experts from bases and LoRA adapters or deltas, and reports the changes.

Knows nothing about how these are added.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.cli.options import JsonOpt, out, print_json, report_errors
from coterie.composition.merge import merge_composition
from coterie.core.errors import UsageError
from coterie.core.units import format_bytes
from coterie.models.fine_tunes.merge import merge_folder
from coterie.models.fine_tunes.merged import Merged


@report_errors
def merge(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="The folder of the adapter's base; or a composition file.")
    ],
    adapter: Annotated[
        Path,
        typer.Argument(
            metavar="ADAPTER",
            help="A LoRA adapter that PEFT saved, or what coterie delta wrote; omit it if BASE is a composition file.",
        ),
    ],
    target: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.", show_default=False)
    ] = None,
    json_: JsonOpt = False,
) -> None:
    """Write an ordinary expert folder from a base and a LoRA adapter or a delta; changes are printed.

    `coterie merge office.toml OUT` merges each adapter and delta of a composition file, and writes a new composition
    file next to them.
    """
    if target is not None:
        merged = merge_folder(base, adapter, target)
        if json_:
            print_json(_report(merged))
        else:
            _print(merged)
        return
    if (base / "config.json").is_file():
        raise UsageError(str(base), "is a base, and there is no OUT", "write coterie merge BASE ADAPTER OUT")
    several = merge_composition(base, adapter)
    if json_:
        experts = {name: _report(found) for name, found in several.experts.items()}
        print_json({"folder": str(several.folder), "experts": experts})
        return
    for found in several.experts.values():
        _print(found)
    out.print(f"{escape(str(several.folder))}: a composition of them and of the experts that need no merging")


def _print(merged: Merged) -> None:
    table = Table(Column("tensors", overflow="fold"), "changed", "weights", "change", "lost to rounding")
    for row in merged.kinds:
        count = f"{row.num_tensors} of {row.num_there}"
        table.add_row(escape(row.kind), count, f"{row.num_weights:,}", f"{row.change:.2%}", f"{row.rounding:.2%}")
    out.print(table)
    size = format_bytes(merged.size_bytes)
    out.print(f"{escape(str(merged.folder))}: {size}; changes are relative to the weights, what is lost to the changes")
    if merged.untied:
        out.print("embedding and head, which are one matrix in the base, are two: what is added changes one of them")


def _report(merged: Merged) -> dict[str, Any]:
    return asdict(merged) | {"folder": str(merged.folder)}

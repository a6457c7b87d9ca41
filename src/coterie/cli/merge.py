"""`coterie merge`: writes an expert from a base and a LoRA adapter, and says what that changed.

Knows nothing about how an adapter is added.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from coterie.cli.options import JsonOpt, out, print_json, sentences
from coterie.core.units import format_bytes
from coterie.models.merge import Merged, merge_folder


@sentences
def merge(
    base: Annotated[
        Path, typer.Argument(metavar="BASE", help="The checkpoint folder that the adapter was trained on.")
    ],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="A folder that PEFT saved, with a LoRA adapter.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    json_: JsonOpt = False,
) -> None:
    """Write an ordinary expert folder from a base and a LoRA adapter; the change per kind of tensor is printed."""
    result = merge_folder(base, adapter, target)
    if json_:
        print_json(_report(result))
        return
    table = Table("tensors", "changed", "weights", "change", "lost to rounding")
    for row in result.kinds:
        count = f"{row.num_tensors} of {row.num_there}"
        sizes = (f"{row.num_weights:,}", f"{row.change:.2%}", f"{row.rounding:.2%}")
        table.add_row(escape(row.kind), count, *sizes)
    out.print(table)
    out.print(f"{escape(str(result.folder))}: {format_bytes(result.size_bytes)}; changes are relative to the weights,")
    out.print("what rounding to their type lost is relative to the change")
    if result.untied:
        out.print("embedding and head, which are one matrix in the base, are two: the adapter changes one of them")


def _report(result: Merged) -> dict[str, Any]:
    return asdict(result) | {"folder": str(result.folder)}

"""`coterie import`: writes an expert from a GGUF file, and says what that did to its weights.

Knows nothing about what is in such a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.cli.options import JsonOpt, out, print_json, sentences
from coterie.cli.progress import counted
from coterie.core.dtypes import DType
from coterie.core.units import format_bytes
from coterie.models.gguf_import import Imported, import_gguf, plan_import
from coterie.models.gguf_weights import KEEP

_NAMES = {DType.Q8: "int8", DType.Q4: "int4"}


@sentences
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A GGUF file; of one that was cut into several, the first.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    weights: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="keep (unquantised weights as they are, Q4_0 as int4, all other quantised ones as int8), bf16, int8 "
            "or int4.",
        ),
    ] = KEEP,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="A folder or tokenizer.json in place of the file's own tokenizer.",
            show_default=False,
        ),
    ] = None,
    json_: JsonOpt = False,
) -> None:
    """Write an ordinary expert folder from a GGUF file (llama.cpp); what it adds to the weights' error is printed.

    A file is imported once; the folder is then served as any other.
    """
    job = plan_import(file, weights)
    with counted("tensors", job.num_tensors, shown=not json_) as tell:
        imported = import_gguf(job, target, tokenizer, tell)
    if json_:
        print_json(_report(imported))
    else:
        _print(imported)


def _print(imported: Imported) -> None:
    table = Table(Column("tensors", no_wrap=True), Column("weights", no_wrap=True), "from", "to", "rms", "largest")
    for found in imported.kinds:
        row = found.lost
        errors = (f"{row.rms_error:.2%}", f"{row.max_error:.2%}") if row.rms_error else ("none", "none")
        types = (", ".join(found.found), _NAMES.get(row.dtype, row.dtype.value))
        table.add_row(escape(row.kind), f"{row.num_weights:,}", *types, *errors)
    out.print(table)
    sizes = f"{format_bytes(imported.before_bytes)} -> {format_bytes(imported.after_bytes)}"
    what = "errors are what was added to the file's own, relative to the root mean square of its weights"
    out.print(f"{escape(str(imported.folder))}: {escape(imported.architecture)}, {sizes}; {what}")


def _report(imported: Imported) -> dict[str, Any]:
    packing = imported.packing
    return {
        "folder": str(imported.folder),
        "architecture": imported.architecture,
        "bits": packing.bits if packing else None,
        "embedding_bits": packing.embedding_bits if packing else None,
        "before_bytes": imported.before_bytes,
        "after_bytes": imported.after_bytes,
        "kinds": [
            {
                "kind": found.lost.kind,
                "found": list(found.found),
                "type": found.lost.dtype.value,
                "tensors": found.lost.num_tensors,
                "weights": found.lost.num_weights,
                "bits_per_weight": found.lost.bits,
                "rms_error": found.lost.rms_error,
                "max_error": found.lost.max_error,
            }
            for found in imported.kinds
        ],
    }

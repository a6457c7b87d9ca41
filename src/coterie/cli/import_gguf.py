"""`coterie import`: writes an expert from a GGUF file, and reports the error that this adds to its weights.

Knows nothing about what is in such a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.cli.options import JsonOpt, err, out, print_json, report_errors
from coterie.cli.progress import counted
from coterie.cli.quantize import kind_of, report_of
from coterie.composition.gguf_folder import gguf_folder
from coterie.core.errors import UsageError
from coterie.core.units import format_shrunk
from coterie.models.gguf.convert import Imported, import_gguf, plan_import
from coterie.models.gguf.weights import KEEP
from coterie.models.new_folder import free_path
from coterie.models.packing import NAMES


@report_errors
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A GGUF file, the first of its parts if it is split; or a folder of such files."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The folder to write, which must not exist; or the folder for one expert per file."
        ),
    ],
    weights: Annotated[
        str,
        typer.Option(
            metavar="TYPE",
            help="keep (unquantised weights as they are, quantised ones in the smallest of int4, int4z, int6 and int8 "
            "that adds little error), keep8 (the same with int8 in place of int6), bf16, int8, int6, int4 or "
            "int4z.",
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
    """Write an ordinary expert folder from a GGUF file (llama.cpp); the error that this adds is printed.

    A file is imported once; the folder is then served as any other. If FILE is a folder, each file in it becomes an
    expert in OUT; those that exist already are left as they are.
    """
    if file.is_dir():
        _import_folder(file, target, weights, tokenizer, json_)
        return
    imported = _import(file, target, weights, tokenizer, not json_)
    if json_:
        print_json(_report(imported))
    else:
        _print(imported)


def _import(file: Path, target: Path, weights: str, tokenizer: Path | None, shown: bool) -> Imported:
    free_path(target)  # fail before the file is read
    job = plan_import(file, weights)
    with counted(target.name, job.num_tensors, shown=shown) as tell:
        return import_gguf(job, target, tokenizer, tell)


def _import_folder(folder: Path, target: Path, weights: str, tokenizer: Path | None, json_: bool) -> None:
    """Import all files that can be; the others are reported one by one, and the exit status is then 2."""
    if tokenizer is not None:
        raise UsageError("--tokenizer", "one tokenizer for a folder of files", "import the file that wants it alone")
    found = gguf_folder(folder, target)
    experts: dict[str, Imported] = {}
    refused = {str(file): str(error) for file, error in found.refused.items()}
    for why in refused.values():
        err.print(f"coterie: {why}", style="red", markup=False)
    for name, file in found.files.items():
        try:
            experts[name] = _import(file, found.target / name, weights, None, not json_)
        except (UsageError, PermissionError) as error:  # PermissionError: an unreadable folder
            refused[str(file)] = str(error)
            err.print(f"coterie: {error}", style="red", markup=False)
            continue
        if not json_:
            _print(experts[name])
    if json_:
        reports = {name: _report(one) for name, one in experts.items()}
        print_json({"folder": str(target), "experts": reports, "there": list(found.existing), "refused": refused})
    else:
        rows = ((len(experts), "imported"), (len(found.existing), "there already"), (len(refused), "refused"))
        out.print(f"{escape(str(target))}: " + ", ".join(f"{count} {what}" for count, what in rows if count))
    if refused:
        raise typer.Exit(2)


def _print(imported: Imported) -> None:
    table = Table(Column("tensors", no_wrap=True), Column("weights", no_wrap=True), "from", "to", "rms", "largest")
    for found in imported.kinds:
        row = found.lost
        errors = (f"{row.rms_error:.2%}", f"{row.max_error:.2%}") if row.rms_error else ("none", "none")
        types = (", ".join(found.found), NAMES.get(row.dtype, row.dtype.value))
        table.add_row(escape(row.kind), f"{row.num_weights:,}", *types, *errors)
    out.print(table)
    sizes = format_shrunk(imported.before_bytes, imported.after_bytes, imported.num_weights)
    what = "errors are what was added to the file's own, relative to the root mean square of its weights"
    out.print(f"{escape(str(imported.folder))}: {escape(imported.architecture)}, {sizes}; {what}")


def _report(imported: Imported) -> dict[str, Any]:
    kinds = ({**kind_of(found.lost), "found": list(found.found)} for found in imported.kinds)
    return report_of(imported, kinds) | {"architecture": imported.architecture}

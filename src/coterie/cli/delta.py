"""`coterie delta`: writes a fine-tune as its quantised difference from a base, and reports the loss.

Knows nothing about how a difference is computed or quantised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.cli.options import JsonOpt, out, print_json, report_errors
from coterie.cli.quantize import AS_IS, TYPES, report_of
from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.units import format_shrunk
from coterie.models.fine_tunes.delta_write import Delta, KindDelta, write_delta
from coterie.models.packing import NAMES, Packing

DEFAULT = "4"


@report_errors
def delta(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="The folder of the model that was fine-tuned.")],
    expert: Annotated[Path, typer.Argument(metavar="EXPERT", help="The fine-tune's folder, unquantised.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    bits: Annotated[
        str, typer.Option(metavar="BITS", help="Bits of a difference: 4, 2, 8, or 4z (4 with zero points).")
    ] = DEFAULT,
    embedding_bits: Annotated[
        str | None,
        typer.Option(
            metavar="BITS",
            help="Bits of the differences of embedding and head; 16 stores these tensors whole; default: as --bits.",
            show_default=False,
        ),
    ] = None,
    json_: JsonOpt = False,
) -> None:
    """Write a fine-tune as its packed difference from BASE; its size and the error are printed.

    It is served together with BASE, whose weights are in memory once for all its deltas. Tensors other than matrices
    (norms, biases, experts' branches) are stored whole if they differ from the base's, and omitted if they do not.
    """
    layers = _type("--bits", bits, TYPES)
    tables = layers if embedding_bits is None else _type("--embedding-bits", embedding_bits, {**TYPES, AS_IS: None})
    result = write_delta(base, expert, target, Packing(layers, tables))
    if json_:
        print_json(_report(result))
        return
    table = Table(
        Column("tensors", overflow="fold"),
        "stored",
        "count",
        "weights",
        "bits each",
        "change",
        "lost of it",
        "lost of all",
    )
    for row in result.kinds:
        shares = [f"{share:.2%}" if row.dtype else "" for share in (row.change, row.lost_of_change, row.lost)]
        table.add_row(
            escape(row.kind), _stored(row), str(row.num_tensors), f"{row.num_weights:,}", f"{row.bits:.2f}", *shares
        )
    out.print(table)
    sizes = format_shrunk(result.before_bytes, result.after_bytes, result.num_weights)
    what = "root mean squares: the change relative to the fine-tune's weights, what is lost to the change and to them"
    out.print(f"{escape(str(result.folder))}: {sizes}; {what}")
    if result.num_equal:
        out.print(f"{result.num_equal} tensors are the base's")
    for note in result.notes:
        out.print(f"note: {note}", markup=False)


def _type(option: str, bits: str, known: Mapping[str, DType | None]) -> DType | None:
    """The data type for an option's number of bits. Raises UsageError."""
    if bits not in known:
        raise UsageError(option, f"{bits} bits are not known", f"use one of {', '.join(known)}")
    return known[bits]


def _stored(row: KindDelta) -> str:
    return "whole" if row.dtype is None else NAMES[row.dtype]


def _report(result: Delta) -> dict[str, Any]:
    kinds = ({**asdict(row), "stored": _stored(row)} for row in result.kinds)
    plain = ({name: value for name, value in kind.items() if name != "dtype"} for kind in kinds)
    return report_of(result, plain) | {"num_equal": result.num_equal, "notes": list(result.notes)}

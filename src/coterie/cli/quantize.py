"""`coterie quantize`: writes an expert with weights of 8 or 4 bits, and says what that did to them.

Knows nothing about how weights are packed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from coterie.cli.options import JsonOpt, out, print_json, sentences
from coterie.core.errors import UsageError
from coterie.core.units import format_bytes
from coterie.models.packing import BY_BITS, Packing
from coterie.models.quantised.methods import is_quantised_by_others
from coterie.models.quantize import Quantized, quantize_folder
from coterie.models.repack import AS_IS, repack_folder

DEFAULT_BITS = 8


@sentences
def quantize(
    expert: Annotated[
        Path,
        typer.Argument(
            metavar="EXPERT", help="A folder, unquantised or quantised by GPTQ, AWQ, compressed-tensors or FP8."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of a weight: 8 (the default) or 4; of a folder that others quantised also 16: as bfloat16.",
            show_default=False,
        ),
    ] = None,
    embedding_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of embedding and head: 8 (the default), 4, or 16 for as they are (the default after others).",
            show_default=False,
        ),
    ] = None,
    json_: JsonOpt = False,
) -> None:
    """Write an ordinary expert folder whose matrices are packed in groups; the error per kind of tensor is printed.

    What others quantised is repacked as it is where nothing is lost by it; where something would be, --bits says how to
    round those weights anew, and the error is relative to them.
    """
    result = _quantized(expert, target, bits, embedding_bits)
    if json_:
        print_json(_report(result))
        return
    table = Table("tensors", "count", "weights", "bits each", "rms error", "largest error")
    for row in result.kinds:
        errors = (f"{row.rms_error:.2%}", f"{row.max_error:.2%}")
        table.add_row(escape(row.kind), str(row.num_tensors), f"{row.num_weights:,}", f"{row.bits:.2f}", *errors)
    out.print(table)
    sizes = f"{format_bytes(result.before_bytes)} -> {format_bytes(result.after_bytes)}"
    out.print(f"{escape(str(result.folder))}: {sizes}; errors are relative to the root mean square of the weights")
    for note in result.notes:
        out.print(f"note: of the source: {note}", markup=False)


def _quantized(expert: Path, target: Path, bits: int | None, embedding_bits: int | None) -> Quantized:
    if not is_quantised_by_others(expert):
        chosen = [DEFAULT_BITS if given is None else given for given in (bits, embedding_bits)]
        return quantize_folder(expert, target, _packing(*chosen))
    if bits not in (None, AS_IS):
        packing = _packing(bits, AS_IS if embedding_bits is None else embedding_bits)
        return repack_folder(expert, target, packing.bits, packing.embedding_bits)
    if embedding_bits not in (None, AS_IS):
        fact = f"{embedding_bits} bits of embedding and head beside layers that are not packed anew"
        raise UsageError("--embedding-bits", fact, f"add --bits {' or '.join(map(str, BY_BITS))}, or leave it out")
    return repack_folder(expert, target, bits)


def _packing(bits: int, embedding_bits: int) -> Packing:
    if bits not in BY_BITS:
        raise UsageError("--bits", f"{bits} bits are not known", f"use {' or '.join(map(str, BY_BITS))}")
    if embedding_bits not in (*BY_BITS, AS_IS):
        fact = f"{embedding_bits} bits are not known"
        raise UsageError("--embedding-bits", fact, f"use {', '.join(map(str, BY_BITS))}, or {AS_IS} for as they are")
    return Packing(bits, None if embedding_bits == AS_IS else embedding_bits)


def _report(result: Quantized) -> dict[str, Any]:
    return {
        "folder": str(result.folder),
        "bits": result.packing.bits if result.packing else AS_IS,
        "embedding_bits": result.packing.embedding_bits if result.packing else None,
        "before_bytes": result.before_bytes,
        "after_bytes": result.after_bytes,
        "notes": list(result.notes),
        "kinds": [
            {
                "kind": row.kind,
                "type": row.dtype.value,
                "tensors": row.num_tensors,
                "weights": row.num_weights,
                "bits_per_weight": row.bits,
                "rms_error": row.rms_error,
                "max_error": row.max_error,
            }
            for row in result.kinds
        ],
    }

"""`coterie quantize`: writes an expert with quantised or bfloat16 weights, and reports the error.

Knows nothing about how weights are quantised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.cli.options import JsonOpt, out, print_json, report_errors
from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.units import format_shrunk
from coterie.models.fine_tunes.delta_write import Delta
from coterie.models.gguf.convert import Imported
from coterie.models.packing import Packing
from coterie.models.packing_error import KindError
from coterie.models.quantised.methods import is_repacked
from coterie.models.quantize import Quantized, quantize_folder
from coterie.models.repack import repack_folder

TYPES: Mapping[str, DType] = {
    **{"8": DType.Q8, "6": DType.Q6, "4": DType.Q4, "4z": DType.Q4Z, "2": DType.Q2, "mxfp4": DType.MX4},
}
AS_IS = "16"
DEFAULT = "8"


@report_errors
def quantize(
    expert: Annotated[
        Path,
        typer.Argument(
            metavar="EXPERT", help="A folder, unquantised or quantised by GPTQ, AWQ, compressed-tensors, FP8 or MXFP4."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    bits: Annotated[
        str | None,
        typer.Option(
            metavar="BITS",
            help="Bits of a weight: 8 (the default), 6, 4, 4z (4 with zero points), 2 (for deltas), mxfp4 (4-bit "
            "floats) or 16 (bfloat16).",
            show_default=False,
        ),
    ] = None,
    embedding_bits: Annotated[
        str | None,
        typer.Option(
            metavar="BITS",
            help="Bits of embedding and head: 8 (the default), 6, 4, 4z, 2, mxfp4 or 16. 16 leaves them as they are, "
            "the default for checkpoints already quantised.",
            show_default=False,
        ),
    ] = None,
    json_: JsonOpt = False,
) -> None:
    """Write an ordinary expert folder whose matrices are packed in groups; the error per kind of tensor is printed.

    With --bits 16 they are bfloat16, embedding and head too, which suits encoders: most were released in float32.
    A checkpoint that is already quantised keeps its integers and zero points if a packed type can hold them; if none
    can, --bits says how to quantise those weights again, and the error is relative to them. In unquantised gpt-oss
    folders the matrices are stored transposed: without --bits they are only transposed back.
    """
    result = _quantized(expert, target, bits, embedding_bits)
    if json_:
        print_json(report_of(result, map(kind_of, result.kinds)) | {"notes": list(result.notes)})
        return
    table = Table(Column("tensors", overflow="fold"), "count", "weights", "bits each", "rms error", "largest error")
    for row in result.kinds:
        errors = (f"{row.rms_error:.2%}", f"{row.max_error:.2%}")
        table.add_row(escape(row.kind), str(row.num_tensors), f"{row.num_weights:,}", f"{row.bits:.2f}", *errors)
    out.print(table)
    sizes = format_shrunk(result.before_bytes, result.after_bytes, result.num_weights)
    what = "errors are relative to the root mean square of the weights"
    out.print(f"{escape(str(result.folder))}: {sizes}; {what}")
    for note in result.notes:
        out.print(f"note: of the source: {note}", markup=False)


def _quantized(expert: Path, target: Path, bits: str | None, embedding_bits: str | None) -> Quantized:
    layers = _type("--bits", bits)
    tables = _type("--embedding-bits", embedding_bits)
    packed = _choice(TYPES)
    repacked = is_repacked(expert)
    if layers in ((None, DType.BF16) if repacked else (DType.BF16,)) and tables not in (None, DType.BF16):
        fact = f"{embedding_bits} bits of embedding and head with layers that are not requantised"
        raise UsageError("--embedding-bits", fact, f"add --bits {packed}, or leave it out")
    if repacked:
        return repack_folder(expert, target, layers, _packed(tables))
    default = TYPES[DEFAULT]
    packing = None if layers is DType.BF16 else Packing(layers or default, _packed(tables or default))
    return quantize_folder(expert, target, packing)


def _type(option: str, bits: str | None) -> DType | None:
    """The data type for an option's number of bits, None if the option is left out. Raises UsageError."""
    types = {**TYPES, AS_IS: DType.BF16}
    if bits is not None and bits not in types:
        raise UsageError(option, f"{bits} bits are not known", f"use {_choice(TYPES)}, or {AS_IS} for unpacked")
    return None if bits is None else types[bits]


def _choice(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}"


def _packed(dtype: DType | None) -> DType | None:
    return None if dtype is DType.BF16 else dtype


def report_of(result: Quantized | Imported | Delta, kinds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """A written folder for JSON: its packing, its sizes, and the error of each kind of tensor."""
    return {
        "folder": str(result.folder),
        **(result.packing or Packing(None, None)).words(),
        "before_bytes": result.before_bytes,
        "after_bytes": result.after_bytes,
        "num_weights": result.num_weights,
        "kinds": list(kinds),
    }


def kind_of(row: KindError) -> dict[str, Any]:
    """One kind of tensor, for JSON."""
    return {
        "kind": row.kind,
        "type": row.dtype.value,
        "tensors": row.num_tensors,
        "weights": row.num_weights,
        "bits_per_weight": row.bits,
        "rms_error": row.rms_error,
        "max_error": row.max_error,
    }

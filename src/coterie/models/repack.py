"""Writes an expert folder from a checkpoint in another quantisation format: the same codes rearranged, or requantised.

    no type       codes and zero points unchanged, in the packed type that holds them; scales rounded to bfloat16;
                  floats that are merely stored in another layout (quantised/transposed.py) keep their type
    a packed one  the weights in float32, packed anew; with the file's codes where these lose least
    bfloat16      the weights in float32, rounded to it

Unquantised tensors are copied unless they are to be packed. Knows nothing about other formats (quantised/), how rows
are packed (core.packed) or how a folder is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.folder import CONFIG, SINGLE, Checkpoint
from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import PACKED, DType
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.core.packed import F32, U8, encode, packed_as_is, unpack
from coterie.core.scales import MAX_CODE, RANGES, in_bf16
from coterie.graph.verify import verify
from coterie.models.blocks import TABLES
from coterie.models.config import ModelConfig
from coterie.models.fields import Fields
from coterie.models.model import open_model, synthetic_model
from coterie.models.new_folder import (
    Entry,
    copy_other_files,
    free_path,
    new_folder,
    row_pieces,
    write_config,
    write_tensors,
)
from coterie.models.packing import BY_BITS, KEY, Packing, may_be_packed
from coterie.models.packing_error import ErrorSums
from coterie.models.quantised.find import Part, find_tensors
from coterie.models.quantised.matrix import AGAIN, IntegerMatrix, Matrix, PlainMatrix
from coterie.models.quantised.method import Method
from coterie.models.quantised.methods import method_of
from coterie.models.quantize import Quantized
from coterie.models.tensors import kind_of, map_bytes
from coterie.models.text_model import text_model_of

REMEDY = "choose --bits 8, 4z, 4, mxfp4 or 16 (bfloat16): weights are then requantised, and the added error is printed"


def repack_folder(
    source: str | Path, target: str | Path, layers: DType | None = None, tables: DType | None = None
) -> Quantized:
    """Write an expert from a folder in another quantisation format.

    `layers`: a packed type or bfloat16; None for the type that holds the codes unchanged. `tables`: a packed type for
    embedding and head; None leaves them unchanged.
    Raises UsageError if `target` exists, UnsupportedError if no type holds the codes or the format is unknown,
    CheckpointError if files are damaged, CapacityError if the disk is full. On failure nothing is left behind.
    """
    out = free_path(target)
    stored = text_model_of(Checkpoint.open(source))
    where = str(stored.path / CONFIG)
    method = method_of(Fields(stored.config, where))
    raw = {key: value for key, value in stored.config.items() if key != KEY}
    found = find_tensors(stored, ModelConfig.from_hf(raw, where), method)
    if layers is None:
        packing = _packing_as_is(method, found, where)
    else:
        packing = None if layers is DType.BF16 else _packing_anew(found, layers, tables)
    section = {} if packing is None else {KEY: packing.to_config()}
    _check_branches(raw | section, where)
    items = {name: _item(name, item, packing) for name, item in found.items()}
    entries = tuple(_entry(name, item, packing, layers) for name, item in items.items())
    sums: dict[tuple[str, DType], ErrorSums] = {}

    def write(file: BinaryIO, entry: Entry) -> None:
        item = items[entry.name]
        if isinstance(item, TensorInfo):
            file.write(map_bytes(item).data)
        else:
            dtype = _type(entry.name, item, packing, layers)
            sum_of = sums.setdefault((kind_of(entry.name), dtype), ErrorSums(dtype))
            _write_rows(file, item, dtype, layers is None, sum_of)

    size_bytes = sum(entry.dtype.tensor_bytes(entry.shape) for entry in entries)
    with new_folder(out, "the repacked expert", size_bytes) as begun:
        copy_other_files(stored.path, begun)
        write_config(begun, raw | section)
        write_tensors(begun / SINGLE, entries, {KEY: json.dumps(section[KEY])} if section else {}, write)
        open_model(begun)
        after = (begun / SINGLE).stat().st_size
    before = sum(info.size_bytes for info in stored.tensors.values())
    kinds = tuple(s.result(kind) for (kind, _), s in sums.items())
    num_weights = sum(prod(item.shape) for item in found.values())
    return Quantized(out, packing, before, after, num_weights, kinds, (method.note,) if method.note else ())


def _check_branches(raw: dict[str, Any], where: str) -> None:
    """Refuse, before writing, layers whose branches differ in type: one instruction reads them all."""
    graph = synthetic_model(raw, where).graph
    try:
        verify(graph)
    except UsageError as error:
        raise UnsupportedError(where, error.fact, REMEDY) from error


def _packing_anew(found: Mapping[str, TensorInfo | Part], layers: DType, tables: DType | None) -> Packing:
    """The chosen packing; a quantised table for which no type was given gets that of the layers."""
    quantised = [name for name in TABLES if isinstance(found.get(name), Part)]
    return Packing(layers, tables, {} if tables else dict.fromkeys(quantised, layers))


def _packing_as_is(method: Method, found: Mapping[str, TensorInfo | Part], where: str) -> Packing | None:
    """The packing that can hold all codes of quantised tensors unchanged. Raises UnsupportedError."""
    if method.keeps_floats:
        return None
    if method.bits is None and method.exact_type is None:
        raise UnsupportedError(where, "its weights are floats of 8 bits, which packed weights are not", REMEDY)
    if method.note:
        raise UnsupportedError(where, f"more is quantised than weights: {method.note}", REMEDY)
    matrices = {id(item.matrix): item.matrix for item in found.values() if isinstance(item, Part)}
    dtype = method.exact_type or BY_BITS[method.bits or 0]
    if dtype is DType.Q4 and not all(map(_is_near_zero, matrices.values())):
        dtype = DType.Q4Z
    types = {name: item for name, item in found.items() if may_be_packed(name, item.shape)}
    return Packing.of({name: dtype if isinstance(item, Part) else None for name, item in types.items()})


def _is_near_zero(matrix: Matrix) -> bool:
    """Whether code - zero fits in int4 for every possible code."""
    if not isinstance(matrix, IntegerMatrix):
        return False
    zeros, (low, high) = matrix.zeros(0, matrix.num_rows), RANGES[DType.Q4]
    return low <= matrix.min_code - int(zeros.max()) and matrix.max_code - int(zeros.min()) <= high


def _item(name: str, item: TensorInfo | Part, packing: Packing | None) -> TensorInfo | Part:
    """A tensor to be copied, or the rows of a matrix to be rewritten."""
    if isinstance(item, Part) or packing is None or packing.dtype_of(name, item.shape) is None:
        return item
    return Part(PlainMatrix(item), 0, item.shape)


def _type(name: str, part: Part, packing: Packing | None, layers: DType | None) -> DType:
    """The packed type, or the float type it is stored in; bfloat16 if chosen, or if it is not stored as floats."""
    packed = packing.dtype_of(name, part.shape) if packing else None
    rounded = layers is DType.BF16 and name.endswith(".weight")
    return packed or (DType.BF16 if rounded else part.matrix.floats or DType.BF16)


def _entry(name: str, item: TensorInfo | Part, packing: Packing | None, layers: DType | None) -> Entry:
    if isinstance(item, TensorInfo):
        return Entry(name, item.dtype, item.shape)
    return Entry(name, *_type(name, item, packing, layers).stored(item.shape))


def _write_rows(file: BinaryIO, part: Part, dtype: DType, is_exact: bool, sums: ErrorSums) -> None:
    sums.num_tensors += 1
    for rows in row_pieces(*part.shape):
        first, last = part.first + rows.start, part.first + rows.stop
        values = part.matrix.values(first, last)
        if not np.isfinite(values).all():
            raise CheckpointError(part.matrix.where, "a weight is infinite or not a number", AGAIN)
        encoded = _exactly if is_exact and dtype.is_packed else _anew
        written, after = encoded(part.matrix, values, first, dtype)
        if not np.isfinite(after).all():
            raise UnsupportedError(part.matrix.where, f"a weight is infinite in {dtype.value}", REMEDY)
        file.write(written.data)
        sums.add(values, after, written.size)


def _anew(matrix: Matrix, values: F32, first: int, dtype: DType) -> tuple[U8, F32]:
    scales, zeros = _known(matrix, first, values.shape, dtype) if dtype.is_packed else (None, None)
    try:
        return encode(values, dtype, scales, zeros)
    except ValueError as error:
        raise CheckpointError(matrix.where, str(error), AGAIN) from None


def _exactly(matrix: Matrix, values: F32, first: int, dtype: DType) -> tuple[U8, F32]:
    """Codes and zero points unchanged. Raises UnsupportedError for any that the packed type cannot hold."""
    (scales, zeros), group = _known(matrix, first, values.shape, dtype), PACKED[dtype][1]
    if scales is None or not isinstance(matrix, IntegerMatrix):
        ordered = isinstance(matrix, IntegerMatrix) and matrix.order is not None
        kind = "in an order of their own (g_idx)" if ordered else f"of {getattr(matrix, 'group', 0)} columns"
        raise UnsupportedError(matrix.where, f"groups are {kind}, where multiples of {group} are repacked", REMEDY)
    last = first + len(values)
    has_codes = dtype.has_zeros or dtype is DType.MX4
    q = matrix.codes(first, last) - np.int16(matrix.min_code) if has_codes else matrix.codes_minus_zeros(first, last)
    try:
        packed = packed_as_is(q, in_bf16(scales), dtype, zeros)
    except ValueError as error:
        raise UnsupportedError(matrix.where, f"{error}, so that repacking would change weights", REMEDY) from None
    with np.errstate(over="ignore"):  # a scale may have rounded up
        return packed, unpack(packed, dtype, values.shape[1])


def _known(matrix: Matrix, first: int, shape: tuple[int, ...], dtype: DType) -> tuple[F32 | None, F32 | None]:
    """The file's own scales, per group of the packed type, and zero points if the type has them.

    None if the file's groups do not fit, or it has more codes than a type with zero points holds.
    """
    (rows, columns), group = shape, PACKED[dtype][1]
    if not isinstance(matrix, IntegerMatrix) or matrix.order is not None:
        return None, None
    if (matrix.group % group and matrix.group < columns) or (
        dtype.has_zeros and matrix.max_code - matrix.min_code > MAX_CODE
    ):
        return None, None

    def by_group(theirs: npt.NDArray[Any]) -> F32:
        repeated = np.repeat(theirs, -(-matrix.group // group), axis=1)
        return repeated[:, : -(-columns // group)].astype(np.float32)

    zeros = matrix.zeros(first, first + rows) - np.int16(matrix.min_code) if dtype.has_zeros else None
    return by_group(matrix.scales(first, first + rows)), None if zeros is None else by_group(zeros)

"""Reads and checks the header of a safetensors file: the type, shape and bytes of each tensor.

        | 8 bytes: N, little endian | N bytes: JSON header | data section: tensors, back to back ... |
                                                            ^ data_offsets count from here

Knows nothing about models, and never reads a tensor. Source: the safetensors format description (README of the format).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from coterie.checkpoint.files import open_file, parse_object, refuse_pointer
from coterie.checkpoint.layout import FileIdentity
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError, shown

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit; a larger value means a damaged file
MAX_AXES = 64  # NumPy's limit; released tensors have at most 5
_MAX_COUNT = 2**63  # upper bound on any file size
_FOREIGN = ("F64", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F6_E2M3", "F6_E3M2", "F4", "C64")
_FOREIGN_INTEGERS = ("BOOL", "I16", "U16", "U32", "U64")
_AGAIN = "download or save the file again"


@dataclass(frozen=True, slots=True)
class Shard:
    """A safetensors file, identified as of when its header was read. An empty path: an expert without weights."""

    path: str
    identity: FileIdentity


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor and its bytes [offset, offset + size_bytes) in its file; `offset` is from the start of the file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: Shard
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * self.dtype.size_bytes

    def rows(self, name: str, first: int, shape: tuple[int, ...]) -> TensorInfo:
        """A view of this tensor's rows from `first` on, as a tensor of another name and shape."""
        row_bytes = self.dtype.size_bytes * prod(shape[1:])
        return replace(self, name=name, shape=shape, offset=self.offset + first * row_bytes)


def without_bytes(stored: Mapping[str, tuple[DType, tuple[int, ...]]]) -> dict[str, TensorInfo]:
    """Tensors of these types and shapes, laid out consecutively in an imaginary file."""
    shard = Shard("", FileIdentity(sum(dtype.tensor_bytes(shape) for dtype, shape in stored.values())))
    tensors, offset = dict[str, TensorInfo](), 0
    for name, (dtype, shape) in stored.items():
        tensors[name] = TensorInfo(name, dtype, shape, shard, offset)
        offset += tensors[name].size_bytes
    return tensors


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, by name. Raises CheckpointError; UnsupportedError for an unsupported type."""
    where = str(path)
    try:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            length = _header_length(file.read(LENGTH_BYTES), status.st_size, where)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(where, f"cannot be read: {error.strerror}", "check the file") from None
    shard = Shard(where, FileIdentity.of(status))
    header = parse_object(text, where)
    start = LENGTH_BYTES + length
    tensors = {name: _tensor(name, entry, shard, start) for name, entry in header.items() if name != "__metadata__"}
    _refuse_overlaps(tensors, where)
    return tensors


def _header_length(prefix: bytes, file_bytes: int, where: str) -> int:
    if len(prefix) < LENGTH_BYTES:
        raise CheckpointError(where, f"has {file_bytes} bytes, too few for a safetensors file", _AGAIN)
    refuse_pointer(prefix, where)
    length = int.from_bytes(prefix, "little")
    if length > file_bytes - LENGTH_BYTES:
        fact = f"says that its header has {length} bytes but the whole file has {file_bytes}"
        raise CheckpointError(where, fact, f"the file is truncated or not safetensors: {_AGAIN}")
    if not 2 <= length <= MAX_HEADER_BYTES:
        fact = f"says that its header has {length} bytes; between 2 and {MAX_HEADER_BYTES} are possible"
        raise CheckpointError(where, fact, _AGAIN)
    return length


def _tensor(name: str, entry: Any, shard: Shard, start: int) -> TensorInfo:
    where = f"{shard.path}: {name}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(where, "the header entry lacks dtype, shape or data_offsets", _AGAIN)
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_is_counts(shape) and _is_counts(offsets) and len(offsets) == 2):
        fact = f"shape {shown(shape)} or data_offsets {shown(offsets)} is not a list of whole numbers"
        raise CheckpointError(where, fact, _AGAIN)
    info = TensorInfo(name, _dtype(entry["dtype"], where), tuple(shape), shard, start + offsets[0])
    size, data_bytes = offsets[1] - offsets[0], shard.identity.size_bytes - start
    if size != info.size_bytes:
        fact = f"data_offsets {offsets} span {size} bytes but {info.dtype.value} {shape} needs {info.size_bytes}"
        raise CheckpointError(where, fact, _AGAIN)
    if offsets[1] > data_bytes:
        fact = f"ends at byte {offsets[1]} of the data section, which has {data_bytes}"
        raise CheckpointError(where, fact, f"the file is truncated: {_AGAIN}")
    return info


def _is_counts(values: Any) -> bool:
    if not isinstance(values, list) or len(values) > MAX_AXES:
        return False
    return all(type(v) is int and 0 <= v < _MAX_COUNT for v in values)


def _dtype(name: Any, where: str) -> DType:
    if isinstance(name, str) and name in DType.__members__ and not DType[name].is_packed:
        return DType[name]
    if isinstance(name, str) and name in (*_FOREIGN, *_FOREIGN_INTEGERS):
        raise UnsupportedError(where, f"element type {name} is not supported", "use weights in F32, F16 or BF16")
    raise CheckpointError(where, f"element type {shown(name)} is not one of the safetensors format", _AGAIN)


def _refuse_overlaps(tensors: dict[str, TensorInfo], where: str) -> None:
    ordered = sorted((t for t in tensors.values() if t.size_bytes), key=lambda t: t.offset)
    for left, right in pairwise(ordered):
        if right.offset < left.offset + left.size_bytes:
            fact = f"{left.name} and {right.name} overlap at byte {right.offset}"
            raise CheckpointError(where, fact, _AGAIN)

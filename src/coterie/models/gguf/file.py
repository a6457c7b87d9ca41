"""A GGUF file, possibly split into several: its metadata as Python values, and its tensors by name, memory-mapped.

Weights are decoded by the package gguf (extra `gguf`), which is maintained with llama.cpp and knows every type.
Knows nothing about architectures. Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError, install_extra
from coterie.core.packed import F32
from coterie.core.paths import user_path
from coterie.core.text import first_few
from coterie.models.gguf.header import Described, read_header

ARCHITECTURE = "general.architecture"
_AGAIN = "download the file again"
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
FLOATS = {"F32": DType.F32, "F16": DType.F16, "BF16": DType.BF16}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of the file; `type` is the name of its GGUF type. `shape` has the rows first, as elsewhere here.

    `rows` [N, row bytes] are the stored bytes; a one-dimensional tensor has one element per row.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    rows: npt.NDArray[np.uint8]
    where: str

    @property
    def float_type(self) -> DType | None:
        """The element type of an unquantised tensor; None if it is quantised."""
        return FLOATS.get(self.type)

    def bits(self, taken: Any) -> npt.NDArray[np.generic]:
        """The stored elements of some rows of an unquantised tensor."""
        dtype = FLOATS[self.type]
        return np.ascontiguousarray(self.rows[taken]).view(dtype.numpy)

    def values(self, taken: Any) -> F32:
        """Some rows as float32, exactly as the format defines them. Raises UnsupportedError for an unknown type."""
        gguf = gguf_package(self.where)
        try:
            with np.errstate(all="ignore"):  # callers refuse values that are not finite
                values = gguf.quants.dequantize(
                    np.ascontiguousarray(self.rows[taken]), gguf.GGMLQuantizationType[self.type]
                )
        except NotImplementedError:
            fact = f"tensor {self.name} has type {self.type}, which the package gguf does not turn into numbers"
            raise UnsupportedError(self.where, fact, "get the model in another type, such as Q8_0 or Q4_0") from None
        return np.asarray(values, np.float32)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An opened file; `path` is that of its first part."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    size_bytes: int

    @property
    def where(self) -> str:
        """The path, for error messages."""
        return str(self.path)


def gguf_package(where: str) -> Any:
    """The package gguf. Raises UsageError if it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ImportError:
        fact = "a GGUF file is read by the package gguf, which is not installed"
        raise UsageError(where, fact, install_extra("gguf")) from None


def open_gguf(source: str | Path) -> GgufFile:
    """Read the header of a GGUF file, and of its other parts if it is split.

    Raises UsageError if `source` is not a file or not the first part, CheckpointError if it is damaged or incomplete.
    """
    path = user_path(source)
    if path.is_dir():
        inside = sorted(found.name for found in path.glob("*.gguf"))
        remedy = f"name one of its files: {', '.join(inside[:3])}" if inside else "name a .gguf file"
        raise UsageError(str(path), "is a folder, where a GGUF file is expected", remedy)
    if not path.is_file():
        raise UsageError(str(path), "does not exist", "check the path")
    metadata, tensors = _read(path)
    size_bytes = path.stat().st_size
    for part in _other_parts(path, metadata):
        _, more = _read(part)
        if both := tensors.keys() & more.keys():
            raise CheckpointError(str(part), f"has tensor {min(both)} once more", _AGAIN)
        tensors |= more
        size_bytes += part.stat().st_size
    wanted = metadata.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise CheckpointError(
            str(path), f"has {len(tensors)} tensors in its parts, where {wanted} are expected", _AGAIN
        )
    return GgufFile(path, metadata, tensors, size_bytes)


def _other_parts(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    count = metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return []
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        fact = f"is one of {count} parts, and its name does not say which"
        raise CheckpointError(str(path), fact, f"give the parts the names that they came with, ...-00001-of-{count:05}")
    parts = [path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        fact = f"is part {int(match[2])} of {count}, and {first_few(missing)} {verb} not beside it"
        raise CheckpointError(str(path), fact, "download all parts into one folder")
    if path != parts[0]:
        raise UsageError(str(path), f"is part {int(match[2])} of {count}", f"name the first one, {parts[0].name}")
    return parts[1:]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    gguf, header = gguf_package(str(path)), read_header(path)
    data = np.asarray(np.memmap(path, np.uint8, "r"))  # np.memmap itself makes every view slower
    return header.metadata, {found.name: _tensor(path, found, data, gguf) for found in header.tensors}


def _tensor(path: Path, found: Described, data: npt.NDArray[np.uint8], gguf: Any) -> GgufTensor:
    where = f"{path}: {found.name}"
    try:
        kind = gguf.GGMLQuantizationType(found.kind)
    except ValueError:
        raise CheckpointError(where, f"has type {found.kind}, which is none of GGUF's", _AGAIN) from None
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if found.shape[-1] % block:
        fact = f"has rows of {found.shape[-1]} numbers, where {kind.name} has blocks of {block}"
        raise CheckpointError(where, fact, _AGAIN)
    end = found.at + prod(found.shape) // block * block_bytes
    if end > len(data):
        fact = f"is not a whole GGUF file ({len(data)} bytes): tensor {found.name} ends at byte {end}"
        raise CheckpointError(str(path), fact, _AGAIN)
    row_bytes = found.shape[-1] // block * block_bytes
    if len(found.shape) == 1:
        row_bytes = block_bytes if block == 1 else 1
    return GgufTensor(found.name, kind.name, found.shape, data[found.at : end].reshape(-1, row_bytes), where)

"""Reads the header of a GGUF file: keys as Python values, and the place of each tensor; counts and lengths are checked.

    magic, version | number of tensors, of keys | key, type, value ... | name, axes, type, offset ... | data

The package gguf is not used for this: it creates several NumPy arrays per vocabulary entry, which dominated the time of
an import, and it trusts array lengths, so that a corrupt file can make it iterate over 2**60 elements. A float32 number
is returned as the shortest decimal that rounds to it, so that 1e-05 is 1e-05 again.
Knows nothing about what keys and tensors mean. Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from coterie.checkpoint.files import open_file, refuse_pointer
from coterie.core.errors import CheckpointError, UnsupportedError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_SCALARS = {  # GGUF's number of a type -> NumPy type
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
}
_ALIGNMENT, _ALIGN_BYTES = "general.alignment", 32
_MAX_AXES = 8  # ggml has 4
_BITS = 1  # lower bound of bits per element


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor as the header describes it: `shape` has the rows first, `at` is the offset of its bytes in the file.

    `kind` is GGUF's number of its type.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Header:
    """The contents of a header."""

    metadata: dict[str, Any]
    tensors: tuple[Described, ...]


def read_header(path: Path) -> Header:
    """Read a header. Raises CheckpointError for anything inconsistent, UnsupportedError for big-endian files."""
    with open_file(path) as file:
        begin = file.read(24)
        refuse_pointer(begin, str(path))
        if len(begin) < 24 or begin[:4] != MAGIC:
            fact = f"{path.stat().st_size} bytes, which begin with {begin[:4]!r} and not with GGUF magic and counts"
            raise CheckpointError(str(path), f"is not a whole GGUF file ({fact})", "download the file again")
        if not int.from_bytes(begin[4:6], "little"):
            raise UnsupportedError(
                str(path), "has its bytes in the order of another machine", "get a little-endian file"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Walk(path, data).header()


class _Walk:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._size = path, data, len(MAGIC), len(data)

    def header(self) -> Header:
        version = self._number(4)
        if version not in VERSIONS:
            raise self._wrong(f"it is of version {version}, where {' and '.join(map(str, VERSIONS))} are read")
        num_tensors, num_keys = self._number(8), self._number(8)
        self._fits("keys", num_keys, 13)
        self._fits("tensors", num_tensors, 24)
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._text("a key")
            if key in metadata:
                raise self._wrong(f"it has the key {key} once more")
            metadata[key] = self._value(self._number(4), "a key's value")
        found = [self._tensor() for _ in range(num_tensors)]
        align = metadata.get(_ALIGNMENT, _ALIGN_BYTES)
        if type(align) is not int or align <= 0 or align & (align - 1):
            raise self._wrong(f"{_ALIGNMENT} is {align!r}, which is no power of two")
        start = -(-self._at // align) * align
        names = [name for name, *_ in found]
        if twice := {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else None:
            raise self._wrong(f"it has the tensor {min(twice)} once more")
        return Header(metadata, tuple(Described(name, kind, shape, start + at) for name, kind, shape, at in found))

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        name, num_axes = self._text("a tensor's name"), self._number(4)
        if num_axes > _MAX_AXES:
            raise self._wrong(f"a tensor has {num_axes} axes, and {_MAX_AXES} are possible")
        shape = tuple(self._number(8) for _ in range(num_axes))[::-1]
        if prod(shape) * _BITS > 8 * self._size:
            raise self._wrong(f"a tensor of shape {list(shape)} has more elements than the whole file has bits")
        if prod(shape) == 0 or not shape:
            raise self._wrong(f"a tensor of shape {list(shape)} has no elements")
        kind = self._number(4)
        if (offset := self._number(8)) > self._size:
            raise self._wrong(f"a tensor begins at byte {offset} of the data, and the whole file has {self._size}")
        return name, kind, shape, offset

    def _value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self._text(what)
        if kind != _ARRAY:
            dtype = self._dtype(kind)
            (number,) = np.frombuffer(self._taken(dtype.itemsize, what), dtype)
            return float(str(number)) if kind == _FLOAT32 else number.item()
        inner, count = self._number(4), self._number(8)
        if inner == _ARRAY:
            raise self._wrong("an array of arrays, which no key of a model is")
        if inner == _STRING:
            self._fits("texts of an array", count, 8)
            return [self._text(what) for _ in range(count)]
        dtype = self._dtype(inner)
        return np.frombuffer(self._taken(count * dtype.itemsize, f"an array of {count} elements"), dtype).tolist()

    def _dtype(self, kind: int) -> np.dtype[Any]:
        if kind not in _SCALARS:
            raise self._wrong(f"a value has type {kind}, which is none of GGUF's")
        return np.dtype(_SCALARS[kind])

    def _text(self, what: str) -> str:
        taken = self._taken(self._number(8), what)
        try:
            return taken.decode()
        except UnicodeDecodeError as error:
            raise self._wrong(f"{what} is no text ({error.reason})") from None

    def _number(self, width: int) -> int:
        return int.from_bytes(self._taken(width, "a number"), "little")

    def _taken(self, num_bytes: int, what: str) -> bytes:
        at = self._at
        if num_bytes > self._size - at:
            raise self._wrong(f"{what} has {num_bytes} bytes, and the whole file {self._size}")
        self._at = at + num_bytes
        return self._data[at : self._at]

    def _fits(self, what: str, count: int, each_bytes: int) -> None:
        if count * each_bytes > self._size - self._at:
            raise self._wrong(f"there are {count} {what}, in a file of {self._size} bytes")

    def _wrong(self, fact: str) -> CheckpointError:
        whole = f"is not a whole GGUF file ({self._size} bytes): at byte {self._at}, {fact}"
        return CheckpointError(str(self._path), whole, "download the file again")

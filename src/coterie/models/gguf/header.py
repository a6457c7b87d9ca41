"""Walks the header of a GGUF file before anything is made of it: every count and length must fit into the file.

The package gguf takes counts as they are: it would go through 2**60 elements of an array that the file does not have.
Knows nothing about what keys and tensors mean. Source: the GGUF specification (ggml, docs/gguf.md).

    magic, version | number of tensors, of keys | key, type, value ... | name, axes, type, offset ... | data
"""

from __future__ import annotations

import mmap
import struct
from math import prod
from pathlib import Path

from coterie.checkpoint.files import open_file
from coterie.core.errors import CheckpointError

MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAX_AXES = 8  # ggml has 4
_BITS = 1  # an element of a tensor has at least that many


def check_header(path: Path) -> None:
    """Raises CheckpointError naming what does not fit. A file of the other byte order is left to who reads it."""
    with open_file(path) as file:
        begin = file.read(24)
        if len(begin) < 24 or begin[:4] != MAGIC:
            fact = f"{path.stat().st_size} bytes, which begin with {begin[:4]!r} and not with GGUF magic and counts"
            raise CheckpointError(str(path), f"is not a whole GGUF file ({fact})", "download the file again")
        if not int.from_bytes(begin[4:6], "little"):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(path, data).header()


class _Walk:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._size = path, data, 8, len(data)

    def header(self) -> None:
        num_tensors, num_keys = self._number("<Q"), self._number("<Q")
        self._fits("keys", num_keys, 13)
        self._fits("tensors", num_tensors, 24)
        for _ in range(num_keys):
            self._text("a key")
            self._value(self._number("<I"), "a key's value")
        for _ in range(num_tensors):
            self._tensor()

    def _tensor(self) -> None:
        self._text("a tensor's name")
        num_axes = self._number("<I")
        if num_axes > _MAX_AXES:
            raise self._wrong(f"a tensor has {num_axes} axes, and {_MAX_AXES} are possible")
        shape = [self._number("<Q") for _ in range(num_axes)]
        if prod(shape) * _BITS > 8 * self._size:
            raise self._wrong(f"a tensor of shape {shape[::-1]} has more elements than the whole file has bits")
        self._number("<I")
        if (offset := self._number("<Q")) > self._size:
            raise self._wrong(f"a tensor begins at byte {offset} of the data, and the whole file has {self._size}")

    def _value(self, kind: int, what: str) -> None:
        if kind == _STRING:
            self._text(what)
        elif kind == _ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            if inner == _ARRAY:
                raise self._wrong("an array of arrays, which no key of a model is")
            if inner == _STRING:
                self._fits("texts of an array", count, 8)
                for _ in range(count):
                    self._text(what)
            else:
                self._skip(count * self._width(inner), f"an array of {count} elements")
        else:
            self._skip(self._width(kind), what)

    def _width(self, kind: int) -> int:
        if kind not in _SCALAR_BYTES:
            raise self._wrong(f"a value has type {kind}, which is none of GGUF's")
        return _SCALAR_BYTES[kind]

    def _text(self, what: str) -> None:
        self._skip(self._number("<Q"), what)

    def _number(self, form: str) -> int:
        at, width = self._at, struct.calcsize(form)
        self._skip(width, "a number")
        return int(struct.unpack_from(form, self._data, at)[0])

    def _skip(self, num_bytes: int, what: str) -> None:
        if num_bytes > self._size - self._at:
            raise self._wrong(f"{what} has {num_bytes} bytes, and the whole file {self._size}")
        self._at += num_bytes

    def _fits(self, what: str, count: int, each_bytes: int) -> None:
        if count * each_bytes > self._size - self._at:
            raise self._wrong(f"there are {count} {what}, in a file of {self._size} bytes")

    def _wrong(self, fact: str) -> CheckpointError:
        whole = f"is not a whole GGUF file ({self._size} bytes): at byte {self._at}, {fact}"
        return CheckpointError(str(self._path), whole, "download the file again")

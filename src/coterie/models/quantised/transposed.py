"""Unquantised branch matrices that a file holds transposed in one tensor, with gate and up interleaved.

    mlp.experts.gate_up_proj       [E, D, 2 F]     column 2 f is row f of gate, column 2 f + 1 of up
    mlp.experts.gate_up_proj_bias  [E, 2 F]        interleaved as well
    mlp.experts.down_proj          [E, F, D]       transposed

Knows nothing about folders. Source: the checkpoints of gpt-oss that transformers writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType, to_f32
from coterie.models.quantised.matrix import F32, FLOATS, bits_of, wanted
from coterie.models.quantised.method import Find, Found, Method

_MATRIX = re.compile(r"(?P<place>.*\.experts\.)(?P<branch>\d+)\.(?P<part>gate|up|down)_proj")
_BIASES = re.compile(r"(?P<place>.*\.experts\.)(?P<part>gate|up)_proj_bias")
_FIRST = {"gate": 0, "up": 1}


@dataclass(frozen=True, slots=True)
class Stacked:
    """Where a branch's matrix is: name of the stacked tensor, branch, and its rows: every `step`-th from `first` on."""

    name: str
    branch: int
    first: int
    step: int


def stacked_at(stem: str) -> Stacked | None:
    """Where the matrix of a module is stacked; None if it is not a branch's."""
    match = _MATRIX.fullmatch(stem)
    if match is None:
        return None
    place, branch, part = match["place"], int(match["branch"]), match["part"]
    return Stacked(f"{place}down_proj", branch, 0, 1) if part == "down" else _interleaved(place, branch, part)


def biases_of(tensors: Mapping[str, TensorInfo], name: str, columns: int) -> Found | None:
    """The gate or up biases of all branches; None for another tensor, or if they are stored separately."""
    match = _BIASES.fullmatch(name)
    if match is None or name in tensors:
        return None
    stored, first = f"{match['place']}gate_up_proj_bias", _FIRST[match["part"]]
    info = wanted(tensors, stored, FLOATS, (-1, 2 * columns))
    return Found(_Interleaved(info, first), (stored,))


def of_branches(end: str, make: Callable[[Mapping[str, TensorInfo], Stacked, int], Found]) -> Find:
    """The `find` of a method whose branch matrices, and biases, are in stacked tensors with this name suffix."""

    def find(tensors: Mapping[str, TensorInfo], stem: str, columns: int) -> Found | None:
        at = stacked_at(stem)
        if at is None:
            return biases_of(tensors, stem, columns)
        return make(tensors, at, columns) if at.name + end in tensors else None

    return find


def transposed_method() -> Method:
    """The method that finds stacked, transposed matrices."""

    def found(tensors: Mapping[str, TensorInfo], at: Stacked, columns: int) -> Found:
        return Found(_Transposed(wanted(tensors, at.name, FLOATS, (-1, columns, -1)), at), (at.name,))

    return Method("stacked", None, of_branches("", found), keeps_floats=True)


def _interleaved(place: str, branch: int, part: str) -> Stacked:
    return Stacked(f"{place}gate_up_proj", branch, _FIRST[part], 2)


class _Interleaved:
    """Biases [E, F], every other number of the stored tensor."""

    def __init__(self, info: TensorInfo, first: int) -> None:
        self.where, self.num_rows = f"{info.shard.path}: {info.name}", info.shape[0]
        self.floats: DType | None = info.dtype
        self._info, self._first = info, first

    def values(self, first: int, last: int) -> F32:
        """Biases of these branches in float32."""
        return to_f32(np.ascontiguousarray(bits_of(self._info)[first:last, self._first :: 2]), self._info.dtype)


class _Transposed:
    """One branch's matrix, stored as columns."""

    def __init__(self, info: TensorInfo, at: Stacked) -> None:
        self.where, self.num_rows = f"{info.shard.path}: {info.name}", info.shape[2] // at.step
        self.floats: DType | None = info.dtype
        self._dtype = info.dtype
        self._columns = bits_of(info)[at.branch, :, at.first :: at.step]

    def values(self, first: int, last: int) -> F32:
        """Weights of these rows in float32."""
        return to_f32(np.ascontiguousarray(self._columns[:, first:last].T), self._dtype)

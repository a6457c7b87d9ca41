"""A matrix in another quantisation format, read by rows: its weights in float32, and their integer codes.

    weight = (code - zero) * scale      zero (point) and scale are those of the column's group

Knows nothing about any file format, or about how the weights are used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType, to_f32
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.tensors import map_bytes

F32 = npt.NDArray[np.float32]
I16 = npt.NDArray[np.int16]  # codes and zero points: eight bits and a sign

UNQUANTISED = "quantise the unquantised checkpoint with coterie quantize"
FLOATS = (DType.F16, DType.BF16, DType.F32)  # types of scales
AGAIN = "get the checkpoint again"
_WORD_BITS = 32


class Matrix(Protocol):
    """A stored matrix [rows, columns]; `where` names it in messages. `floats`: its type if it is not quantised."""

    where: str
    num_rows: int
    floats: DType | None

    def values(self, first: int, last: int) -> F32:
        """Weights of these rows in float32 [last - first, columns]: one product each, rounded at most once."""


class PlainMatrix:
    """A matrix stored as floats."""

    def __init__(self, info: TensorInfo) -> None:
        self.where, self.num_rows = f"{info.shard.path}: {info.name}", info.shape[0]
        self.floats: DType | None = info.dtype
        self._info = info

    def values(self, first: int, last: int) -> F32:
        """Weights of these rows in float32."""
        return to_f32(np.asarray(bits_of(self._info)[first:last]), self._info.dtype)


class IntegerMatrix(ABC):
    """A matrix of integer codes with a scale and a zero point per row and group of columns.

    Codes range from `min_code` to `max_code`. A group is `group` adjacent columns (the last may be shorter), unless
    `order` gives each column's group.
    """

    where: str
    num_rows: int
    num_columns: int
    group: int
    min_code: int
    max_code: int
    floats: DType | None = None
    order: npt.NDArray[np.intp] | None = None

    @abstractmethod
    def codes(self, first: int, last: int) -> I16:
        """The stored codes of these rows [rows, columns]."""

    @abstractmethod
    def zeros(self, first: int, last: int) -> I16:
        """The zero point (code of 0.0) of each group of these rows [rows, groups]."""

    @abstractmethod
    def scales(self, first: int, last: int) -> F32:
        """The scale of each group of these rows [rows, groups]."""

    def codes_minus_zeros(self, first: int, last: int) -> I16:
        """Code - zero of these rows [rows, columns]."""
        return self._by_group(np.subtract, self.codes(first, last), self.zeros(first, last))

    def values(self, first: int, last: int) -> F32:
        """Weights of these rows in float32; exact if scales have 16 bits."""
        with np.errstate(all="ignore"):  # callers refuse values that are not finite
            return self._by_group(np.multiply, self.codes_minus_zeros(first, last), self.scales(first, last))

    def _by_group(self, op: np.ufunc, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Apply `op` to numbers [rows, columns] and the numbers of their groups [rows, groups]."""
        found: npt.NDArray[Any]
        if self.order is not None:
            found = op(left, right[:, self.order])
        elif self.num_columns % self.group:
            found = op(left, np.repeat(right, self.group, axis=1)[:, : self.num_columns])
        else:
            found = op(left.reshape(*right.shape, self.group), right[..., None])
        return found.reshape(left.shape)


class ColumnScales(IntegerMatrix):
    """An integer matrix whose scales are stored transposed [groups, N]: `{stem}.scales`, `{stem}.qweight`."""

    def __init__(
        self, tensors: Mapping[str, TensorInfo], stem: str, words: TensorInfo, shape: tuple[int, int], declared: int
    ) -> None:
        self.num_rows, self.num_columns = shape
        self.where = f"{words.shard.path}: {stem}"
        self._words, self._scales = words, wanted(tensors, f"{stem}.scales", FLOATS, (-1, self.num_rows))
        self.num_groups = self._scales.shape[0]
        self.group = group_size(self.where, self.num_groups, self.num_columns, declared)

    def scales(self, first: int, last: int) -> F32:
        """The scale of each group of these rows."""
        return to_f32(np.ascontiguousarray(bits_of(self._scales)[:, first:last].T), self._scales.dtype)


def order_of(info: TensorInfo | None, num_columns: int, num_groups: int, group: int) -> npt.NDArray[np.intp] | None:
    """Each column's group; None if groups are adjacent columns. Raises CheckpointError."""
    if info is None or not info.size_bytes:
        return None
    where = f"{info.shard.path}: {info.name}"
    if info.shape != (num_columns,) or info.dtype not in (DType.I32, DType.I64):
        raise CheckpointError(where, f"is {info.dtype.value} {list(info.shape)} for {num_columns} columns", AGAIN)
    order = np.asarray(bits_of(info)).astype(np.intp)
    if (order == -1).all() or np.array_equal(order, np.arange(num_columns) // group):  # -1: allocated but never used
        return None
    if order.min() < 0 or order.max() >= num_groups:
        raise CheckpointError(where, f"names groups {order.min()} to {order.max()} of {num_groups}", AGAIN)
    return order


def group_size(where: str, num_groups: int, num_columns: int, declared: int) -> int:
    """Columns per group; `declared` is the config's group_size, -1 for a whole row. Raises CheckpointError."""
    group = num_columns if declared == -1 else declared
    if num_groups != -(-num_columns // group):
        fact = f"has {num_groups} groups for {num_columns} columns, where config.json says group_size {declared}"
        raise CheckpointError(where, fact, "check that config.json belongs to these weights")
    return group


def bits_of(info: TensorInfo) -> npt.NDArray[Any]:
    """A tensor's elements as they are stored, memory-mapped."""
    return map_bytes(info).view(info.dtype.numpy).reshape(info.shape)


def unpacked(words: npt.NDArray[Any], bits: int) -> I16:
    """Unpack `bits`-bit numbers from 32-bit words [..., words], low bits first: [..., words, numbers per word]."""
    in_bytes = np.ascontiguousarray(words).view(np.uint8)  # the least significant byte comes first
    spread = in_bytes[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)
    spread &= np.uint8(2**bits - 1)
    return spread.reshape(*words.shape, numbers_a_word(bits)).astype(np.int16)


def numbers_a_word(bits: int) -> int:
    """How many `bits`-bit numbers a word holds."""
    return _WORD_BITS // bits


def wanted(
    tensors: Mapping[str, TensorInfo], name: str, dtypes: tuple[DType, ...], *shapes: tuple[int, ...]
) -> TensorInfo:
    """The tensor `name`, which must have one of these types and shapes (-1: any size). Raises CheckpointError."""
    info = tensors.get(name)
    if info is None:
        raise CheckpointError(name, "is missing", AGAIN)
    fits = (
        len(info.shape) == len(shape) and all(w in (-1, n) for w, n in zip(shape, info.shape, strict=True))
        for shape in shapes
    )
    if info.dtype not in dtypes or not any(fits) or not info.size_bytes:
        types = " or ".join(dtype.value for dtype in dtypes)
        sizes = " or ".join(dict.fromkeys(str(list(shape)).replace("-1", "any") for shape in shapes))
        fact = f"is {info.dtype.value} {list(info.shape)}, where {types} {sizes} is expected"
        raise CheckpointError(f"{info.shard.path}: {name}", fact, "check that config.json belongs to these weights")
    return info


def refused(where: str, fact: str) -> UnsupportedError:
    """The error for a variant of a format that is not supported."""
    return UnsupportedError(where, fact, UNQUANTISED)

"""One matrix as somebody else quantised it, by rows: its weights in float32, and the whole numbers behind them.

    weight = (code - zero) * scale      zero and scale are those of the column's group

Knows nothing about any format of files, or about what is made of the weights.
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
I16 = npt.NDArray[np.int16]  # of codes and zeros: eight bits and a sign

UNQUANTISED = "quantise the unquantised checkpoint with coterie quantize"
FLOATS = (DType.F16, DType.BF16, DType.F32)  # of scales
AGAIN = "get the checkpoint again"
_WORD_BITS = 32


class Matrix(Protocol):
    """A stored matrix [rows, columns]; `where` names it for people. `floats`: of unquantised ones, their type."""

    where: str
    num_rows: int
    floats: DType | None

    def values(self, first: int, last: int) -> F32:
        """Weights of these rows in float32 [last - first, columns]: one product each, rounded once where it must be."""


class PlainMatrix:
    """A matrix that its file holds as floats."""

    def __init__(self, info: TensorInfo) -> None:
        self.where, self.num_rows = f"{info.shard.path}: {info.name}", info.shape[0]
        self.floats: DType | None = info.dtype
        self._info = info

    def values(self, first: int, last: int) -> F32:
        """Weights of these rows in float32."""
        return to_f32(np.asarray(bits_of(self._info)[first:last]), self._info.dtype)


class WholeMatrix(ABC):
    """A matrix of whole numbers with a scale and a zero for each group of columns, which may be of any columns.

    Codes go from `least` to `most`. `group` columns side by side share a scale, the last ones may be fewer; or `order`
    has each column's group.
    """

    where: str
    num_rows: int
    num_columns: int
    group: int
    least: int
    most: int
    floats: DType | None = None
    order: npt.NDArray[np.intp] | None = None

    @abstractmethod
    def codes(self, first: int, last: int) -> I16:
        """What is stored for these rows [rows, columns]."""

    @abstractmethod
    def zeros(self, first: int, last: int) -> I16:
        """The code of 0.0 in each group of these rows [rows, groups]."""

    @abstractmethod
    def scales(self, first: int, last: int) -> F32:
        """The scale of each group of these rows [rows, groups]."""

    def whole(self, first: int, last: int) -> I16:
        """Code - zero of these rows [rows, columns]."""
        return self._by_group(np.subtract, self.codes(first, last), self.zeros(first, last))

    def values(self, first: int, last: int) -> F32:
        """Weights of these rows in float32; exact where a scale has 16 bits."""
        with np.errstate(all="ignore"):  # what is not finite is refused by who packs it
            return self._by_group(np.multiply, self.whole(first, last), self.scales(first, last))

    def _by_group(self, op: np.ufunc, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`op` of numbers [rows, columns] and those of their groups [rows, groups]."""
        found: npt.NDArray[Any]
        if self.order is not None:
            found = op(left, right[:, self.order])
        elif self.num_columns % self.group:
            found = op(left, np.repeat(right, self.group, axis=1)[:, : self.num_columns])
        else:
            found = op(left.reshape(*right.shape, self.group), right[..., None])
        return found.reshape(left.shape)


class ColumnScales(WholeMatrix):
    """One whose scales are stored as columns [groups, N], beside words of codes: `{stem}.scales`, `{stem}.qweight`."""

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
    """Each column's group, None where groups are columns side by side. Raises CheckpointError."""
    if info is None or not info.size_bytes:
        return None
    where = f"{info.shard.path}: {info.name}"
    if info.shape != (num_columns,) or info.dtype not in (DType.I32, DType.I64):
        raise CheckpointError(where, f"is {info.dtype.value} {list(info.shape)} for {num_columns} columns", AGAIN)
    order = np.asarray(bits_of(info)).astype(np.intp)
    if (order == -1).all() or np.array_equal(order, np.arange(num_columns) // group):  # -1: made, and never used
        return None
    if order.min() < 0 or order.max() >= num_groups:
        raise CheckpointError(where, f"names groups {order.min()} to {order.max()} of {num_groups}", AGAIN)
    return order


def group_size(where: str, num_groups: int, num_columns: int, declared: int) -> int:
    """Columns of a group, where `declared` is what the config says, -1 for a row. Raises CheckpointError."""
    group = num_columns if declared == -1 else declared
    if num_groups != -(-num_columns // group):
        fact = f"has {num_groups} groups for {num_columns} columns, where config.json says group_size {declared}"
        raise CheckpointError(where, fact, "check that config.json belongs to these weights")
    return group


def bits_of(info: TensorInfo) -> npt.NDArray[Any]:
    """A tensor's elements as they are stored, memory-mapped."""
    return map_bytes(info).view(info.dtype.numpy).reshape(info.shape)


def unpacked(words: npt.NDArray[Any], bits: int) -> I16:
    """Numbers of so many bits from 32-bit words [..., words], the lowest bits first: [..., words, numbers a word]."""
    in_bytes = np.ascontiguousarray(words).view(np.uint8)  # bits of a byte that are worth least come first
    spread = in_bytes[..., None] >> np.arange(0, 8, bits, dtype=np.uint8)
    spread &= np.uint8(2**bits - 1)
    return spread.reshape(*words.shape, numbers_a_word(bits)).astype(np.int16)


def numbers_a_word(bits: int) -> int:
    """How many numbers of so many bits are in a word."""
    return _WORD_BITS // bits


def wanted(
    tensors: Mapping[str, TensorInfo], name: str, dtypes: tuple[DType, ...], *shapes: tuple[int, ...]
) -> TensorInfo:
    """A tensor of one of these types and shapes, -1 for any size. Raises CheckpointError."""
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
    """The error for what a format can say and nobody here understands."""
    return UnsupportedError(where, fact, UNQUANTISED)

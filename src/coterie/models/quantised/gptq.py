"""GPTQ: codes of 2, 4 or 8 bits packed along K, with a scale and a zero point per row and group of columns of W.

    qweight I32 [K bits / 32, N]   code of weight [n, k] in word [k bits / 32, n], low bits first
    qzeros  I32 [G, N bits / 32]   packed along N; the first version of the format stores the zero point minus one
    scales      [G, N]
    g_idx   I32 [K]                the group of each column; if absent or trivial, groups are adjacent columns

Knows nothing about folders. Source: what AutoGPTQ writes, and GPTQModel's second version of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType
from coterie.models.fields import Fields
from coterie.models.quantised.matrix import (
    I16,
    ColumnScales,
    bits_of,
    numbers_a_word,
    order_of,
    refused,
    unpacked,
    wanted,
)
from coterie.models.quantised.method import Found, Method

_FORMATS = {"gptq": 1, "gptq_v2": 0}  # added to a stored zero point
_BITS = (2, 4, 8)


def gptq_method(section: Fields) -> Method:
    """The method that finds the tensors of a GPTQ checkpoint. Raises UnsupportedError and CheckpointError."""
    bits, stored = section.count("bits"), section.get("checkpoint_format", section.get("format", "gptq"))
    if bits not in _BITS:
        raise refused(section.where, f"bits is {bits}, where {', '.join(map(str, _BITS))} are understood")
    if not isinstance(stored, str) or stored not in _FORMATS or section.flag("is_marlin_format"):
        fact = f"the weights are stored for a kernel (checkpoint_format {stored!r}), and not as GPTQ does"
        raise refused(section.where, fact)
    group = declared_group(section)

    def find(tensors: Mapping[str, TensorInfo], stem: str, columns: int) -> Found | None:
        if f"{stem}.qweight" not in tensors:
            return None
        used = tuple(f"{stem}.{kind}" for kind in ("qweight", "qzeros", "scales", "g_idx"))
        return Found(_Gptq(tensors, stem, columns, bits, group, _FORMATS[stored]), used)

    return Method("gptq", 4 if bits <= 4 else 8, find)


def declared_group(section: Fields) -> int:
    """The group_size of a config, in columns; -1 for a whole row. Raises CheckpointError."""
    size = section.get("group_size", 128)
    if type(size) is not int or (size < 1 and size != -1):
        raise section.wrong("group_size", f"is {size!r}", "a whole number of at least 1, or -1 for a row")
    return size


class _Gptq(ColumnScales):
    def __init__(
        self, tensors: Mapping[str, TensorInfo], stem: str, columns: int, bits: int, declared: int, added: int
    ) -> None:
        each = numbers_a_word(bits)
        words = wanted(tensors, f"{stem}.qweight", (DType.I32,), (-(-columns // each), -1))
        super().__init__(tensors, stem, words, (words.shape[1], columns), declared)
        self.order = order_of(tensors.get(f"{stem}.g_idx"), columns, self.num_groups, self.group)
        self._zeros = wanted(tensors, f"{stem}.qzeros", (DType.I32,), (self.num_groups, -(-self.num_rows // each)))
        self._bits, self._added = bits, np.int16(added)
        self.min_code, self.max_code = 0, 2**bits - 1
        if added and (self.zeros(0, self.num_rows) == 2**bits).any():
            fact = f"stores a zero of {2**bits - 1}, which some readers take for 0 and others for {2**bits}"
            raise refused(f"{self.where}.qzeros", fact)

    def codes(self, first: int, last: int) -> I16:
        """The stored codes of these rows."""
        by_row = unpacked(bits_of(self._words)[:, first:last].T, self._bits)
        return by_row.reshape(last - first, -1)[:, : self.num_columns]

    def zeros(self, first: int, last: int) -> I16:
        """The zero point of each group of these rows."""
        stored = unpacked(bits_of(self._zeros), self._bits)
        return stored.reshape(len(stored), -1)[:, first:last].T + self._added

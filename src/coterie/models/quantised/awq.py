"""AWQ, gemm version: 4-bit codes, those of eight rows of W packed in a word, in an interleaved order.

    qweight I32 [K, N / 8]   bits 4 i of word [k, w] are the code of weight [8 w + ORDER[i], k]
    qzeros  I32 [G, N / 8]   packed in the same way
    scales      [G, N]       groups are adjacent columns of W

Knows nothing about folders. Source: what AutoAWQ writes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType
from coterie.models.fields import Fields
from coterie.models.quantised.gptq import declared_group
from coterie.models.quantised.matrix import I16, ColumnScales, bits_of, refused, unpacked, wanted
from coterie.models.quantised.method import Found, Method

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BITS, _EACH = 4, 8


def awq_method(section: Fields) -> Method:
    """The method that finds the tensors of an AWQ checkpoint. Raises UnsupportedError and CheckpointError."""
    bits, version, group = section.count("bits", _BITS), section.get("version", "gemm"), declared_group(section)
    if bits != _BITS or str(version).lower() != "gemm":
        raise refused(section.where, f"bits {bits} of version {version!r} are not understood, where 4 of 'gemm' are")

    def find(tensors: Mapping[str, TensorInfo], stem: str, columns: int) -> Found | None:
        if f"{stem}.qweight" not in tensors:
            return None
        used = tuple(f"{stem}.{kind}" for kind in ("qweight", "qzeros", "scales"))
        return Found(_Awq(tensors, stem, columns, group), used)

    return Method("awq", _BITS, find)


class _Awq(ColumnScales):
    def __init__(self, tensors: Mapping[str, TensorInfo], stem: str, columns: int, declared: int) -> None:
        words = wanted(tensors, f"{stem}.qweight", (DType.I32,), (columns, -1))
        super().__init__(tensors, stem, words, (words.shape[1] * _EACH, columns), declared)
        self.min_code, self.max_code = 0, 2**_BITS - 1
        self._zeros = wanted(tensors, f"{stem}.qzeros", (DType.I32,), (self.num_groups, words.shape[1]))

    def codes(self, first: int, last: int) -> I16:
        """The stored codes of these rows."""
        return _rows(bits_of(self._words), first, last)

    def zeros(self, first: int, last: int) -> I16:
        """The zero point of each group of these rows."""
        return _rows(bits_of(self._zeros), first, last)


def _rows(words: npt.NDArray[np.int32], first: int, last: int) -> I16:
    """Rows of W [rows, K] from words [K, N / 8]; the first and last row may be in the middle of a word."""
    start = first // _EACH
    codes = unpacked(words[:, start : -(-last // _EACH)], _BITS)
    in_order = np.empty_like(codes)
    in_order[..., ORDER] = codes
    return in_order.reshape(len(words), -1)[:, first - start * _EACH : last - start * _EACH].T

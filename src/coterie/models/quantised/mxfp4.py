"""MXFP4 in the branches of gpt-oss: 4-bit floats, with a power-of-two scale per 32 of them.

    mlp.experts.gate_up_proj_blocks  U8 [E, 2 F, D / 32, 16]   byte i: weight 2 i in the low 4 bits, 2 i + 1 in the high
    mlp.experts.gate_up_proj_scales  U8 [E, 2 F, D / 32]       n means 2^(n - 127); rows of gate and up alternate
    mlp.experts.down_proj_..         the same, [E, D, F / 32]

Knows nothing about folders. Source: the released checkpoints of gpt-oss, as transformers reads them; the numbers are
those of the OCP Microscaling Formats (MX) specification, version 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import PACKED, DType
from coterie.core.packed import worth
from coterie.models.fields import Fields
from coterie.models.quantised.matrix import F32, I16, IntegerMatrix, bits_of, refused, wanted
from coterie.models.quantised.method import Found, Method
from coterie.models.quantised.transposed import Stacked, of_branches

_GROUP, _BYTES = PACKED[DType.MX4][1], 16
_BIAS, _NO_NUMBER = 128, 255  # packed scales are for doubled weights (exponent bias 127 + 1); 255 is NaN


def mxfp4_method(section: Fields) -> Method:
    """The method that finds the tensors of an MXFP4 checkpoint."""

    def found(tensors: Mapping[str, TensorInfo], at: Stacked, columns: int) -> Found:
        return Found(_Mxfp4(tensors, at, columns), (f"{at.name}_blocks", f"{at.name}_scales"))

    return Method("mxfp4", None, of_branches("_blocks", found), exact_type=DType.MX4)


class _Mxfp4(IntegerMatrix):
    """Codes are the 4-bit floats themselves; zero points are all 0."""

    min_code, max_code = 0, 15

    def __init__(self, tensors: Mapping[str, TensorInfo], at: Stacked, columns: int) -> None:
        groups = -(-columns // _GROUP)
        blocks = wanted(tensors, f"{at.name}_blocks", (DType.U8,), (-1, -1, groups, _BYTES))
        self.num_rows, self.num_columns, self.group = blocks.shape[1] // at.step, columns, _GROUP
        self.where = f"{blocks.shard.path}: {at.name}"
        if columns % _GROUP:
            raise refused(self.where, f"its {columns} columns are no multiple of {_GROUP}")
        scales = wanted(tensors, f"{at.name}_scales", (DType.U8,), (blocks.shape[0], blocks.shape[1], groups))
        self._blocks, self._scales = (bits_of(info)[at.branch, at.first :: at.step] for info in (blocks, scales))

    def codes(self, first: int, last: int) -> I16:
        """The stored codes of these rows."""
        blocks = np.asarray(self._blocks[first:last])
        both = np.stack([blocks & 15, blocks >> 4], axis=-1)
        return both.reshape(last - first, self.num_columns).astype(np.int16)

    def zeros(self, first: int, last: int) -> I16:
        """All 0: the format has no zero points."""
        return np.zeros((last - first, self.num_columns // _GROUP), np.int16)

    def scales(self, first: int, last: int) -> F32:
        """The scale of each group of these rows, for twice the floats' values, which are integers."""
        stored = np.asarray(self._scales[first:last]).astype(np.int32)
        scales = np.ldexp(np.float32(1), stored - _BIAS).astype(np.float32)
        return np.where(stored == _NO_NUMBER, np.float32(np.nan), scales)

    def values(self, first: int, last: int) -> F32:
        """Weights of these rows in float32, exactly."""
        of_weight = np.repeat(self.scales(first, last), _GROUP, axis=1)
        return worth(self.codes(first, last)) * of_weight

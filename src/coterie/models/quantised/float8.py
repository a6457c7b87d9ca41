"""FP8: E4M3 weights with a scale per matrix, per row, or per block of rows and columns.

    weight            F8_E4M3 [N, K]
    weight_scale_inv  [] or [1] or [N, 1] or [N / R, K / C]      multiplies, despite its name: weight * scale
    weight_scale      the same, under AutoFP8's name

Knows nothing about folders. Source: the FP8 checkpoints of DeepSeek and Qwen, as transformers reads them, and those of
AutoFP8, as vLLM does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType, to_f32
from coterie.models.fields import Fields
from coterie.models.quantised.matrix import F32, FLOATS, bits_of, refused, wanted
from coterie.models.quantised.method import Found, Method

ACTIVATIONS = "it rounds activations to 8 bits as well, which is not done here"


def fp8_method(section: Fields) -> Method:
    """The method that finds the tensors of an FP8 checkpoint. Raises UnsupportedError and CheckpointError."""
    if section.get("fmt", "e4m3") != "e4m3":
        raise refused(section.where, f"fmt is {section.get('fmt')!r}, where 'e4m3' is understood")
    block = block_of(section, "weight_block_size")

    def find(tensors: Mapping[str, TensorInfo], stem: str, columns: int) -> Found | None:
        info = tensors.get(f"{stem}.weight")
        if info is None or info.dtype is not DType.F8_E4M3:
            return None
        scale = "weight_scale" if f"{stem}.weight_scale" in tensors else "weight_scale_inv"
        kinds = ("weight", scale, "activation_scale", "input_scale")
        return Found(Fp8(tensors, stem, columns, scale, block), tuple(f"{stem}.{kind}" for kind in kinds))

    return Method("fp8", None, find, ACTIVATIONS)


def block_of(section: Fields, key: str) -> tuple[int, int] | None:
    """Rows and columns of a block that shares a scale; None if the config names none. Raises CheckpointError."""
    found = section.get(key)
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 2 or any(type(n) is not int or n < 1 for n in found):
        raise section.wrong(key, f"is {found!r}", "two whole numbers of at least 1: rows and columns")
    return found[0], found[1]


class Fp8:
    """A matrix of weights in E4M3."""

    floats: DType | None = None

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        stem: str,
        columns: int,
        scale: str,
        block: tuple[int, int] | None,
    ) -> None:
        self._weights = wanted(tensors, f"{stem}.weight", (DType.F8_E4M3,), (-1, columns))
        self.num_rows = rows = self._weights.shape[0]
        self.where = f"{self._weights.shard.path}: {stem}"
        blocks = [] if block is None else [(-(-rows // block[0]), -(-columns // block[1]))]
        one = [(), (1,), (1, 1), (rows,), (rows, 1)]
        info = wanted(tensors, f"{stem}.{scale}", FLOATS, *(blocks or one))
        self._block = block or (1 if rows in info.shape else rows, columns)
        scales = to_f32(np.ascontiguousarray(bits_of(info)), info.dtype)
        self._scales = scales if blocks else scales.reshape(-1, 1)

    def values(self, first: int, last: int) -> F32:
        """Weights of these rows in float32."""
        values = to_f32(np.asarray(bits_of(self._weights)[first:last]), DType.F8_E4M3)
        by_row = self._scales[np.arange(first, last) // self._block[0]]
        with np.errstate(all="ignore"):  # callers refuse values that are not finite
            return values * np.repeat(by_row, self._block[1], axis=1)[:, : values.shape[1]]

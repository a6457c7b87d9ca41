"""Element types of tensors, and their conversion to float32 in NumPy (which has no bfloat16).

Knows nothing about files or kernels, except that the member names are those of the safetensors format.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from math import prod

import numpy as np
import numpy.typing as npt


class DType(Enum):
    """An element type; the value is its safetensors name.

    Q8, Q6, Q4, Q4Z, Q2 and MX4 are weights packed in groups that share a scale (core.packed); Q4Z also has a zero point
    per group, and MX4 holds floats. A file stores their rows as U8. I8 and F8_E4M3 occur in checkpoints quantised by
    other tools; no kernel runs on them, but modelled machines price F8_E4M3. KV8 is for the KV cache: blocks of 32
    8-bit integers, each preceded by its scale.
    """

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    I32 = "I32"
    I64 = "I64"
    U8 = "U8"
    I8 = "I8"
    F8_E4M3 = "F8_E4M3"
    Q8 = "Q8"
    Q6 = "Q6"
    Q4 = "Q4"
    Q4Z = "Q4Z"
    Q2 = "Q2"
    MX4 = "MX4"
    KV8 = "KV8"

    @property
    def size_bytes(self) -> int:
        """Bytes of one element. Raises KeyError for a type with scales, for which only rows have a size."""
        return _SIZES[self]

    @property
    def is_float(self) -> bool:
        """True for the float types that any weight may have."""
        return self in (DType.F32, DType.F16, DType.BF16)

    @property
    def is_kept(self) -> bool:
        """True for the types that a KV cache may have."""
        return self.is_float or self is DType.KV8

    @property
    def is_packed(self) -> bool:
        """True for group-quantised types, which only matrices may have."""
        return self in PACKED

    @property
    def has_zeros(self) -> bool:
        """True for the packed type whose groups have a zero point as well as a scale."""
        return self is DType.Q4Z

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of a matrix."""
        if self is DType.KV8:
            return -(-columns // BLOCK_WEIGHTS) * (SCALE_BYTES + BLOCK_WEIGHTS)
        if self not in PACKED:
            return columns * self.size_bytes
        if self is DType.Q6:
            return -(-columns // UNIT_Q6) * UNIT_Q6_BYTES + SCALE_BYTES * -(-columns // BLOCK_Q6)
        bits, group = PACKED[self]
        values = -(-columns // BLOCK_WEIGHTS) * BLOCK_WEIGHTS * bits // 8
        return values + SCALE_BYTES * -(-columns // group) * (2 if self.has_zeros else 1)

    def tensor_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor; a packed one must have two dimensions."""
        return prod(shape[:-1]) * self.row_bytes(shape[-1]) if shape else self.size_bytes

    def stored(self, shape: tuple[int, ...]) -> tuple[DType, tuple[int, ...]]:
        """A tensor's element type and shape in a file: a packed matrix is stored as rows of bytes."""
        return (DType.U8, (shape[0], self.row_bytes(shape[1]))) if self.is_packed else (self, shape)

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The NumPy type that holds the bits: uint16 for bfloat16, uint8 for 8-bit floats."""
        return _NUMPY[self]


# Packed types: (bits per weight, group size). Rows are padded to whole blocks; scales and zero points are bfloat16.
# Q6 has 8-bit integer scales, multiplied by one bfloat16 scale per block; its rows are padded to whole units.
PACKED = {
    **{DType.Q8: (8, 128), DType.Q6: (6, 16), DType.Q4: (4, 32), DType.Q4Z: (4, 32), DType.Q2: (2, 32)},
    DType.MX4: (4, 32),
}
BLOCK_WEIGHTS = 32
BLOCK_Q6, UNIT_Q6, UNIT_Q6_BYTES = 256, 64, 52
SCALE_BYTES = 2

_SIZES = {DType.F32: 4, DType.F16: 2, DType.BF16: 2, DType.I32: 4, DType.I64: 8}
_SIZES |= {DType.U8: 1, DType.I8: 1, DType.F8_E4M3: 1}
_NUMPY: dict[DType, np.dtype[np.generic]] = {
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(np.uint16),
    DType.I32: np.dtype(np.int32),
    DType.I64: np.dtype(np.int64),
    DType.U8: np.dtype(np.uint8),
    DType.I8: np.dtype(np.int8),
    DType.F8_E4M3: np.dtype(np.uint8),
}


def _e4m3() -> npt.NDArray[np.float32]:
    """The value of each byte: sign, 4 exponent bits (bias 7), 3 fraction bits; all ones is NaN."""
    byte = np.arange(128)
    exponent, fraction = byte >> 3, byte & 7
    normal = np.ldexp(1 + fraction / 8, exponent - 7)
    worth = np.where(exponent == 0, np.ldexp(fraction / 8, -6), normal)
    worth[127] = np.nan
    return np.concatenate([worth, -worth]).astype(np.float32)


_E4M3 = _e4m3()  # the variant without infinities (E4M3FN), which checkpoints use


def to_f32(bits: npt.NDArray[np.generic], dtype: DType) -> npt.NDArray[np.float32]:
    """Widen stored bits of `dtype` to float32. Exact for float32 and all types of up to 16 bits."""
    if dtype is DType.BF16:
        return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype is DType.F8_E4M3:
        return _E4M3[bits.view(np.uint8)]
    return bits.astype(np.float32)


def from_f32(values: npt.NDArray[np.float32], dtype: DType) -> npt.NDArray[np.generic]:
    """Round float32 to F32, F16 or BF16 (to nearest, ties to even, overflow to infinity); returns the stored bits."""
    if dtype is DType.BF16:
        u = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    with np.errstate(over="ignore"):
        return values.astype(dtype.numpy)


def rounded_to(values_NC: npt.NDArray[np.float32], dtype: DType) -> npt.NDArray[np.float32]:
    """Round rows to a KV cache type (F32, F16, BF16 or KV8) and back: to nearest, ties to even.

    KV8: a block's scale is its largest magnitude / 127, rounded to bfloat16; integers are clamped to +-127 if that
    rounded down. A block with a value that is not finite becomes NaN.
    """
    if dtype is not DType.KV8:
        return to_f32(from_f32(values_NC, dtype), dtype)
    (N, C), blocks = values_NC.shape, -(-values_NC.shape[1] // BLOCK_WEIGHTS)
    padded = np.zeros((N, blocks * BLOCK_WEIGHTS), np.float32)
    padded[:, :C] = values_NC
    padded = padded.reshape(N, blocks, BLOCK_WEIGHTS)
    most = np.abs(padded).max(axis=2, keepdims=True) / np.float32(127)
    scale = to_f32(from_f32(most, DType.BF16), DType.BF16)
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest = np.clip(np.rint(padded / scale), -127, 127) * scale
    read = np.where(np.isfinite(most), np.where(scale > 0, nearest, np.float32(0)), np.float32(np.nan))
    return np.asarray(read.reshape(N, -1)[:, :C], np.float32)

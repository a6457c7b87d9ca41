"""Blocks of GGUF whose codes a packed type holds as they are: only scales and zeros are rounded, to bfloat16.

    Q4_0   32 weights   | scale f16 | 16 bytes |              weight = (code - 8) * scale
    Q4_1   32 weights   | scale f16 | least f16 | 16 bytes |  weight = code * scale + least
    Q4_K   8 groups     | d f16 | m f16 | 12 bytes: 6 bits of scale and of least for each group | 4 x 32 bytes |
           of 32        weight = code * (d * scale) - m * least
    TQ1_0, TQ2_0        weights of a group are its largest, its negative and 0: int4 holds them with that scale

16 and 32 bytes have a code in each half, all low halves first. Knows nothing about which weights these are. Source:
ggml's own description of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from coterie.core.dtypes import BLOCK_WEIGHTS, DType
from coterie.core.packed import F32, U8, pack, packed_as_is
from coterie.core.scales import LOW_Q4, in_bf16

_F16_BYTES, _GROUPS_K = 2, 8


def codes_kept(kind: str) -> DType | None:
    """The packed type that holds the codes of a type of GGUF, None where none does."""
    found = _KEPT.get(kind)
    return found and found[0]


def packed_codes(kind: str, rows: U8, values: F32) -> U8:
    """Packed rows of the type that `codes_kept` names, of rows of blocks and the float32 weights that they mean.

    Raises ValueError for scales that are not finite numbers in bfloat16.
    """
    with np.errstate(all="ignore"):  # what is not finite is refused
        return _KEPT[kind][1](rows, values)


def _q4_0(rows: U8, _: F32) -> U8:
    (scales,), codes = _numbers(rows, 1, 18)
    return packed_as_is(_halves(codes).astype(np.int8) + np.int8(LOW_Q4), in_bf16(scales), DType.Q4)


def _q4_1(rows: U8, _: F32) -> U8:
    (scales, least), codes = _numbers(rows, 2, 20)
    return _with_zeros(_halves(codes), scales, -least)


def _q4_k(rows: U8, _: F32) -> U8:
    (scale, least), rest = _numbers(rows, 2, 144)
    low, high, mixed = (rest[..., first : first + 4] for first in (0, 4, 8))
    of_scale = np.concatenate([low & 63, mixed & 15 | low >> 6 << 4], axis=-1)
    of_least = np.concatenate([high & 63, mixed >> 4 | high >> 6 << 4], axis=-1)
    N, blocks = len(rows), rest.shape[1]
    codes = _halves(rest[..., 12:].reshape(N, blocks * _GROUPS_K // 2, BLOCK_WEIGHTS))
    groups = [(one[..., None] * six).reshape(N, -1) for one, six in ((scale, of_scale), (least, of_least))]
    return _with_zeros(codes, *groups)


def _ternary(_: U8, values: F32) -> U8:
    groups = np.abs(values).reshape(len(values), -1, BLOCK_WEIGHTS)
    return pack(values, DType.Q4, groups.max(axis=-1))


_KEPT: Mapping[str, tuple[DType, Callable[[U8, F32], U8]]] = {
    "Q4_0": (DType.Q4, _q4_0),
    "Q4_1": (DType.Q4Z, _q4_1),
    "Q4_K": (DType.Q4Z, _q4_k),
    "TQ1_0": (DType.Q4, _ternary),
    "TQ2_0": (DType.Q4, _ternary),
}


def _numbers(rows: U8, count: int, block_bytes: int) -> tuple[list[F32], U8]:
    """The float16 numbers that blocks begin with, each [N, blocks], and what follows them."""
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, block_bytes)
    numbers = np.ascontiguousarray(blocks[..., : count * _F16_BYTES]).view("<f2").astype(np.float32)
    return [numbers[..., i] for i in range(count)], blocks[..., count * _F16_BYTES :]


def _halves(codes: U8) -> U8:
    """Codes [N, weights]: of each run of bytes all low halves, then all high ones."""
    return np.concatenate([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)


def _with_zeros(codes: U8, scales: F32, below: F32) -> U8:
    """Rows of int4z with weights code * scale - below, each group's own [N, groups]."""
    is_flat = (scales == 0) & (below != 0)  # every weight is the same number: (0 - -1) * it
    zeros = np.divide(below, scales, out=np.where(is_flat, np.float32(-1), np.float32(0)), where=scales != 0)
    codes = np.where(np.repeat(is_flat, BLOCK_WEIGHTS, axis=1), np.uint8(0), codes)
    return packed_as_is(codes, in_bf16(np.where(is_flat, -below, scales)), DType.Q4Z, in_bf16(zeros))

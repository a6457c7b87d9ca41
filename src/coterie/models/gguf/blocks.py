"""GGUF blocks whose codes fit a packed type unchanged: only scales and zero points are rounded, most to bfloat16.

    Q4_0   32 weights   | scale f16 | 16 bytes |              weight = (code - 8) * scale
    Q4_1   32 weights   | scale f16 | least f16 | 16 bytes |  weight = code * scale + least
    Q4_K   8 groups     | d f16 | m f16 | 12 bytes: 6 bits of scale and of least for each group | 4 x 32 bytes |
           of 32        weight = code * (d * scale) - m * least
    Q6_K   16 groups    | 128 bytes: lower 4 bits | 64 bytes: upper 2 | 16 scales of 8 bits | d f16 |
           of 16        weight = (code - 32) * (d * scale)
    Q3_K   16 groups    | 32 bytes: an upper bit | 64 bytes: lower 2 bits | 12 bytes: 6 bits of scale each | d f16 |
           of 16        weight = (code - 4) * (d * (scale - 32))
    Q5_0   32 weights   | scale f16 | 4 bytes: an upper bit of each | 16 bytes |  weight = (code - 16) * scale
    MXFP4  32 weights   | n, 8 bits | 16 bytes of floats |    weight = float * 2^(n - 127), 2 * float is an integer
    TQ1_0, TQ2_0        ternary: the weights of a group are -s, 0 and s, which int4 holds with scale s

Each byte of 16 or 32 holds two 4-bit codes; the low halves of a run come first, then the high ones. Scales of Q5_0 are
rounded to 8 bits, relative to the largest of 256 weights. Knows nothing about which weights these are. Source: ggml's
own description of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from coterie.core.dtypes import BLOCK_WEIGHTS, PACKED, DType
from coterie.core.packed import F32, U8, pack, packed_as_is
from coterie.core.scales import LOW_Q4, in_bf16
from coterie.core.six_bits import join_six, two_scales

_F16_BYTES, _GROUPS_K = 2, 8


def codes_kept(kind: str) -> DType | None:
    """The packed type that holds the codes of a GGUF type unchanged; None if there is none."""
    found = _KEPT.get(kind)
    return found and found[0]


def packed_codes(kind: str, rows: U8, values: F32) -> U8:
    """Rows of blocks, repacked as the type that `codes_kept` names; `values` are their weights in float32.

    Raises ValueError for scales that are not finite in bfloat16.
    """
    with np.errstate(all="ignore"):  # values that are not finite are refused
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


def _q6_k(rows: U8, _: F32) -> U8:
    N, blocks = len(rows), np.ascontiguousarray(rows).reshape(len(rows), -1, 210)
    of_block = np.ascontiguousarray(blocks[..., 208:]).view("<f2").astype(np.float32)[..., 0]
    low, high = blocks[..., :128].reshape(N, -1, 2, 1, 64), blocks[..., 128:192].reshape(N, -1, 2, 1, 32)
    halves = np.concatenate([low & 15, low >> 4], axis=3).reshape(N, -1, 2, 4, 32)
    pairs = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=3)
    codes = (halves | pairs << 4).reshape(N, -1).astype(np.int8) - np.int8(32)
    return join_six(codes, blocks[..., 192:208].reshape(N, -1).view(np.int8), in_bf16(of_block))


def _q3_k(rows: U8, _: F32) -> U8:
    N, blocks = len(rows), np.ascontiguousarray(rows).reshape(len(rows), -1, 110)
    of_block = np.ascontiguousarray(blocks[..., 108:]).view("<f2").astype(np.float32)[..., 0]
    upper = blocks[..., None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    lower = blocks[..., 32:96].reshape(N, -1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    codes = (lower.reshape(N, -1) | upper.reshape(N, -1) << 2).astype(np.int8) - np.int8(4)
    eights, pairs = blocks[..., 96:104], blocks[..., 104:108]
    low = np.concatenate([eights & 15, eights >> 4], axis=-1)
    high = np.concatenate([pairs >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    scales = (low | high << 4).astype(np.int8) - np.int8(32)
    return join_six(codes, scales.reshape(N, -1), in_bf16(of_block))


def _q5_0(rows: U8, _: F32) -> U8:
    (scales,), rest = _numbers(rows, 1, 22)
    upper = np.unpackbits(rest[..., :4], axis=-1, bitorder="little").reshape(len(rows), -1)
    codes = (_halves(rest[..., 4:]) | upper << 4).astype(np.int8) - np.int8(16)
    return join_six(codes, *two_scales(np.repeat(scales, BLOCK_WEIGHTS // PACKED[DType.Q6][1], axis=1)))


def _mxfp4(rows: U8, _: F32) -> U8:
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, 17)
    scales = np.ldexp(np.float32(1), blocks[..., 0].astype(np.int32) - 128).astype(np.float32)
    return packed_as_is(_halves(blocks[..., 1:]), scales, DType.MX4)


def _ternary(_: U8, values: F32) -> U8:
    groups = np.abs(values).reshape(len(values), -1, BLOCK_WEIGHTS)
    return pack(values, DType.Q4, groups.max(axis=-1))


_KEPT: Mapping[str, tuple[DType, Callable[[U8, F32], U8]]] = {
    "Q4_0": (DType.Q4, _q4_0),
    "Q4_1": (DType.Q4Z, _q4_1),
    "Q4_K": (DType.Q4Z, _q4_k),
    "Q3_K": (DType.Q6, _q3_k),
    "Q5_0": (DType.Q6, _q5_0),
    "Q6_K": (DType.Q6, _q6_k),
    "MXFP4": (DType.MX4, _mxfp4),
    "TQ1_0": (DType.Q4, _ternary),
    "TQ2_0": (DType.Q4, _ternary),
}


def _numbers(rows: U8, count: int, block_bytes: int) -> tuple[list[F32], U8]:
    """The float16 numbers at the start of each block, each [N, blocks], and the rest of the blocks."""
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, block_bytes)
    numbers = np.ascontiguousarray(blocks[..., : count * _F16_BYTES]).view("<f2").astype(np.float32)
    return [numbers[..., i] for i in range(count)], blocks[..., count * _F16_BYTES :]


def _halves(codes: U8) -> U8:
    """Codes [N, weights]: for each run of bytes, all low halves, then all high ones."""
    return np.concatenate([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)


def _with_zeros(codes: U8, scales: F32, below: F32) -> U8:
    """Rows of int4z with weights code * scale - below, where scale and below are per group [N, groups]."""
    is_flat = (scales == 0) & (below != 0)  # all weights of the group are one number: (0 - -1) * it
    zeros = np.divide(below, scales, out=np.where(is_flat, np.float32(-1), np.float32(0)), where=scales != 0)
    codes = np.where(np.repeat(is_flat, BLOCK_WEIGHTS, axis=1), np.uint8(0), codes)
    return packed_as_is(codes, in_bf16(np.where(is_flat, -below, scales)), DType.Q4Z, in_bf16(zeros))

"""The Q6 format: 6-bit integers, an 8-bit scale per 16 of them, and a bfloat16 scale per 256.

    row      | blocks of 256 weights, the last possibly shorter | one bfloat16 per block |
    block    | 32 bytes per 64 weights | 16 bytes per 64 weights | a signed byte per 16 weights |
             a weight's lower 4 bits   its upper 2 bits            its scale

Within 64 weights, w = 32 h + 16 a + 8 b + c: its lower bits are in half h (0: low nibble) of byte 16 b + 8 a + c, its
upper ones in bit pair 2 h + b (0: highest) of byte 8 a + c, which is the order in which 256-bit vectors widen bytes.
A weight is q * scale * block's scale, exactly representable in float32. Padding, to multiples of 64, is zero.
Knows nothing about files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import BLOCK_Q6, PACKED, UNIT_Q6, UNIT_Q6_BYTES, DType, from_f32, to_f32
from coterie.core.scales import in_bf16, inverse, scales_of, whole_of

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.integer[Any]]

GROUP = PACKED[DType.Q6][1]
MAX_SCALE = 127


def pack_six(values_NK: F32) -> U8:
    """Quantise rows: choose the groups' scales, round these to 8 bits, then quantise the weights by them."""
    grouped = _in_groups(values_NK)
    scales, blocks = two_scales(scales_of(grouped, DType.Q6))
    q = whole_of(grouped, scales.astype(np.float32) * _of_groups(blocks, scales), DType.Q6)
    return join_six(q.astype(np.int8).reshape(len(q), -1)[:, : values_NK.shape[1]], scales, blocks)


def two_scales(scales_NG: F32) -> tuple[Whole, F32]:
    """Split scales into 8-bit integers per group and a bfloat16 factor per block, whose largest integer is 127."""
    N, G = scales_NG.shape
    per_block = BLOCK_Q6 // GROUP
    padded = np.zeros((N, -(-G // per_block) * per_block), np.float32)
    padded[:, :G] = scales_NG
    blocks = in_bf16(np.abs(padded).reshape(N, -1, per_block).max(axis=-1) / np.float32(MAX_SCALE))
    whole = np.rint(scales_NG * inverse(_of_groups(blocks, scales_NG)))
    return np.clip(whole, -MAX_SCALE, MAX_SCALE).astype(np.int8), blocks


def join_six(q_NK: Whole, scales_NG: Whole, blocks_NB: F32) -> U8:
    """Pack integers, -32 to 31, with their group and block scales.

    Raises ValueError for a block scale that is not a finite bfloat16 number.
    """
    if odd := int(np.count_nonzero((in_bf16(blocks_NB) != blocks_NB) | ~np.isfinite(blocks_NB))):
        raise ValueError(f"{odd} of {blocks_NB.size} scales are not finite numbers in bfloat16")
    N, K = q_NK.shape
    units = -(-K // UNIT_Q6)
    codes = np.zeros((N, units * UNIT_Q6), np.uint8)
    codes[:, :K] = q_NK.astype(np.int8).view(np.uint8) & 63
    h_b_byte = codes.reshape(N, units, 2, 2, 2, 8).swapaxes(3, 4).reshape(N, units, 2, 2, 16)
    low, high = h_b_byte & 15, h_b_byte >> 4
    halves = (low[:, :, 0] | low[:, :, 1] << 4).reshape(N, units, 32)
    pairs = high[:, :, 0, 0] << 6 | high[:, :, 0, 1] << 4 | high[:, :, 1, 0] << 2 | high[:, :, 1, 1]
    groups = np.zeros((N, units, UNIT_Q6 // GROUP), np.int8)
    groups.reshape(N, -1)[:, : scales_NG.shape[1]] = scales_NG
    blocks: list[U8] = []
    for some, first in _blocks(units):
        parts: tuple[U8, ...] = (halves.view(np.uint8), pairs.view(np.uint8), groups.view(np.uint8))
        blocks += (part[:, first : first + some].reshape(N, -1) for part in parts)
    stored = from_f32(blocks_NB, DType.BF16).astype("<u2").view(np.uint8).reshape(N, -1)
    return np.concatenate([*blocks, stored], axis=1)


def unpack_six(packed: U8, K: int) -> F32:
    """Dequantise packed rows [N, row bytes] to float32 [N, K], exactly."""
    N, units = len(packed), -(-K // UNIT_Q6)
    stored = np.ascontiguousarray(packed[:, units * UNIT_Q6_BYTES :]).view("<u2").astype(np.uint16)
    blocks = to_f32(stored, DType.BF16)
    q, scales = np.empty((N, units * UNIT_Q6), np.float32), np.empty((N, units * UNIT_Q6 // GROUP), np.float32)
    for some, unit in _blocks(units):
        part = packed[:, unit * UNIT_Q6_BYTES : (unit + some) * UNIT_Q6_BYTES]
        halves = part[:, : 32 * some].reshape(N, some, 1, 2, 16)
        pairs = part[:, 32 * some : 48 * some].reshape(N, some, 1, 1, 16)
        low = np.concatenate([halves & 15, halves >> 4], axis=2)
        shifts = np.array([6, 4, 2, 0], np.uint8).reshape(2, 2, 1)
        codes = (low | (pairs >> shifts & 3) << 4).reshape(N, some, 2, 2, 2, 8).swapaxes(3, 4).reshape(N, -1)
        q[:, unit * UNIT_Q6 : (unit + some) * UNIT_Q6] = (codes << 2).view(np.int8) >> 2
        groups = slice(unit * UNIT_Q6 // GROUP, (unit + some) * UNIT_Q6 // GROUP)
        scales[:, groups] = part[:, 48 * some :].view(np.int8)
    of_weight = np.repeat(scales * _of_groups(blocks, scales), GROUP, axis=1)
    return np.asarray((q * of_weight)[:, :K], np.float32)


def _in_groups(values_NK: F32) -> F32:
    N, K = values_NK.shape
    padded = np.zeros((N, -(-K // GROUP) * GROUP), np.float32)
    padded[:, :K] = values_NK
    return padded.reshape(N, -1, GROUP)


def _of_groups(blocks_NB: F32, scales_NG: npt.NDArray[Any]) -> F32:
    """Repeat each block's scale for its groups."""
    return np.repeat(blocks_NB, BLOCK_Q6 // GROUP, axis=1)[:, : scales_NG.shape[1]]


def _blocks(units: int) -> list[tuple[int, int]]:
    """(number of units, index of the first) of each block of a row."""
    per_block = BLOCK_Q6 // UNIT_Q6
    return [(min(per_block, units - first), first) for first in range(0, units, per_block)]

"""Writes a safetensors file of random bf16 numbers with several threads; the bytes do not depend on their number.

    header | piece 0 | piece 1 | ...        each piece has its own generator, seeded by the file's seed and its number

Knows nothing about experts, or what the tensors are for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import floor, log2, prod
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[np.uint16]

PIECE_ELEMENTS = 1 << 22  # held in memory by a thread at once
BF16_BYTES, DRAWN = 2, 4  # DRAWN: numbers per 64 random bits
_BIAS, _SIGN_AND_MANTISSA, _MANTISSA = 127, 0x807F, 0x7F


@dataclass(frozen=True, slots=True)
class _Piece:
    """`count` numbers of one tensor, at `offset` in the file."""

    number: int
    offset: int
    count: int
    fan_in: int
    is_norm: bool


def weight_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of all tensors, without the header."""
    return BF16_BYTES * sum(prod(shape) for shape in shapes.values())


def write_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, threads: int = 1) -> None:
    """Write one file and sync it. Raises OSError."""
    header = _header(shapes)
    with path.open("wb") as file, ThreadPoolExecutor(threads) as pool:
        file.write(header)
        file.flush()
        # Threads run in parallel: NumPy and pwrite release the GIL.
        for _ in pool.map(partial(_write_piece, file.fileno(), seed), _pieces(shapes, len(header))):
            pass
        os.fsync(file.fileno())  # dirty pages cannot be dropped from the page cache


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    entries, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + prod(shape) * BF16_BYTES
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pieces(shapes: Mapping[str, tuple[int, ...]], offset: int) -> Iterator[_Piece]:
    number = 0
    for name, shape in shapes.items():
        left, is_norm = prod(shape), len(shape) == 1 and "norm" in name
        while left:
            count = min(PIECE_ELEMENTS, left)
            yield _Piece(number, offset, count, shape[-1], is_norm)
            number, offset, left = number + 1, offset + BF16_BYTES * count, left - count


def _write_piece(file: int, seed: int, piece: _Piece) -> None:
    rng = np.random.Generator(np.random.SFC64([seed, piece.number]))
    bits = rng.integers(0, 1 << 64, -(-piece.count // DRAWN), dtype=np.uint64).view(np.uint16)[: piece.count]
    made = _near_one(bits) if piece.is_norm else _scaled(bits, piece.fan_in)
    left, at = made.astype("<u2", copy=False).data.cast("B"), piece.offset
    while left:  # pwrite may write only a part
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written


def _near_one(bits: Bits) -> Bits:
    """Turn random bits into bf16 numbers in [1, 2), in place."""
    bits &= _MANTISSA
    bits |= _BIAS << 7
    return bits


def _scaled(bits: Bits, fan_in: int) -> Bits:
    """Turn random bits into bf16 numbers of either sign and magnitude about fan_in ** -0.5, by setting the exponent."""
    bits &= _SIGN_AND_MANTISSA
    bits |= _BIAS + floor(log2(fan_in**-0.5)) << 7
    return bits

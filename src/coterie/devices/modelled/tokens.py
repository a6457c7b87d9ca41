"""Synthetic tokens: what a device that computes no values returns; deterministic.

Knows nothing about time, programs or devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from coterie.device import I32, Rows

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the constants of splitmix64
_MASK = 2**64 - 1
BLOCK = 64  # consecutive tokens generated together
MAX_BLOCKS = 1 << 10  # blocks cached; bounds memory, not use


Draw: TypeAlias = Callable[[Sequence[int], Sequence[int], int, int], I32]
"""(seeds, positions, vocab_size, steps) -> tokens [steps, R]; a row's first token follows the one at its position."""


def draw(seeds: Sequence[int], positions: Sequence[int], vocab_size: int, steps: int) -> I32:
    """Reference implementation of Draw."""
    by_row = []
    for seed, position in zip(seeds, positions, strict=True):
        number, first = divmod(position, BLOCK)
        tokens = _block(seed, number, vocab_size)[first : first + steps]
        while len(tokens) < steps:
            number += 1
            tokens += _block(seed, number, vocab_size)[: steps - len(tokens)]
        by_row.append(tokens)
    return np.array(by_row, dtype=np.int32).T if by_row else np.zeros((steps, 0), dtype=np.int32)


def synthetic_tokens(rows: Rows, vocab_size: int, steps: int, drawn: Draw = draw) -> I32:
    """Tokens [steps done, R]: a function of each row's seed and position, so batching does not change them.

    Stops after a step in which any row drew one of its end_ids, like a real run.
    """
    positions = rows.positions_T
    seeds = [row.seed for row in rows.sampling]
    tokens = drawn(seeds, [int(positions[place]) for place in rows.rows_R], vocab_size, steps)
    if any(rows.end_ids):
        by_row = tokens.T.tolist()
        steps = min([_until_end(row, ids) for row, ids in zip(by_row, rows.end_ids, strict=False)], default=steps)
        tokens = tokens[:steps]
    return tokens


def _until_end(tokens: Sequence[int], end_ids: tuple[int, ...]) -> int:
    ends = (step for step, token in enumerate(tokens, start=1) if token in end_ids)
    return next(ends, len(tokens))


@lru_cache(maxsize=MAX_BLOCKS)
def _block(seed: int, number: int, vocab_size: int) -> tuple[int, ...]:
    return tuple([_token(seed, number * BLOCK + place, vocab_size) for place in range(BLOCK)])


def _token(seed: int, position: int, vocab_size: int) -> int:
    key = _mixed(_mixed(seed + _GOLDEN) + _GOLDEN * (position + 1))
    return int((key >> 11) * 2.0**-53 * vocab_size)


def _mixed(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)

"""Synthetic tokens: what a device without numbers answers, the same on every run.

Knows nothing about time, programs or devices.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from coterie.device import I32, Rows

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the constants of splitmix64
_MASK = 2**64 - 1
BLOCK = 64  # neighbouring tokens that are made at once
KEPT = 1 << 10  # blocks of tokens: a bound on memory, not on use


def synthetic_tokens(rows: Rows, vocab_size: int, steps: int) -> I32:
    """Tokens [steps done, R]: a function of each row's seed and position, so batching does not change them.

    Stops after a step in which any row drew one of its end_ids, like a real run.
    """
    positions = rows.positions_T
    by_row = []
    for row, place in zip(rows.sampling, rows.rows_R, strict=True):
        number, first = divmod(int(positions[place]), BLOCK)
        tokens = _block(row.seed, number, vocab_size)[first : first + steps]
        while len(tokens) < steps:
            number += 1
            tokens += _block(row.seed, number, vocab_size)[: steps - len(tokens)]
        by_row.append(tokens)
    if any(rows.end_ids):
        steps = min([_until_end(tokens, ids) for tokens, ids in zip(by_row, rows.end_ids, strict=False)], default=steps)
        by_row = [tokens[:steps] for tokens in by_row]
    return np.array(by_row, dtype=np.int32).T if by_row else np.zeros((steps, 0), dtype=np.int32)


def _until_end(tokens: tuple[int, ...], end_ids: tuple[int, ...]) -> int:
    ends = (step for step, token in enumerate(tokens, start=1) if token in end_ids)
    return next(ends, len(tokens))


@lru_cache(maxsize=KEPT)
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

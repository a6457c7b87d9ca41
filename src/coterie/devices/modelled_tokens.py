"""Synthetic tokens: what a device without numbers answers, the same on every run.

Knows nothing about time, programs or devices.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from coterie.device import I32, Rows

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # the constants of splitmix64
_MASK = 2**64 - 1
KEPT = 1 << 16  # tokens: a bound on memory, not on use


def synthetic_tokens(rows: Rows, vocab_size: int, steps: int) -> I32:
    """Tokens [steps done, R]: a function of each row's seed and position, so batching does not change them.

    Stops after a step in which any row drew one of its end_ids, like a real run.
    """
    first = [(row.seed, int(rows.positions_T[place])) for row, place in zip(rows.sampling, rows.rows_R, strict=True)]
    drawn = [[_token(seed, position + step, vocab_size) for seed, position in first] for step in range(steps)]
    if any(rows.end_ids):
        ends = (
            step
            for step, tokens in enumerate(drawn, start=1)
            if any(token in ids for token, ids in zip(tokens, rows.end_ids, strict=False))
        )
        drawn = drawn[: next(ends, steps)]
    return np.array(drawn, dtype=np.int32).reshape(len(drawn), len(first))


@lru_cache(maxsize=KEPT)
def _token(seed: int, position: int, vocab_size: int) -> int:
    key = _mixed(_mixed(seed + _GOLDEN) + _GOLDEN * (position + 1))
    return int((key >> 11) * 2.0**-53 * vocab_size)


def _mixed(x: int) -> int:
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    return x ^ (x >> 31)

"""Synthetic tokens: what a device without numbers answers, the same on every run.

Knows nothing about time, programs or devices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coterie.device import I32, Rows

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the constants of splitmix64
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN_1, _MIX_1_1, _MIX_2_1 = int(_GOLDEN), int(_MIX_1), int(_MIX_2)
_MASK = 2**64 - 1
FEW = 16  # tokens


def synthetic_tokens(rows: Rows, vocab_size: int, steps: int) -> I32:
    """Tokens [steps done, R]: a function of each row's seed, position and last token, so batching does not change them.

    Stops after a step in which any row drew one of its end_ids, like a real run.
    """
    if len(rows.rows_R) * steps <= FEW:
        return _few_tokens(rows, vocab_size, steps)
    seeds_R = np.array([row.seed % 2**64 for row in rows.sampling], dtype=np.uint64)
    positions_R = np.array([rows.positions_T[row] for row in rows.rows_R], dtype=np.uint64)
    tokens_R: I32 = np.array([rows.tokens_T[row] for row in rows.rows_R], dtype=np.int32)
    drawn = []
    for _ in range(steps):
        key = _mixed(seeds_R + _GOLDEN * (positions_R + np.uint64(1)))
        key = _mixed(key + _GOLDEN * (tokens_R.astype(np.uint64) + np.uint64(1)))
        tokens_R = ((key >> np.uint64(11)) * 2.0**-53 * vocab_size).astype(np.int32)
        drawn.append(tokens_R)
        positions_R = positions_R + np.uint64(1)
        if any(int(token) in ends for token, ends in zip(tokens_R, rows.end_ids, strict=False)):
            break
    return np.stack(drawn)


def _few_tokens(rows: Rows, vocab_size: int, steps: int) -> I32:
    """The same for a few tokens, in Python's own numbers: arrays cost more than they save."""
    drawn_RS, done = [], steps
    for row, (place, sampling) in enumerate(zip(rows.rows_R, rows.sampling, strict=True)):
        seed, at, token = sampling.seed, int(rows.positions_T[place]), int(rows.tokens_T[place])
        ends, drawn = rows.end_ids[row] if rows.end_ids else (), []
        for step in range(1, done + 1):
            x = (seed + _GOLDEN_1 * (at + step)) & _MASK
            x = ((x ^ (x >> 30)) * _MIX_1_1) & _MASK
            x = ((x ^ (x >> 27)) * _MIX_2_1) & _MASK
            x = ((x ^ (x >> 31)) + _GOLDEN_1 * (token + 1)) & _MASK
            x = ((x ^ (x >> 30)) * _MIX_1_1) & _MASK
            x = ((x ^ (x >> 27)) * _MIX_2_1) & _MASK
            token = int(((x ^ (x >> 31)) >> 11) * 2.0**-53 * vocab_size)
            drawn.append(token)
            if token in ends:
                done = step
                break
        drawn_RS.append(drawn)
    return np.array([drawn[:done] for drawn in drawn_RS], dtype=np.int32).reshape(len(drawn_RS), done).T


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))

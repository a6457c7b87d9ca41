"""Attention biases by distance: ALiBi's slopes, by which scores fall, and T5's buckets, each with a learned bias.

Knows nothing about graphs.
"""

from __future__ import annotations

from math import log

import numpy as np

FARTHEST = 128  # distance in tokens from which the last bucket is used, as in T5 and MPNet


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """For n heads, a power of two, a geometric series from 2^(-8/n); further heads take every second slope of 2n's.

    Source: Press et al. 2022 (arXiv 2108.12409), section 3.

    >>> alibi_slopes(4)
    (0.25, 0.0625, 0.015625, 0.00390625)
    """
    whole = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / whole) for i in range(whole)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / whole) for i in range(num_heads - whole)]
    return tuple(slopes)


def distance_buckets(num_buckets: int) -> tuple[int, ...]:
    """The bucket for each position of a key relative to the token, from -FARTHEST to FARTHEST.

    Half of the buckets are for earlier keys. Within a half, short distances have a bucket each, longer ones share
    buckets by logarithm.

    Float32 as in transformers, since distances lie exactly on boundaries. Source: Raffel et al. 2020 (arXiv
    1910.10683), section 2.1, and MPNet's code.

    >>> distance_buckets(8)[FARTHEST - 3 : FARTHEST + 4]
    (2, 2, 1, 0, 5, 6, 6)
    """
    half = num_buckets // 2
    alone = half // 2
    far = np.arange(FARTHEST + 1, dtype=np.float32)
    share = np.log(np.maximum(far, 1) / np.float32(alone)) / np.float32(log(FARTHEST / alone))
    shared = np.minimum(alone + (share * np.float32(half - alone)).astype(np.int64), half - 1)
    bucket = np.where(far < alone, far.astype(np.int64), shared)
    before, behind = bucket[::-1], half + bucket[1:]
    return (*before.tolist(), *behind.tolist())

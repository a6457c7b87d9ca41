"""ALiBi: the slope of each head by which scores fall with distance. Press et al. 2022 (arXiv 2108.12409), section 3.

Knows nothing about graphs.
"""

from __future__ import annotations


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """A geometric series from 2^(-8/n) on for n heads, a power of two; others come from the series of 2n, every second.

    >>> alibi_slopes(4)
    (0.25, 0.0625, 0.015625, 0.00390625)
    """
    whole = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / whole) for i in range(whole)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / whole) for i in range(num_heads - whole)]
    return tuple(slopes)

"""Fits of few constants to published values, and what they say about a value that was kept out.

Knows nothing about what is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np


def least_squares(matrix: Sequence[Sequence[float]], target: Sequence[float], scale: Sequence[float]) -> list[float]:
    """The x that makes (matrix @ x - target) / scale smallest in squares. Raises ValueError if several x do."""
    weights = 1.0 / np.asarray(scale, dtype=float)
    a, b = np.asarray(matrix, dtype=float) * weights[:, None], np.asarray(target, dtype=float) * weights
    found, _, rank, _ = np.linalg.lstsq(a, b, rcond=None)
    if rank < a.shape[1]:
        raise ValueError(f"{a.shape[1]} constants cannot be told from {a.shape[0]} values of rank {rank}")
    return [float(x) for x in found]


def left_out_error(matrix: Sequence[Sequence[float]], target: Sequence[float], scale: Sequence[float]) -> float | None:
    """Median over rows of the error, relative to `scale`, of a row that the fit did not see.

    Rows without which the constants cannot be told apart are passed over; None if that is all of them.
    """
    errors = []
    for out in range(len(target)):
        keep = [i for i in range(len(target)) if i != out]
        try:
            x = least_squares([matrix[i] for i in keep], [target[i] for i in keep], [scale[i] for i in keep])
        except ValueError:
            continue
        miss = sum(a * b for a, b in zip(matrix[out], x, strict=True)) - target[out]
        errors.append(abs(miss) / scale[out])
    return median(errors) if errors else None

"""Position-dependent changes to heads: rope, forward and inverse, and the growth of queries.

Knows nothing about graphs or what is rotated.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coterie.graph.ir import Op
from coterie.graph.step import Array


def rotate(op: Op, x: list[Any], way: int = 1) -> Array:
    """Heads x[0] [T, H, C] at positions x[1] [T], rotated by frequencies x[2]; the inverse if `way` is -1."""
    angles = x[1].astype(np.float32)[:, None, None] * x[2]
    cos, sin = (np.asarray(f(angles) * np.float32(op.number("scale")), np.float32) for f in (np.cos, np.sin))
    first, second = _pairs(op, len(x[2]))
    a, b, y = x[0][..., first], x[0][..., second], x[0].copy()
    y[..., first] = a * cos - way * b * sin
    y[..., second] = b * cos + way * a * sin
    return np.asarray(y, np.float32)


def grown(op: Op, q: Array, positions: Array) -> Array:
    """Queries [T, H, C] of an attention, scaled up with their position; unchanged without growth."""
    if not op.growth:
        return q
    factors = 1.0 + op.growth * np.log(1.0 + positions // op.growth_step)
    return np.asarray(q * factors.astype(np.float32)[:, None, None], np.float32)


def _pairs(op: Op, count: int) -> tuple[slice, slice]:
    """The first and the second channel of each pair."""
    if op.interleaved:
        return slice(0, 2 * count, 2), slice(1, 2 * count, 2)
    return slice(0, count), slice(count, 2 * count)

"""Which tokens alone have sums of groups that are scaled once, and how far such a sum may be from the exact one.

Knows nothing about how a kernel is called.
"""

import numpy as np
from tests.device.native import Weight

from coterie.core.dtypes import BLOCK_WEIGHTS, PACKED, DType, to_f32

UNIT = 2.0**-24  # of one rounding to float32, relative
TREE = 3  # additions in which 8 lanes become one
PAIR_WEIGHTS, LANES = 64, 8  # of int4: what becomes one sum in each lane


def scales_once(isa: str, dtype: DType, T: int, K: int) -> bool:
    """True where the sums of a group are scaled, and not each weight: such a token has bits of its own."""
    return isa == "avx2" and dtype.is_packed and T == 1 and K % BLOCK_WEIGHTS == 0


def rounding_bound(x_K: np.ndarray, w: Weight) -> np.ndarray:
    """The most that the rounding of float32 can take a row's dot product from the exact one [N]. K is in whole blocks.

    A lane of int8 adds 16 products a group, each sum rounded, then a scaled sum per group; at last come the lanes.
    A lane of int4 adds 8 numbers that are 0 to 15, times x, to -8 times the sum of those x: with S the sum of their
    magnitudes, 7 additions are each off by up to 8 units of S and 8 multiply-adds by up to (8 + 15) units.
    """
    (N, K), x = w.values.shape, np.abs(x_K).astype(np.float64)
    products = np.abs(w.values).astype(np.float64) @ x
    if w.dtype is DType.Q8:
        groups, within = -(-K // PACKED[DType.Q8][1]), 16 * products
    else:
        per_lane, q_off = PAIR_WEIGHTS // LANES, 8
        units = (per_lane - 1) * q_off + per_lane * (q_off + 15)
        groups, per_group = -(-K // PAIR_WEIGHTS), x.reshape(-1, BLOCK_WEIGHTS).sum(axis=1)
        within = units * (np.abs(scales_of(w)) @ per_group)
    return np.asarray(1.001 * UNIT * (within + (groups + TREE) * products), np.float64).reshape(N)


def scales_of(w: Weight) -> np.ndarray:
    """The scales of a packed matrix [N, groups]."""
    (N, K), group = w.values.shape, PACKED[w.dtype][1]
    rows = w.memory.reshape(N, w.dtype.row_bytes(K))
    stored = np.ascontiguousarray(rows[:, rows.shape[1] - 2 * -(-K // group) :])
    return to_f32(stored.view("<u2").astype(np.uint16), DType.BF16).astype(np.float64)

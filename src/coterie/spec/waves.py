"""A model of decode attention with grouped heads: thread blocks in waves on a GPU's multiprocessors.

    parts    of a context, one thread block each: context / 128, at most sqrt(8 context / 128), and fewer if blocks
             would take more than 8 waves; the rule of TensorRT-LLM (computeMultiBlockCount of its XQA kernels)
    waves    sequences * kv heads * parts / multiprocessors, rounded up
    time     fixed + waves * start of a block + effort / share

Fixed, start and share are fitted to a GPU's rows, least squares of relative errors. Knows nothing about interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, sqrt

import numpy as np

from coterie.spec.kernel import Kernel

PART_TOKENS = 128  # minimal context length per part
MAX_WAVES = 8
_ROUNDING = 1e-6


def parts(batch: int, kv_heads: int, context: int, multiprocessors: int) -> int:
    """Number of parts that a context is split into; there is one thread block per part and kv head."""
    cut = context // PART_TOKENS
    cut = max(1, min(cut, round(sqrt(MAX_WAVES * cut))))
    over = batch * kv_heads * cut / multiprocessors / MAX_WAVES
    return max(1, floor(cut / over)) if over > 1 else cut


@dataclass(frozen=True, slots=True)
class Blocks:
    """Fitted times of thread blocks: `fixed_s` per kernel, `start_s` per wave, effort at `share` of the peak."""

    multiprocessors: int
    fixed_s: float
    start_s: float
    share: float

    @classmethod
    def fit(cls, multiprocessors: int, points: Sequence[tuple[Kernel, float, float]]) -> Blocks | None:
        """Fit (kernel, effort, seconds) triples; None if there are too few, or the fit would exceed the peak."""
        if len(points) < 4:
            return None
        terms = [
            (1.0 / seconds, cls.waves_of(kernel, multiprocessors) / seconds, effort_s / seconds)
            for kernel, effort_s, seconds in points
        ]
        used, found = [0, 1, 2], np.zeros(3)
        while used:  # drop terms whose coefficient would be negative
            found[:] = 0.0
            found[used] = np.linalg.lstsq(np.array(terms)[:, used], np.ones(len(points)), rcond=None)[0]
            if found.min() >= 0:
                break
            used.remove(int(found.argmin()))
        fixed_s, start_s, rate = (float(value) for value in found)
        return cls(multiprocessors, fixed_s, start_s, min(1.0, 1.0 / rate)) if rate > 1 - _ROUNDING else None

    @staticmethod
    def waves_of(kernel: Kernel, multiprocessors: int) -> int:
        """Number of waves of a decode attention's thread blocks."""
        _, kv_heads, _, batch, context = kernel.shape
        blocks = batch * kv_heads * parts(batch, kv_heads, context, multiprocessors)
        return ceil(blocks / multiprocessors)

    def seconds(self, kernel: Kernel, effort_s: float) -> float:
        """Time of a decode attention whose effort at the peaks is `effort_s`."""
        return self.fixed_s + self.waves_of(kernel, self.multiprocessors) * self.start_s + effort_s / self.share

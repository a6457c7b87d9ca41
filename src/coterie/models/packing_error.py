"""The error that packing introduces: running sums over the tensors of one kind, and the resulting figures.

Knows nothing about how weights are packed, or where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import DType

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class KindError:
    """The packing error of one kind of tensor, over all layers in which it has this type.

    `rms_error` and `max_error` are differences of weights relative to the kind's root mean square; `bits` per weight
    include scales and padding.
    """

    kind: str
    dtype: DType
    num_tensors: int
    num_weights: int
    bits: float
    rms_error: float
    max_error: float


@dataclass(slots=True)
class ErrorSums:
    """Running sums over the tensors of one kind and type; callers increment `num_tensors` once per tensor."""

    dtype: DType
    num_tensors: int = 0
    num_weights: int = 0
    num_bytes: int = 0
    squares: float = 0.0
    error_squares: float = 0.0
    worst: float = 0.0

    def add(self, before: F32, after: F32, num_bytes: int) -> None:
        """Add a piece of a tensor: its values before and after packing, and its size when packed."""
        error = np.abs(after - before)
        self.num_weights += before.size
        self.num_bytes += num_bytes
        self.squares += float(np.einsum("nk,nk", before, before, dtype=np.float64))
        self.error_squares += float(np.einsum("nk,nk", error, error, dtype=np.float64))
        self.worst = max(self.worst, float(error.max(initial=0.0)))

    def result(self, kind: str) -> KindError:
        """The error figures."""
        rms = (self.squares / self.num_weights) ** 0.5 or 1.0  # 0 if all weights are zeros, which lose nothing
        rms_error = (self.error_squares / self.num_weights) ** 0.5
        bits = 8 * self.num_bytes / self.num_weights
        return KindError(kind, self.dtype, self.num_tensors, self.num_weights, bits, rms_error / rms, self.worst / rms)

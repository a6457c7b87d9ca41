"""A kernel that was measured, or is asked about: its family and shape, and what follows from them.

Knows nothing about machines or speeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

HEADS = 32  # of measured attention; x counts batches of so many heads
ELEMENT_WISE = "element-wise"
GEMM, GEMM_FP8, GEMM_INT8, GEMM_INT4 = "gemm", "gemm-fp8", "gemm-int8", "gemm-int4"
# Bytes of a weight. Those of FP8 meet activations of FP8, by arithmetic of 8 bits; whole numbers meet 16 bits.
GEMMS = {GEMM: 2.0, GEMM_FP8: 1.0, GEMM_INT8: 1.0, GEMM_INT4: 0.5}
DECODE = "attention-decode"


@dataclass(frozen=True, slots=True)
class Kernel:
    """What was measured, or is asked for. `shape` is m, n, k of a gemm; heads, kv heads, channels, batch, length of
    attention (tokens in prefill, context in decode, both of one sequence); bytes and tokens of an element-wise one.

    `planes` of a decode step's cache come from memory: keys and values, or 1 where a bench gave both the same memory.
    """

    family: str
    shape: tuple[int, ...]
    planes: int = 2

    @property
    def is_gemm(self) -> bool:
        """A product with weights of any type."""
        return self.family in GEMMS

    @property
    def grouped(self) -> bool:
        """Decode attention with fewer kv heads than query heads."""
        return self.family == DECODE and self.variant > 1

    @property
    def variant(self) -> int:
        """Rows of one variant are near each other: query heads for each kv head; 0 for gemm."""
        return max(1, self.shape[0] // self.shape[1]) if len(self.shape) == 5 else 0

    @property
    def x(self) -> float:
        """The work at one y: weights of a gemm, batch times heads of attention."""
        if self.is_gemm:
            return float(self.shape[1] * self.shape[2])
        return self.shape[3] * self.shape[0] * self.shape[2] / (HEADS * 128)

    @property
    def work(self) -> tuple[str | int, ...]:
        """All but y."""
        return (self.family, self.planes, *(self.shape[1:] if self.is_gemm else self.shape[:4]))

    @property
    def form(self) -> float:
        """log(n / k) of a gemm: as much work has more tiles of output, or longer sums. 0 for others."""
        return log(self.shape[1] / self.shape[2]) if self.is_gemm else 0.0

    @property
    def y(self) -> float:
        """Tokens or context."""
        return float(self.shape[0 if self.is_gemm else {ELEMENT_WISE: 1}.get(self.family, 4)])

    def at(self, y: float) -> Kernel:
        """The same work with as many tokens or as long a context."""
        where = 0 if self.is_gemm else 4
        return Kernel(self.family, (*self.shape[:where], round(y), *self.shape[where + 1 :]), self.planes)

    @property
    def flops(self) -> float:
        """Multiplies and adds; causal pairs only."""
        if self.family == ELEMENT_WISE:
            return 0.0
        if self.is_gemm:
            m, n, k = self.shape
            return 2.0 * m * n * k
        heads, _, channels, batch, length = self.shape
        pairs = length * (length + 1) / 2 if self.family == "attention-prefill" else length
        return 4.0 * channels * heads * batch * pairs

    @property
    def bytes(self) -> float:
        """Operands and result once, two bytes each but for weights of fewer."""
        if self.family == ELEMENT_WISE:
            return float(self.shape[0])
        if self.is_gemm:
            m, n, k = self.shape
            return 2.0 * (m * k + m * n) + GEMMS[self.family] * n * k
        heads, kv_heads, channels, batch, length = self.shape
        rows = length if self.family == "attention-prefill" else 1
        return 2.0 * channels * batch * (self.planes * kv_heads * length + 2 * heads * rows)

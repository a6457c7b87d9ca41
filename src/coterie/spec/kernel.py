"""A kernel, measured or to be estimated: its family and shape, and the quantities derived from them.

Knows nothing about machines or speeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

HEADS = 32  # heads of the measured attention; x is normalised to them
ELEMENT_WISE = "element-wise"
GEMM, GEMM_FP8, GEMM_INT8, GEMM_INT4 = "gemm", "gemm-fp8", "gemm-int8", "gemm-int4"
# Bytes per weight. FP8 weights are multiplied by FP8 activations in 8-bit arithmetic, integers by 16-bit activations.
GEMMS = {GEMM: 2.0, GEMM_FP8: 1.0, GEMM_INT8: 1.0, GEMM_INT4: 0.5}
DECODE = "attention-decode"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of a family.

    `shape`: (m, n, k) of a GEMM; (heads, kv heads, channels, batch, length) of attention, where length is tokens in
    prefill and context in decode, per sequence; (bytes, tokens) of an element-wise kernel.
    `planes`: parts of the KV cache that decode reads from memory: 2, or 1 if a benchmark used one buffer for both.
    """

    family: str
    shape: tuple[int, ...]
    planes: int = 2

    @property
    def is_gemm(self) -> bool:
        """A GEMM with weights of any type."""
        return self.family in GEMMS

    @property
    def grouped(self) -> bool:
        """Decode attention with fewer kv heads than query heads."""
        return self.family == DECODE and self.variant > 1

    @property
    def variant(self) -> int:
        """Query heads per kv head for attention, 0 for GEMMs; measurements of one variant are comparable."""
        return max(1, self.shape[0] // self.shape[1]) if len(self.shape) == 5 else 0

    @property
    def x(self) -> float:
        """Work per unit of y: weights of a GEMM; batch times heads of attention (normalised to 32 heads of 128)."""
        if self.is_gemm:
            return float(self.shape[1] * self.shape[2])
        return self.shape[3] * self.shape[0] * self.shape[2] / (HEADS * 128)

    @property
    def work(self) -> tuple[str | int, ...]:
        """Everything but y."""
        return (self.family, self.planes, *(self.shape[1:] if self.is_gemm else self.shape[:4]))

    @property
    def form(self) -> float:
        """log(n / k) of a GEMM: more output tiles, or longer reductions, for the same work. 0 for others."""
        return log(self.shape[1] / self.shape[2]) if self.is_gemm else 0.0

    @property
    def y(self) -> float:
        """Tokens, or context length in decode."""
        return float(self.shape[0 if self.is_gemm else {ELEMENT_WISE: 1}.get(self.family, 4)])

    def at(self, y: float) -> Kernel:
        """The same kernel with another y."""
        where = 0 if self.is_gemm else 4
        return Kernel(self.family, (*self.shape[:where], round(y), *self.shape[where + 1 :]), self.planes)

    @property
    def flops(self) -> float:
        """Multiplications and additions; for prefill, causal pairs only."""
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
        """Operands and results, each moved once; two bytes per element, except for narrower weights."""
        if self.family == ELEMENT_WISE:
            return float(self.shape[0])
        if self.is_gemm:
            m, n, k = self.shape
            return 2.0 * (m * k + m * n) + GEMMS[self.family] * n * k
        heads, kv_heads, channels, batch, length = self.shape
        rows = length if self.family == "attention-prefill" else 1
        return 2.0 * channels * batch * (self.planes * kv_heads * length + 2 * heads * rows)

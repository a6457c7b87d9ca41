"""A kernel that only reads memory, to measure a GPU's read bandwidth.

Knows nothing about what the memory holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WARPS = 4


@triton.jit
def _read(words, sums, chunks, EACH: tl.constexpr, UNROLL: tl.constexpr):
    total = tl.zeros([EACH], tl.int32)
    for chunk in tl.range(tl.program_id(0), chunks, tl.num_programs(0), loop_unroll_factor=UNROLL):
        total += tl.load(words + chunk * EACH + tl.arange(0, EACH))
    tl.store(sums + tl.program_id(0), tl.sum(total, axis=0))


def read(words: torch.Tensor, sums: torch.Tensor, programs: int, each: int, unroll: int = 2) -> None:
    """Read all words (int32) once: programs take turns with chunks of `each` words and write their sums to `sums`.

    `each` is a power of two that divides the number of words, which is below 2^31; sums: int32 [>= programs].
    """
    _read[(programs,)](words, sums, words.numel() // each, EACH=each, UNROLL=unroll, num_warps=WARPS)

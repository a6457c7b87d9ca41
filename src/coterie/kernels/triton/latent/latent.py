"""Tiles for the products of latent attention, in which each head has its own rows of a weight.

Heads have few rows (128 or so for keys, as many for values), and there are 16 heads or more: a program has one head and
a part of its rows or columns, as large as registers allow.
Knows nothing about what is multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton.language as tl

from coterie.kernels.triton.rows import Call
from coterie.kernels.triton.tiles import MIN_DOT, power_of_two

MAX_WEIGHTS = 8192  # weights of a program with few tokens, in float32: 64 per thread
WARPS, STAGES = 4, 3
MANY_TOKENS = 64  # per tile: rows of a product on Hopper's tensor cores
OUTPUTS, STEP = 128, 64  # tiles of many tokens: outputs per token, and products that each adds at once
OUTPUTS_FLOAT32, STEP_FLOAT32 = 32, 32  # without tensor cores: operands stay in registers


@dataclass(frozen=True, slots=True)
class HeadTile:
    """TOKENS x OUTPUTS outputs of a head, each a sum of `inner` products, INNER at once."""

    tokens: int
    outputs: int
    inner: int

    @staticmethod
    def few(call: Call, outputs: int, inner: int) -> HeadTile:
        """Up to four tokens in float32: the whole sum at once, for as many outputs as registers allow."""
        every = power_of_two(inner)
        return HeadTile(
            power_of_two(call.bucket.tokens), min(max(MAX_WEIGHTS // every, 1), power_of_two(outputs)), every
        )

    @staticmethod
    def many(call: Call, outputs: int, inner: int, wide: bool) -> HeadTile:
        """More tokens, on tensor cores; `wide` is float32."""
        max_outputs, step = (OUTPUTS_FLOAT32, STEP_FLOAT32) if wide else (OUTPUTS, STEP)
        sizes = (call.bucket.tokens, MANY_TOKENS // (1 + wide)), (outputs, max_outputs), (inner, step)
        return HeadTile(*(max(min(power_of_two(size), most), MIN_DOT) for size, most in sizes))

    def constants(self) -> dict[str, int]:
        """Compile-time parameters."""
        return {"TOKENS": self.tokens, "OUTPUTS": self.outputs, "INNER": self.inner, "num_warps": WARPS}


def is_few(call: Call) -> bool:
    """Whether a step has so few tokens that they are multiplied in float32."""
    return call.bucket.tokens <= call.tiles.few_tokens


def is_wide(call: Call) -> bool:
    """Whether the weight is float32, which tensor cores would round."""
    return call.type("weight") is tl.float32

"""Flops that the costs of several ops are made of.

Knows nothing about ops.
"""

from __future__ import annotations

NORM_FLOPS = 4  # of each number: its square, the sum of these, and times a factor and the weight
ROTATED_FLOPS = 3  # of each number: two products and a sum
SOFTMAX_FLOPS = 5  # of each score: its scale, the largest, the difference, the power and the sum

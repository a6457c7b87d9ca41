"""Flops that the costs of several ops are made of.

Knows nothing about which op has which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from coterie.core.shapes import Sizes, numbers_in
from coterie.graph.ir import Graph, Op

NORM_FLOPS = 4  # of each number: its square, the sum of these, and times a factor and the weight
ROTATED_FLOPS = 3  # of each number: two products and a sum
SOFTMAX_FLOPS = 5  # of each score: its scale, the largest, the difference, the power and the sum

Flops: TypeAlias = Callable[[Graph, Op, Sizes], int]


def per_state_number(flops: int) -> Flops:
    """So many for each token and number of a layer's recurrent state, the last operand."""
    return lambda graph, op, sizes: flops * sizes.T * numbers_in(graph.values[op.inputs[-1]].shape[1:])


def per_output(flops: int) -> Flops:
    """So many for each number that is put out."""
    return lambda graph, op, sizes: flops * sizes.count(graph.values[op.outputs[0]].shape)

"""Flop counts shared by the costs of several ops.

Knows nothing about which ops use them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from coterie.core.shapes import Sizes, numbers_in
from coterie.graph.ir import Graph, Op

NORM_FLOPS = 4  # per number: square, sum, product with the inverse root, product with the weight
ROTATED_FLOPS = 3  # per number: two products and a sum
SOFTMAX_FLOPS = 5  # per score: scale, max, exp, sum, divide

Flops: TypeAlias = Callable[[Graph, Op, Sizes], int]


def per_state_number(flops: int) -> Flops:
    """`flops` for each token and each number of a layer's recurrent state (the last operand)."""
    return lambda graph, op, sizes: flops * sizes.T * numbers_in(graph.values[op.inputs[-1]].shape[1:])


def per_output(flops: int) -> Flops:
    """`flops` for each number of the output."""
    return lambda graph, op, sizes: flops * sizes.count(graph.values[op.outputs[0]].shape)

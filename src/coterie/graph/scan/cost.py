"""Flops of the ops of selective state spaces. Bytes of their states are counted with those of delta nets.

Knows nothing about machines, or about the costs of other ops (cost.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coterie.core.shapes import Sizes, numbers_in
from coterie.graph.flops import NORM_FLOPS
from coterie.graph.ir import Graph, Op
from coterie.graph.scan.ops import GROUP_NORM, MUL_ROW, SCAN

# Of each number of a head's matrix: its decay, what is written and what is read (a product and a sum each).
_PER_NUMBER = 5


def _scan_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """The steps and what passes by are lost in what a matrix takes."""
    return _PER_NUMBER * sizes.T * numbers_in(graph.values[op.inputs[-1]].shape[1:])


def _per_number(flops: int) -> Callable[[Graph, Op, Sizes], int]:
    return lambda graph, op, sizes: flops * sizes.count(graph.values[op.outputs[0]].shape)


SCAN_FLOPS: Mapping[str, Callable[[Graph, Op, Sizes], int]] = {
    SCAN: _scan_flops,
    GROUP_NORM: _per_number(NORM_FLOPS),
    MUL_ROW: _per_number(1),
}

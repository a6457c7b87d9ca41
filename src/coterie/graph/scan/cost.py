"""Flops of the ops of selective state spaces. Bytes of their states are counted with those of delta nets.

Knows nothing about machines, or about the costs of other ops (cost.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.core.shapes import Sizes, numbers_in
from coterie.graph.flops import NORM_FLOPS, Flops, per_output
from coterie.graph.ir import Graph, Op
from coterie.graph.scan.ops import GROUP_NORM, MUL_ROW, SCAN

# Of each number of a head's matrix: its decay, what is written and what is read (a product and a sum each).
_PER_NUMBER = 5


def _scan_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """The steps and what passes by are lost in what a matrix takes."""
    return _PER_NUMBER * sizes.T * numbers_in(graph.values[op.inputs[-1]].shape[1:])


SCAN_FLOPS: Mapping[str, Flops] = {
    SCAN: _scan_flops,
    GROUP_NORM: per_output(NORM_FLOPS),
    MUL_ROW: per_output(1),
}

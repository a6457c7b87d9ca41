"""Flops of the ops of gated delta nets, and the bytes of the states that they read and write.

Knows nothing about machines, or about the costs of other ops (cost.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coterie.core.shapes import Sizes, numbers_in
from coterie.graph.delta_net.ops import CONV, DELTA, PARTS, PLAIN, STATES
from coterie.graph.flops import Flops, per_output, per_state_number
from coterie.graph.ir import Graph, Op

# Per number of a head's matrix: decay, k S, the update (a product and a sum each) and q S. The normalisation of q and k
# and the two gates are negligible in comparison.
_PER_NUMBER = 7


def _conv_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """Two per tap, one for a bias, four for silu."""
    taps = numbers_in(graph.values[op.inputs[1]].shape[-1:])
    return (2 * taps + bool(op.inputs[2]) + (0 if PLAIN in op.attrs else 4)) * sizes.count(
        graph.values[op.outputs[0]].shape
    )


def states_bytes(graph: Graph, ops: Iterable[Op], sizes: Sizes) -> int:
    """Bytes of recurrent state that these ops read, and write as well: once per sequence and step."""
    found = 0
    for op in ops:
        if op.inputs and op.inputs[-1] in STATES:
            state = graph.values[op.inputs[-1]]
            found += sizes.B * numbers_in(state.shape[1:]) * state.dtype.size_bytes
    return found


DELTA_FLOPS: Mapping[str, Flops] = {
    CONV: _conv_flops,
    DELTA: per_state_number(_PER_NUMBER),
    PARTS: per_output(0),
}

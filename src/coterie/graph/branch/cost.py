"""What layers with branches cost: flops of the branches that tokens take, bytes of those that any of them takes.

Which branches these are is not known before a step is run: each token is taken to choose alike among all of them, and
by itself. What a trained model chooses is more alike, so it reads somewhat less.
Knows nothing about machines.
"""

from __future__ import annotations

from collections.abc import Mapping

from coterie.core.shapes import Sizes, trailing
from coterie.graph.branch.ops import (
    ADD_BIAS,
    BOTH_UP,
    CHOOSE,
    CLIPPED,
    DOWN,
    GELU_UP,
    GROUP_BEST,
    GROUPS,
    TOP_K,
    matrices_of,
)
from coterie.graph.flops import Flops
from coterie.graph.ir import Graph, Op, Value

SCORES_FLOPS = 4  # max, exp, sum, divide; or for a sigmoid sign, exp, add, divide
SILU_MUL_FLOPS, GELU_MUL_FLOPS = 5, 9
CLIPPED_FLOPS = 12  # two biases, three comparisons, a factor, a sigmoid, a sum and two products


def branches_read(tokens: int, branches: int, taken: int) -> float:
    """How many of the branches are taken by at least one of so many tokens, in the mean: E (1 - (1 - A / E) ** T)."""
    return float(branches * (1 - (1 - taken / branches) ** tokens))


def matrix_bytes(op: Op, matrix: Value, sizes: Sizes) -> int:
    """Bytes that an op reads of a matrix of one of its branches, or of biases of all, in the mean over these.

    What is but added is looked up by each token.
    """
    if op.kind == ADD_BIAS:
        return sizes.T * op.integer(TOP_K) * matrix.dtype.row_bytes(trailing(matrix.shape))
    branches = len(matrices_of(op.kind, op.inputs)) // (2 if op.kind in BOTH_UP else 1)
    whole = matrix.dtype.tensor_bytes([sizes.of(dim) for dim in matrix.shape])
    return round(whole * branches_read(sizes.T, branches, op.integer(TOP_K)) / branches)


def _choose_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """The scores, their bias, and a comparison of each for each that is taken, in its group and in all."""
    of_group = op.integer(GROUP_BEST) if GROUPS in op.attrs else 0
    each = SCORES_FLOPS + bool(op.inputs[1]) + len(op.inputs[2:]) + of_group + op.integer(TOP_K)
    return each * sizes.count(graph.values[op.outputs[0]].shape)


def _gate_up_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    columns = trailing(graph.values[op.inputs[0]].shape)
    behind = {CLIPPED: CLIPPED_FLOPS, GELU_UP: GELU_MUL_FLOPS}.get(op.kind, SILU_MUL_FLOPS)
    return (4 * columns + behind) * sizes.count(graph.values[op.outputs[0]].shape)


def _down_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """Two for each product, and two to weigh and add up what comes out of each branch."""
    taken = op.integer(TOP_K)
    columns = trailing(graph.values[op.inputs[0]].shape) // taken
    return taken * (2 * columns + 2) * sizes.count(graph.values[op.outputs[0]].shape)


def _add_bias_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    return 2 * op.integer(TOP_K) * sizes.count(graph.values[op.outputs[0]].shape)


BRANCH_FLOPS: Mapping[str, Flops] = {
    CHOOSE: _choose_flops,
    **dict.fromkeys(BOTH_UP, _gate_up_flops),
    ADD_BIAS: _add_bias_flops,
    DOWN: _down_flops,
}

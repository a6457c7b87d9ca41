"""Cost of layers with branches: flops for each token's branches, bytes for those that at least one token takes.

Which branches these are is not known before a step runs, so tokens are assumed to choose uniformly and independently.
The choices of a trained model are correlated, so it reads somewhat less.
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

SCORES_FLOPS = 4  # softmax: max, exp, sum, divide; sigmoid: sign, exp, add, divide
SILU_MUL_FLOPS, GELU_MUL_FLOPS = 5, 9
CLIPPED_FLOPS = 12  # two biases, three comparisons, a factor, a sigmoid, a sum and two products


def branches_read(tokens: int, branches: int, taken: int) -> float:
    """Expected number of branches taken by at least one of `tokens` tokens: E (1 - (1 - A / E) ** T)."""
    return float(branches * (1 - (1 - taken / branches) ** tokens))


def matrix_bytes(op: Op, matrix: Value, sizes: Sizes) -> int:
    """Expected bytes that an op reads of one branch's matrix, averaged over branches, or of the biases of all.

    Biases that are only added (ADD_BIAS) are gathered per token.
    """
    if op.kind == ADD_BIAS:
        return sizes.T * op.integer(TOP_K) * matrix.dtype.row_bytes(trailing(matrix.shape))
    branches = len(matrices_of(op.kind, op.inputs)) // (2 if op.kind in BOTH_UP else 1)
    whole = matrix.dtype.tensor_bytes([sizes.of(dim) for dim in matrix.shape])
    return round(whole * branches_read(sizes.T, branches, op.integer(TOP_K)) / branches)


def _choose_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """Scores, bias, factors, and one comparison per score for each selection, within its group and overall."""
    of_group = op.integer(GROUP_BEST) if GROUPS in op.attrs else 0
    each = SCORES_FLOPS + bool(op.inputs[1]) + len(op.inputs[2:]) + of_group + op.integer(TOP_K)
    return each * sizes.count(graph.values[op.outputs[0]].shape)


def _gate_up_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    columns = trailing(graph.values[op.inputs[0]].shape)
    activation = {CLIPPED: CLIPPED_FLOPS, GELU_UP: GELU_MUL_FLOPS}.get(op.kind, SILU_MUL_FLOPS)
    return (4 * columns + activation) * sizes.count(graph.values[op.outputs[0]].shape)


def _down_flops(graph: Graph, op: Op, sizes: Sizes) -> int:
    """Two per product, and two to weigh and sum the output of each branch."""
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

"""The ops of layers with branches (the experts of a mixture inside one model), of which each token takes a few.

There are E branches with F hidden units each. A token takes A of them (top_k), in ascending order: those with a nonzero
weight. Operands marked + are repeated for each branch. Knows nothing about which families have such layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from coterie.graph.ir import Op
from coterie.graph.opspec import OpSpec

T = TypeVar("T")

CHOOSE, GATE_UP, DOWN = "choose_branches", "branch_gate_up", "branch_down"
CLIPPED, ADD_BIAS = "branch_gate_up_clipped", "add_branch_bias"
GELU_UP = "branch_gate_up_gelu"
TOP_K = "top_k"  # how many branches a token takes
SCORES, SIGMOID = "scores", "sigmoid"  # how logits become scores; softmax if the attribute is absent
MIN_SUM = "least_sum"  # lower bound of the sum by which normalised weights are divided
ADDED_SUM = "added_sum"  # added to that sum
GROUPS, TAKEN_GROUPS = "groups", "taken_groups"  # groups of equal size; how many of them a token may use
GROUP_BEST = "group_best"  # a group is ranked by the sum of this many best branches: 1 or 2
ALPHA, LIMIT = "alpha", "limit"  # parameters of a clipped gate
BOTH_UP = (GATE_UP, CLIPPED, GELU_UP)
MATRIX_READERS = (*BOTH_UP, DOWN)
TAKEN_READERS = (*MATRIX_READERS, ADD_BIAS)  # ops that read only the weights of branches taken
MATRICES_FROM = 2  # operand position of their first branch matrix
_BIASES = 2  # operands after the matrices of CLIPPED

_GROUPED = ("groups?", "taken_groups?", "group_best?")
BRANCH_OPS: dict[str, OpSpec] = {
    CHOOSE: OpSpec(
        "y = scale * scores for the top_k largest of a row (ties: the lowest index), else 0; scores: softmax or "
        "sigmoid of logits; normalise 1: divided by max(sum of those taken, least_sum) + added_sum. The bias is for "
        "ranking only. With groups, only branches of the taken_groups best groups compete; a group is ranked by the "
        "sum of its group_best largest scores (ties: the lowest index). factors multiply the result per branch",
        ("logits:TE", "bias?:E", "factors??:E"),
        ("y:TE",),
        (TOP_K, "normalise", "scale?", "scores?", "least_sum?", "added_sum?", *_GROUPED),
    ),
    GATE_UP: OpSpec(
        "y = silu(x @ gate.T) * (x @ up.T) for each branch that a token takes; rounding as in linear",
        ("x:TD", "weights:TE", "gate+:FD", "up+:FD"),
        ("y:TAF",),
        (TOP_K, "rounding?"),
    ),
    GELU_UP: OpSpec(
        "y = gelu(x @ gate.T) * (x @ up.T) for each branch that a token takes; rounding as in linear",
        ("x:TD", "weights:TE", "gate+:FD", "up+:FD"),
        ("y:TAF",),
        (TOP_K, "form", "rounding?"),
    ),
    CLIPPED: OpSpec(
        "y = (u + 1) * g * sigmoid(alpha * g) for each branch that a token takes; g = min(x @ gate.T + gate_bias, "
        "limit), u = clip(x @ up.T + up_bias, -limit, limit); rounding as in linear",
        ("x:TD", "weights:TE", "gate+:FD", "up+:FD", "gate_bias:EF", "up_bias:EF"),
        ("y:TAF",),
        (TOP_K, ALPHA, LIMIT, "rounding?"),
    ),
    ADD_BIAS: OpSpec(
        "y = x + the sum of weight * bias over the branches that a token takes",
        ("x:TD", "weights:TE", "bias:ED"),
        ("y:TD",),
        (TOP_K,),
    ),
    DOWN: OpSpec(
        "y = the sum of weight * (x @ down.T) over the branches that a token takes; rounding as in linear",
        ("x:TAF", "weights:TE", "down+:DF"),
        ("y:TD",),
        (TOP_K, "rounding?"),
    ),
}


def choice_of(op: Op) -> dict[str, int | float]:
    """The parameters of a CHOOSE op as numbers; 0 for an absent attribute (scale: 1)."""
    whole = (TOP_K, "normalise", GROUPS, TAKEN_GROUPS, GROUP_BEST)
    numbers: dict[str, int | float] = {name: int(op.attrs.get(name, 0)) for name in whole}
    sums = {name: float(op.attrs.get(name, 0)) for name in (MIN_SUM, ADDED_SUM)}
    return numbers | {"scale": op.scale, SIGMOID: int(SCORES in op.attrs), **sums}


def matrices_of(kind: str, operands: Sequence[T]) -> Sequence[T]:
    """The branch matrices among an op's operands: all gates, then all ups; or all downs."""
    return operands[MATRICES_FROM : len(operands) - (_BIASES if kind == CLIPPED else 0)]

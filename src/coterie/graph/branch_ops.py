"""The ops of layers with branches (mixture of experts inside a model), of which each token takes a few.

E branches of F numbers each; of them a token takes A (top_k), those whose weight is not 0, in their order. The operands
marked + are there once for each branch. Knows nothing about which families have such layers.
"""

from __future__ import annotations

from coterie.graph.opspec import OpSpec

CHOOSE, GATE_UP, DOWN = "choose_branches", "branch_gate_up", "branch_down"
TOP_K = "top_k"  # how many branches a token takes
MATRIX_READERS = (GATE_UP, DOWN)
MATRICES_FROM = 2  # the position of the first matrix of a branch among the operands of these

BRANCH_OPS: dict[str, OpSpec] = {
    CHOOSE: OpSpec(
        "y = scale * softmax(logits) where that is among the top_k largest of a row, of equal ones the first, else 0; "
        "normalise 1: divided by their sum",
        ("logits:TE",),
        ("y:TE",),
        (TOP_K, "normalise", "scale?"),
    ),
    GATE_UP: OpSpec(
        "y = silu(x @ gate.T) * (x @ up.T) of each branch that a token takes; rounding as in linear",
        ("x:TD", "weights:TE", "gate+:FD", "up+:FD"),
        ("y:TAF",),
        (TOP_K, "rounding?"),
    ),
    DOWN: OpSpec(
        "y = the sum of weight * (x @ down.T) over the branches that a token takes; rounding as in linear",
        ("x:TAF", "weights:TE", "down+:DF"),
        ("y:TD",),
        (TOP_K, "rounding?"),
    ),
}

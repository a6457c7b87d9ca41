"""The legality rules of the ops of layers with branches, a row each.

Knows nothing about which families have such layers. The meaning of each op is in branch/ops.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from coterie.core.shapes import Shape, trailing
from coterie.graph.branch.ops import (
    ADD_BIAS,
    ADDED_SUM,
    ALPHA,
    CHOOSE,
    CLIPPED,
    DOWN,
    GATE_UP,
    GELU_UP,
    GROUP_BEST,
    GROUPS,
    LIMIT,
    MATRICES_FROM,
    MIN_SUM,
    SCORES,
    SIGMOID,
    TAKEN_GROUPS,
    TOP_K,
    matrices_of,
)
from coterie.graph.checks import Row, T
from coterie.graph.ops import INT8, INT16


def _choose(row: Row) -> None:
    logits = row.input(0)
    row.like(logits, first=(T,))
    row.scale()
    branches, top_k = trailing(logits.shape), row.op.attrs[TOP_K]
    if len(logits.shape) != 2 or not isinstance(top_k, int) or not 0 < top_k <= branches:
        raise row.error(f"{TOP_K} is {top_k!r} of {logits.shape}", "give logits [T, E] and a number from 1 to E")
    if row.op.attrs["normalise"] not in (0, 1):
        raise row.error(f"normalise is {row.op.attrs['normalise']!r}", "give 0 or 1")
    if row.op.inputs[1]:
        row.weight(1, (branches,))
    if row.op.inputs[2:]:
        row.weight(2, (branches,))
    if row.op.attrs.get(SCORES, SIGMOID) != SIGMOID:
        raise row.error(f"{SCORES} is {row.op.attrs[SCORES]!r}", f"give {SIGMOID!r}, or nothing for a softmax")
    for name in (MIN_SUM, ADDED_SUM):
        least = row.op.attrs.get(name, 0.0)
        if not isinstance(least, int | float) or not 0 <= least < 1:
            raise row.error(f"{name} is {least!r}", "give a number from 0 to 1, or leave it out")
        if name == ADDED_SUM and name in row.op.attrs and not row.op.attrs["normalise"]:
            raise row.error(f"{name} is {least!r} where weights are not normalised", "leave it out, or normalise")
    _groups(row, branches, top_k)


def _groups(row: Row, branches: int, top_k: int) -> None:
    """Check that groups are of equal size, and that the groups taken hold at least top_k branches."""
    found = [row.op.attrs.get(name) for name in (GROUPS, TAKEN_GROUPS, GROUP_BEST)]
    groups, taken, best = (value if isinstance(value, int) else 0 for value in found)
    if found == [None, None, None]:
        return
    if not 0 < groups <= branches or branches % groups or not 0 < taken <= groups:
        fact = f"{GROUPS} is {found[0]!r} and {TAKEN_GROUPS} {found[1]!r} of {branches} branches"
        raise row.error(fact, "give a divisor of E, and a number from 1 to that")
    if best not in (1, 2) or best > branches // groups:
        fact = f"{GROUP_BEST} is {found[2]!r} of groups of {branches // groups}"
        raise row.error(fact, "give 1 or 2, and as many branches to a group")
    if top_k > taken * (branches // groups):
        fact = f"{TOP_K} is {top_k} of {taken} groups of {branches // groups}"
        raise row.error(fact, "let groups be taken that have as many")


def _taken(row: Row, groups: int) -> int:
    """Check for `groups` matrices (gate and up, or down) per branch; returns how many branches a token takes."""
    found, matrices = trailing(row.input(1).shape), len(matrices_of(row.op.kind, row.op.inputs))
    if matrices != groups * found:
        raise row.error(f"it has {matrices} matrices for {found} branches", f"give {groups} for each")
    return _chosen(row)


def _chosen(row: Row) -> int:
    """Check that the weights come from CHOOSE with the same top_k; returns it."""
    weights = row.input(1)
    chosen = next((op for op in row.graph.ops if weights.name in op.outputs), None)
    if chosen is None or chosen.kind != CHOOSE:
        fact = f"{weights.name} is not what {CHOOSE} gives"
        raise row.error(fact, f"give weights of which all but {TOP_K} of a row are 0")
    if row.op.attrs[TOP_K] != chosen.attrs[TOP_K]:
        fact = f"{TOP_K} is {row.op.attrs[TOP_K]!r} where {chosen.attrs[TOP_K]!r} are chosen"
        raise row.error(fact, "make them agree")
    return chosen.integer(TOP_K)


def _matrices(row: Row, shape: Shape) -> None:
    """Check that all matrices have one shape and type, since one instruction reads them."""
    first = row.input(MATRICES_FROM)
    for position in range(MATRICES_FROM, MATRICES_FROM + len(matrices_of(row.op.kind, row.op.inputs))):
        row.weight(position, shape, matrix=True)
        other = row.input(position)
        if other.dtype is not first.dtype:
            fact = f"{other.name} is {other.dtype.value} and {first.name} {first.dtype.value}"
            raise row.error(fact, "give the branches of a layer one type")
    row.rounding(first, INT16, INT8)


def _gate_up(row: Row) -> None:
    x, weights, y = row.input(0), row.input(1), row.output
    row.float_rows(x, weights, y, first=(T,))
    taken, width = _taken(row, 2), y.shape[-1]
    row.same(y.shape, (T, taken, width), y.name)
    _matrices(row, (width, trailing(x.shape)))


def _gelu_up(row: Row) -> None:
    _gate_up(row)
    row.gelu_form()


def _clipped(row: Row) -> None:
    _gate_up(row)
    last, biases = len(row.op.inputs), (trailing(row.input(1).shape), row.output.shape[-1])
    for position in (last - 2, last - 1):
        row.weight(position, biases)
    for key in (ALPHA, LIMIT):
        number = row.op.attrs[key]
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            raise row.error(f"its {key} is {number!r}", "give a number above 0")


def _add_bias(row: Row) -> None:
    x, weights = row.input(0), row.input(1)
    row.like(x, first=(T,))
    row.float_rows(x, weights, first=(T,))
    _chosen(row)
    row.weight(2, (trailing(weights.shape), trailing(x.shape)))


def _down(row: Row) -> None:
    x, weights, y = row.input(0), row.input(1), row.output
    row.float_rows(x, weights, y, first=(T,))
    taken, width = _taken(row, 1), x.shape[-1]
    row.same(x.shape, (T, taken, width), x.name)
    _matrices(row, (trailing(y.shape), width))


BRANCH_LEGAL: Mapping[str, Callable[[Row], None]] = {
    CHOOSE: _choose,
    GATE_UP: _gate_up,
    GELU_UP: _gelu_up,
    CLIPPED: _clipped,
    ADD_BIAS: _add_bias,
    DOWN: _down,
}

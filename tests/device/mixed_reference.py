"""A step of sequences that have different weights, in NumPy: what is correct where experts of one program share it.

Each op that reads a weight is interpreted with every expert's; a row takes what its own sequence's expert gives.
Knows nothing about devices, or about which weights are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from coterie.core.shapes import Symbol
from coterie.graph.ir import Kind
from coterie.graph.reference import Reference, run_op
from coterie.graph.sampling import Settings
from coterie.graph.step import Array, KvState, Step


def run_mixed(
    references: Sequence[Reference],
    expert_B: npt.ArrayLike,
    rows: Mapping[str, Array],
    sampling: Sequence[Settings],
    state: KvState,
) -> dict[str, Array]:
    """As `Reference.run`, of sequences whose experts are of these numbers; all experts have one graph."""
    graph = references[0].graph
    of_T = np.asarray(expert_B)[rows["sequence"]]
    of_R = of_T[rows["rows"]]
    weights = {value.name for value in graph.weights}
    step = Step(graph, {**references[0].fixed, **rows}, state, sampling)
    for op in graph.ops:
        if weights.isdisjoint(op.inputs):
            run_op(step, op)
            continue
        value = graph.values[op.outputs[0]]
        if value.kind is not Kind.TENSOR:
            raise ValueError(f"{op.name} puts out {value.name}, which is no activation")
        of = of_R if value.shape[0] is Symbol.R else of_T
        each = []
        for reference in references:
            own = Step(graph, {**step.values, **{name: reference.fixed[name] for name in weights}}, state, sampling)
            run_op(own, op)
            each.append(own.values[value.name])
        step.values[value.name] = np.stack(each)[of, np.arange(len(of))]
    return step.values

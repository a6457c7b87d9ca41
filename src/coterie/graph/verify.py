"""Verification of a graph, op by op, before anything else is done with it. Each op's rules are in legal.py's tables.

Knows nothing about fusion or devices.
"""

from __future__ import annotations

from coterie.graph.backward.legal import BACKWARD_LEGAL
from coterie.graph.branch.legal import BRANCH_LEGAL
from coterie.graph.checks import Row
from coterie.graph.delta_net.legal import DELTA_LEGAL
from coterie.graph.eager.legal import EAGER_LEGAL
from coterie.graph.ir import Graph, Kind
from coterie.graph.latent.legal import LATENT_LEGAL
from coterie.graph.layer.legal import LAYER_LEGAL
from coterie.graph.legal import LEGAL as MODEL_LEGAL
from coterie.graph.scan.legal import SCAN_LEGAL

_LAYERS = {**DELTA_LEGAL, **LATENT_LEGAL, **LAYER_LEGAL, **SCAN_LEGAL}
LEGAL = {**MODEL_LEGAL, **BRANCH_LEGAL, **_LAYERS, **EAGER_LEGAL, **BACKWARD_LEGAL}


def verify(graph: Graph) -> None:
    """Check every op in order. Raises UsageError naming the op, the operand and both sizes."""
    made = {name for name, value in graph.values.items() if value.kind not in (Kind.TENSOR, Kind.OUTPUT)}
    names: set[str] = set()
    appended: set[tuple[str, int, int]] = set()
    for op in graph.ops:
        row = Row(graph, op)
        if op.name in names:
            raise row.error("the name is used by an op above", "give each op its own name")
        names.add(op.name)
        row.check_signature()
        for name in op.inputs:
            if name and name not in made:
                raise row.error(f"input {name} is read before it is made", "put the op that makes it first")
        LEGAL[op.kind](row)
        row.check_layer_order(appended)
        for name in op.outputs:
            state = graph.values[name].kind is Kind.STATE
            if name in made and not state:
                raise row.error(f"output {name} is made twice", "give each result its own value")
            made.add(name)

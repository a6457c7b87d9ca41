"""What every run of a mapped section must keep to, and a whole plan run section by section beside the reference.

Knows nothing about which graphs are run.
"""

from __future__ import annotations

import numpy as np

from coterie.dataflow.interpret import Interpreter, run_sockets
from coterie.dataflow.interpret_bytes import KINDS
from coterie.graph.ir import Kind
from coterie.graph.reference import Step, run_op


def check_run(ran, mapped):
    """Bytes are the mapping's, FIFOs are never fuller than they are deep, each token is made and used once."""
    assert ran.moved_bytes == mapped.memory_bytes
    if not mapped.streamed:
        assert ran.moved == {kind: getattr(mapped.cost, f"{kind}_bytes") for kind in KINDS}
    for channel in ran.channels:
        assert channel.put == channel.taken == channel.tokens
        assert not channel.tiles
        assert channel.peak <= channel.depth
    counts = [0 if nest.is_view else 1 for nest in mapped.walk.nests]
    assert {at for at, _ in ran.order} == {at for at, fires in enumerate(counts) if fires}
    assert len(set(ran.order)) == len(ran.order), "each tile of each op once"


def check_plan(graph, plan, values, state=None, sampling=(), block=4, rtol=2e-4, atol=2e-5, **more):
    """Run all sections of a plan on `values` of the whole step; what leaves each is what the reference says."""
    known = {n: values[n] for n, v in graph.values.items() if v.kind in (Kind.INPUT, Kind.WEIGHT) and n in values}
    for which in plan.index:
        mapped = plan.mapped[which]
        ran = Interpreter(graph, mapped, key_block=block).run(known, state, sampling)
        check_run(ran, mapped)
        check_outputs(ran, values, rtol, atol)
        known |= ran.outputs
    assert results(graph) <= set(known)
    return known


def check_sockets(graphs, plans, values, states, sampling=(), block=4, rtol=2e-4, atol=2e-5):
    """The same of all sockets of a group: `values` has those of each."""
    known = [
        {n: own[n] for n, v in graph.values.items() if v.kind in (Kind.INPUT, Kind.WEIGHT) and n in own}
        for graph, own in zip(graphs, values, strict=True)
    ]
    for at, which in enumerate(plans[0].index):
        parts = [plan.mapped[plan.index[at]] for plan in plans]
        group = [
            (Interpreter(graph, part, key_block=block), mine, state)
            for graph, part, mine, state in zip(graphs, parts, known, states, strict=True)
        ]
        for rank, ran in enumerate(run_sockets(group, sampling)):
            check_run(ran, plans[rank].mapped[which])
            check_outputs(ran, values[rank], rtol, atol)
            known[rank] |= ran.outputs
    assert all(results(graph) <= set(own) for graph, own in zip(graphs, known, strict=True))
    return known


def results(graph):
    """Names of what a step gives."""
    return {name for name, value in graph.values.items() if value.kind is Kind.OUTPUT}


def check_outputs(ran, values, rtol=2e-4, atol=2e-5):
    """Values that left a section are those of the reference."""
    for name, found in ran.outputs.items():
        np.testing.assert_allclose(found, values[name], rtol=rtol, atol=atol, err_msg=name)


def run_graph(graph, values):
    """Every value of a graph that keeps no state."""
    step = Step(graph, dict(values), None)
    for op in graph.ops:
        run_op(step, op)
    return step.values

"""The program that a machine's units run together: one rank's, where the machine has units that reach each other.

Knows nothing about prices.
"""

from __future__ import annotations

from coterie.core.errors import UsageError
from coterie.graph.compile import compile_graph
from coterie.graph.program import Program
from coterie.graph.shard import shard
from coterie.spec.machine import MachineSpec


def rank_program(spec: MachineSpec, program: Program) -> Program:
    """One rank's program, over as many units as the model can be split by; the whole program where it cannot be.

    What cannot be split (three heads over eight units) is priced on all units as if they were one.
    """
    if spec.peers is None or spec.units == 1:
        return program
    for degree in range(spec.units, 1, -1):
        if spec.units % degree:
            continue
        try:
            return compile_graph(shard(program.graph, degree), program.rule_set)
        except UsageError:  # heads, columns or vocabulary do not divide: fewer units, then
            continue
    return program

"""The program that each unit of a machine executes: one rank's shard, if the units are connected.

Knows nothing about prices.
"""

from __future__ import annotations

from coterie.core.errors import UsageError
from coterie.graph.compile import compile_graph
from coterie.graph.program import Program
from coterie.graph.shard import shard
from coterie.spec.machine import MachineSpec


def rank_program(spec: MachineSpec, program: Program) -> Program:
    """One rank's program, sharded over the largest divisor of the unit count that the model allows.

    A vocabulary that does not divide is replicated. Raises UsageError if no divisor works: units that share nothing
    would be priced as one large unit.
    """
    if spec.peers is None or spec.units == 1:
        return program
    refusal = ""
    for degree in range(spec.units, 1, -1):
        if spec.units % degree:
            continue
        try:
            return compile_graph(shard(program.graph, degree, odd_vocabulary=True), program.rule_set)
        except UsageError as error:  # heads or columns do not divide: try fewer units
            refusal = refusal or error.fact
    fact = f"{program.graph.name} cannot be shared by {spec.units} units: {refusal}"
    raise UsageError(f"machine {spec.name}: units", fact, "give units=1, or as many as divide its heads")

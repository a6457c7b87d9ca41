"""Row inputs that only some graphs declare; they are derived from those that the engine provides.

    positions   0 1 2 3   0 1       two sequences, all of each in the step
    horizon     3 3 3 3   1 1       the last position that a token sees
    types       0 0 1 1   0 0       which text of a pair it belongs to, if the engine says so; else 0

`with_bidirectional_attention` turns a graph with causal attention into one with bidirectional attention.
Knows nothing about devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Symbol
from coterie.graph.ir import Graph, Kind, Op, Value
from coterie.graph.ops import HORIZON, TYPES

_KV = "kv"

I32: TypeAlias = npt.NDArray[np.int32]


def is_bidirectional(graph: Graph) -> bool:
    """Whether attention is bidirectional: then a step must hold all of a sequence."""
    return HORIZON in graph.values


def with_bidirectional_attention(graph: Graph) -> Graph:
    """The graph with bidirectional attention; windows reach equally far in both directions.

    Keys and values are read only in the step that stores them, so all layers store them in the same place, and in
    float32. Raises UnsupportedError for a graph with any other state or kind of attention.
    """
    states = [value for value in graph.values.values() if value.kind is Kind.STATE]
    can_be = all(_can_be_bidirectional(op) for op in graph.ops if _KV in op.inputs)
    if not can_be or [state.name for state in states] != [_KV]:
        fact = "its tokens see all of their text, which is run for plain attention alone"
        raise UnsupportedError(graph.name, fact, "use a model of another architecture")
    kv = replace(states[0], shape=(1, *states[0].shape[1:]), dtype=DType.F32)
    horizon = Value(HORIZON, (Symbol.T,), DType.I32, Kind.INPUT)
    values = MappingProxyType({**graph.values, _KV: kv, HORIZON: horizon})
    return Graph(graph.name, values, tuple([_bidirectional_op(op) if _KV in op.inputs else op for op in graph.ops]))


def _can_be_bidirectional(op: Op) -> bool:
    return op.kind in ("kv_append", "relative_attention") or (op.kind == "attention" and not op.growth)


def _bidirectional_op(op: Op) -> Op:
    q, positions, *others = op.inputs
    inputs = (q, positions if op.kind == "kv_append" else HORIZON, *others)
    return replace(op, inputs=inputs, attrs=MappingProxyType({**op.attrs, "layer": 0}))


def derived_rows(
    graph: Graph, positions_T: npt.NDArray[Any], sequence_T: npt.NDArray[Any], types_T: Sequence[int] = ()
) -> dict[str, I32]:
    """The rows [T] that this graph declares besides the usual ones, by name. `types_T`: for pairs; empty: all are 0.

    Raises ValueError unless there is one type per token, each with a row in the graph's table.
    """
    found: dict[str, I32] = {}
    if HORIZON in graph.values:
        last_B = np.zeros(int(np.max(sequence_T, initial=-1)) + 1, np.int32)
        np.maximum.at(last_B, sequence_T, np.asarray(positions_T, np.int32))
        found[HORIZON] = last_B[sequence_T]
    if TYPES in graph.values:
        found[TYPES] = np.zeros(len(positions_T), np.int32)
        if len(types_T):
            most = min_table_rows(graph, TYPES) or 0
            if len(types_T) != len(positions_T) or not all(0 <= kind < most for kind in types_T):
                raise ValueError(f"types are {len(types_T)} for {len(positions_T)} tokens, or outside 0 to {most - 1}")
            found[TYPES][:] = types_T
    return found


def min_table_rows(graph: Graph, name: str) -> int | None:
    """Rows of the smallest table in which a row input is looked up; None if there is no such table."""
    tables = [graph.values[op.inputs[1]].shape[0] for op in graph.ops if op.kind == "embed" and op.inputs[0] == name]
    return min([rows for rows in tables if isinstance(rows, int)], default=None)

"""Rows of a step that only some graphs declare: they follow from those that the engine gives.

    positions   0 1 2 3   0 1       two sequences, all of each in the step
    horizon     3 3 3 3   1 1       the last position that a token sees
    types       0 0 0 0   0 0       which text of a pair it is of

Knows nothing about devices.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.graph.ir import Graph
from coterie.graph.ops import HORIZON, TYPES

I32: TypeAlias = npt.NDArray[np.int32]


def sees_all(graph: Graph) -> bool:
    """Whether a token sees all of its sequence, those behind it too: then a step must have all of it."""
    return HORIZON in graph.values


def more_rows(graph: Graph, positions_T: npt.NDArray[Any], sequence_T: npt.NDArray[Any]) -> dict[str, I32]:
    """The rows [T] that this graph declares besides the usual ones, by name."""
    found: dict[str, I32] = {}
    if HORIZON in graph.values:
        last_B = np.zeros(int(np.max(sequence_T, initial=-1)) + 1, np.int32)
        np.maximum.at(last_B, sequence_T, np.asarray(positions_T, np.int32))
        found[HORIZON] = last_B[sequence_T]
    if TYPES in graph.values:
        found[TYPES] = np.zeros(len(positions_T), np.int32)
    return found


def rows_of_tables(graph: Graph, name: str) -> int | None:
    """How many rows the smallest table has in which a row input is looked up; None where it is in none."""
    tables = [graph.values[op.inputs[1]].shape[0] for op in graph.ops if op.kind == "embed" and op.inputs[0] == name]
    return min([rows for rows in tables if isinstance(rows, int)], default=None)

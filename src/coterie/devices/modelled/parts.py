"""The parts of a merged phase: prefix sums that tell how many parts complete in a given time, at given free capacity.

    unique   a b c          parts repeat (the layers of a model), so each distinct one is processed once
    places   0 1 2 1 2 1 2  the parts in order, as indices into `unique`

Knows nothing about lanes or clocks.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt

MANY = 64  # parts from which NumPy is faster than a Python loop
MAX_ENDS = 16  # cache entries: free capacities; bounds memory, not use


class Flowing(Protocol):
    """The part of a Flow that is needed here."""

    @property
    def amount(self) -> float:
        """The amount that drains."""

    @property
    def uses(self) -> Mapping[str, float]:
        """Resources it draws on; a single one in flows of parts."""


class Part(Protocol):
    """The part of a Phase that is needed here."""

    @property
    def delay_s(self) -> float:
        """Seconds before its flows drain."""

    @property
    def flows(self) -> Sequence[Flowing]:
        """Flows that drain concurrently."""


def running(each: Sequence[float], places: tuple[int, ...]) -> array[float]:
    """Prefix sums over the parts of a value given for `each` unique part, added strictly in order."""
    if len(places) < MANY:
        return array("d", accumulate([each[place] for place in places]))
    return array("d", np.cumsum(np.array(each)[_index(places)]).tobytes())


@lru_cache(maxsize=64)
def _index(places: tuple[int, ...]) -> npt.NDArray[np.intp]:
    return np.array(places, dtype=np.intp)


@dataclass(slots=True, eq=False)
class Table:
    """What parts draw from resources, as prefix sums.

    `columns`: index in `resources` of each flow of each unique part; `sums`: per resource, the total drawn by the first
    n parts, for n from 0.
    """

    places: tuple[int, ...]
    delays_s: Sequence[float]
    amounts: Sequence[Sequence[float]]
    resources: tuple[str, ...]
    columns: Sequence[Sequence[int]]
    sums: tuple[Sequence[float], ...]
    _ends: dict[tuple[float, ...], Sequence[float]] = field(default_factory=dict)

    @classmethod
    def of(cls, unique: Sequence[Part], places: tuple[int, ...]) -> Table:
        """Tabulate parts given as indices (`places`) into `unique`."""
        resources = tuple(dict.fromkeys(name for part in unique for flow in part.flows for name in flow.uses))
        column_of = {name: number for number, name in enumerate(resources)}
        amounts = [[0.0] * len(resources) for _ in unique]
        for row, part in zip(amounts, unique, strict=True):
            for flow in part.flows:
                for name, share in flow.uses.items():
                    row[column_of[name]] += share * flow.amount
        columns = [[column_of[name] for flow in part.flows for name in flow.uses] for part in unique]
        drawn = ([row[column] for row in amounts] for column in range(len(resources)))
        sums = tuple(array("d", [0.0]) + running(each, places) for each in drawn)
        return cls(places, [part.delay_s for part in unique], amounts, resources, columns, sums)

    def ends_s(self, free: tuple[float, ...]) -> Sequence[float]:
        """End time of each part, starting at 0, if executed in sequence with this free capacity per resource."""
        found = self._ends.get(free)
        if found is None:
            if len(self._ends) >= MAX_ENDS:
                self._ends.clear()
            each = [
                delay_s + max([amount / rate for amount, rate in zip(row, free, strict=True)], default=0.0)
                for delay_s, row in zip(self.delays_s, self.amounts, strict=True)
            ]
            found = self._ends[free] = running(each, self.places)
        return found

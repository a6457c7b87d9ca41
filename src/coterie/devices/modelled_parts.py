"""The parts of a merged phase as arrays: how many of them pass in a given time, with so much of each resource left.

Knows nothing about lanes or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


class Flowing(Protocol):
    """A flow."""

    @property
    def amount(self) -> float:
        """What drains."""

    @property
    def uses(self) -> Mapping[str, float]:
        """From what: one resource, for flows of parts."""


class Part(Protocol):
    """A phase that is a part."""

    @property
    def delay_s(self) -> float:
        """Before its flows drain."""

    @property
    def flows(self) -> Sequence[Flowing]:
        """They drain together."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Delays [n] and amounts [n, resources] of n parts. `parts` are held so that their identity stays theirs."""

    parts: Sequence[Part]
    resources: tuple[str, ...]
    delays_s: F64
    amounts: F64

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Table:
        """Parts repeat: each is looked at once."""
        first: dict[int, int] = {}
        unique: list[Part] = []
        places = []
        for part in parts:
            place = first.setdefault(id(part), len(unique))
            if place == len(unique):
                unique.append(part)
            places.append(place)
        resources = tuple(dict.fromkeys(name for part in unique for flow in part.flows for name in flow.uses))
        columns = {name: number for number, name in enumerate(resources)}
        amounts = np.zeros((len(unique), len(resources)))
        for row, part in enumerate(unique):
            for flow in part.flows:
                for name, share in flow.uses.items():
                    amounts[row, columns[name]] += share * flow.amount
        delays = np.array([part.delay_s for part in unique])
        return cls(parts, resources, delays[places], amounts[places])

    def ends_s(self, first: int, free: F64) -> F64:
        """When the parts from `first` on would end, one after the other, from 0."""
        ends: F64 = np.cumsum(self.delays_s[first:] + (self.amounts[first:] / free).max(axis=1))
        return ends

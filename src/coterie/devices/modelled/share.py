"""How flows share resources: max-min fair rates, and the capacity left over for one more flow.

Knows nothing about work, lanes or the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

MAX_SHARED = 256  # cache entries: sets of flows; bounds memory, not use


def fair_rates(flows: Sequence[Mapping[str, float]], capacity: Mapping[str, float]) -> list[float]:
    """Max-min fair rates by progressive filling.

    Each flow maps resources to the units of them that one unit of it uses; `capacity` is per second. A flow that uses
    nothing has an infinite rate.
    """
    rates = [0.0 if uses else inf for uses in flows]
    left = dict(capacity)
    open_flows = [i for i, uses in enumerate(flows) if uses]
    level = 0.0
    while open_flows:
        demand: dict[str, float] = {}
        for i in open_flows:
            for resource, share in flows[i].items():
                demand[resource] = demand.get(resource, 0.0) + share
        rise, tight = min((left[resource] / total, resource) for resource, total in demand.items())
        level += rise
        for resource, total in demand.items():
            left[resource] = max(0.0, left[resource] - rise * total)
        still_open = []
        for i in open_flows:
            if tight in flows[i]:
                rates[i] = level
            else:
                still_open.append(i)
        open_flows = still_open
    return rates


def left_over(
    capacity: Mapping[str, float], names: Sequence[str], uses: Sequence[Mapping[str, float]], rates: Sequence[float]
) -> dict[str, float] | None:
    """Capacity that these flows leave on each resource; None if the fair share of one more flow would slow them."""
    taken: dict[str, float] = {}
    fastest: dict[str, float] = {}
    for used, rate in zip(uses, rates, strict=True):
        for name, share in used.items():
            taken[name] = taken.get(name, 0.0) + share * rate
            fastest[name] = max(fastest.get(name, 0.0), rate)
    free = {name: capacity[name] - taken.get(name, 0.0) for name in names}
    slowed = any(free[name] < fastest.get(name, 0.0) or free[name] <= 0 for name in names)
    return None if slowed else free


@dataclass(slots=True, eq=False)
class Shared:
    """The shares of a set of flows: their rates, and the total draw on each resource."""

    uses: Sequence[Mapping[str, float]]
    rates: Sequence[float]
    drawn_per_s: Mapping[str, float]
    left: dict[tuple[str, ...], tuple[float, ...] | None] = field(default_factory=dict)


class Shares:
    """A cache of fair rates and left-over capacity by set of flows.

    Flows are compared by the identity of their `uses`, so callers should reuse one object for equal `uses`.
    """

    def __init__(self, capacity: Mapping[str, float]) -> None:
        self._capacity = capacity
        self._known: dict[tuple[int, ...], Shared] = {}

    def of(self, uses: Sequence[Mapping[str, float]]) -> Shared:
        """The shares of these flows."""
        key = tuple(map(id, uses))
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_SHARED:
                self._known.clear()
            # `uses` are kept alive, so that no other object can reuse their ids.
            rates = fair_rates(uses, self._capacity)
            drawn_per_s: dict[str, float] = {}
            for used, rate in zip(uses, rates, strict=True):
                for name, share in used.items():
                    drawn_per_s[name] = drawn_per_s.get(name, 0.0) + share * rate
            found = self._known[key] = Shared(tuple(uses), rates, drawn_per_s)
        return found

    def left(self, names: tuple[str, ...], shared: Shared) -> tuple[float, ...] | None:
        """As `left_over`, in the order of `names`."""
        if names not in shared.left:
            free = left_over(self._capacity, names, shared.uses, shared.rates)
            shared.left[names] = None if free is None else tuple([free[name] for name in names])
        return shared.left[names]

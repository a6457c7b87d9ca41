"""How flows share resources: max-min fair rates, and what is left of each resource for one flow more.

Knows nothing about work, lanes or the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

MAX_SHARED = 256  # sets of flows whose shares are kept; a bound on memory, not on use


def fair_rates(flows: Sequence[Mapping[str, float]], capacity: Mapping[str, float]) -> list[float]:
    """Max-min fair rates of flows, each given by what it uses, under capacities per second (progressive filling).

    What uses nothing is bounded by nothing: its rate is infinite.
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
    """What these flows leave of each resource to one flow more; None if that one's fair share would slow them."""
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
    """How flows, given by what each uses, share: their rates, and how fast all together draw on each resource."""

    uses: Sequence[Mapping[str, float]]
    rates: Sequence[float]
    drawn_per_s: Mapping[str, float]
    left: dict[tuple[str, ...], tuple[float, ...] | None] = field(default_factory=dict)


class Shares:
    """Fair rates and what they leave, kept for the sets of flows seen last. Who shares one object for equal `uses` is
    answered at once: flows are told apart by that object's identity.
    """

    def __init__(self, capacity: Mapping[str, float]) -> None:
        self._capacity = capacity
        self._known: dict[tuple[int, ...], Shared] = {}

    def of(self, uses: Sequence[Mapping[str, float]]) -> Shared:
        """How these flows share."""
        key = tuple(map(id, uses))
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MAX_SHARED:
                self._known.clear()
            # `uses` are held, so that no other object gets their identities.
            rates = fair_rates(uses, self._capacity)
            drawn_per_s: dict[str, float] = {}
            for used, rate in zip(uses, rates, strict=True):
                for name, share in used.items():
                    drawn_per_s[name] = drawn_per_s.get(name, 0.0) + share * rate
            found = self._known[key] = Shared(tuple(uses), rates, drawn_per_s)
        return found

    def left(self, names: tuple[str, ...], shared: Shared) -> tuple[float, ...] | None:
        """As `left_over`, in the order of names."""
        if names not in shared.left:
            free = left_over(self._capacity, names, shared.uses, shared.rates)
            shared.left[names] = None if free is None else tuple([free[name] for name in names])
        return shared.left[names]

"""SplitCache: weights of a router, and bases that adapters share, in slabs of their own beside the experts'.

        run tier   | experts ............ | bases | router |      each side is an ExpertCache with its budgets, so none
        below      | experts ............ |       | router |      evicts what is on another; bases have room for all

Knows nothing about models, or about which side a name should be on: it is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import Literal, TypeAlias

from coterie.checkpoint.layout import Layout
from coterie.device import Event
from coterie.memory.cache import ExpertCache
from coterie.memory.residency import Residency
from coterie.memory.tiers import Ended
from coterie.memory.victims import NOBODY

Side: TypeAlias = Literal["experts", "bases", "router"]


class SplitCache:
    """Several caches as one. `others`: the sides beside the experts', with who lives there; everybody else: experts."""

    def __init__(self, experts: ExpertCache, others: Mapping[Side, tuple[ExpertCache, Set[str]]]) -> None:
        self.experts = experts
        self.sides: dict[Side, ExpertCache] = {"experts": experts}
        self.sides.update({side: cache for side, (cache, _) in others.items()})
        self._caches = tuple(self.sides.values())
        self._side_of: dict[str, Side] = {name: side for side, (_, names) in others.items() for name in names}

    def name_of_side(self, expert_id: str) -> Side:
        """The side on which this one lives."""
        return self._side_of.get(expert_id, "experts")

    def side(self, expert_id: str) -> ExpertCache:
        """The cache in which this one lives."""
        return self.sides[self.name_of_side(expert_id)]

    def want(
        self, expert_id: str, layout: Layout, rows: Collection[int] = (), protected: Set[str] = NOBODY, uses: int = 1
    ) -> Residency:
        """As ExpertCache.want."""
        return self.side(expert_id).want(expert_id, layout, rows, protected, uses)

    def hold(self, expert_id: str, event: Event) -> None:
        """As ExpertCache.hold."""
        self.side(expert_id).hold(expert_id, event)

    def release(self, expert_id: str, event: Event) -> None:
        """As ExpertCache.release."""
        self.side(expert_id).release(expert_id, event)

    def poll(self) -> tuple[Ended, ...]:
        """As ExpertCache.poll."""
        found: tuple[Ended, ...] = ()
        for cache in self._caches:
            if ended := cache.poll():
                found = (*found, *ended)
        return found

    def resident(self) -> tuple[str, ...]:
        """As ExpertCache.resident: the experts, then the others."""
        return tuple([name for cache in self._caches for name in cache.resident()])

    @property
    def residents(self) -> frozenset[str]:
        """As ExpertCache.residents."""
        return frozenset().union(*[cache.residents for cache in self._caches])

    def loading(self) -> tuple[str, ...]:
        """As ExpertCache.loading."""
        return tuple([name for cache in self._caches for name in cache.loading()])

    @property
    def changes(self) -> int:
        """As ExpertCache.changes."""
        return sum([cache.changes for cache in self._caches])

    def pending(self) -> tuple[Event, ...]:
        """As ExpertCache.pending."""
        return tuple([event for cache in self._caches for event in cache.pending()])

    def check_integrity(self) -> None:
        """As ExpertCache.check_integrity."""
        for cache in self._caches:
            cache.check_integrity()


Cache: TypeAlias = ExpertCache | SplitCache


def side_of(cache: Cache, expert_id: str) -> ExpertCache:
    """The cache in which this one lives."""
    return cache.side(expert_id) if isinstance(cache, SplitCache) else cache


def sides_of(cache: Cache) -> dict[Side, ExpertCache]:
    """All caches that there are, by whose weights they hold."""
    return cache.sides if isinstance(cache, SplitCache) else {"experts": cache}


def stays(cache: Cache, expert_id: str) -> bool:
    """Whether this one is the base of others, which is there from the start to the end."""
    return isinstance(cache, SplitCache) and cache.name_of_side(expert_id) == "bases"

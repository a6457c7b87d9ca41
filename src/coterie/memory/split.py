"""SplitCache: separate caches for experts, for the base models that adapters share, and for the router's weights.

        run tier   | experts ............ | bases | router |      each side is an ExpertCache with its own budgets and
        below      | experts ............ |       | router |      evicts only its own; the bases' side holds all of them

Knows nothing about models, or how names are assigned to sides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from typing import Literal, TypeAlias

from coterie.checkpoint.layout import Layout
from coterie.device import Event
from coterie.memory.cache import ExpertCache
from coterie.memory.residency import Residency
from coterie.memory.tiers import Ended
from coterie.memory.victims import NO_EXPERTS

Side: TypeAlias = Literal["experts", "bases", "router"]


class SplitCache:
    """Several caches as one. `others`: the other sides' caches and the ids on each; all other ids are experts."""

    def __init__(self, experts: ExpertCache, others: Mapping[Side, tuple[ExpertCache, Set[str]]]) -> None:
        self.experts = experts
        self.sides: dict[Side, ExpertCache] = {"experts": experts}
        self.sides.update({side: cache for side, (cache, _) in others.items()})
        self._caches = tuple(self.sides.values())
        self._side_of: dict[str, Side] = {name: side for side, (_, names) in others.items() for name in names}

    def name_of_side(self, expert_id: str) -> Side:
        """The side that this id is on."""
        return self._side_of.get(expert_id, "experts")

    def side(self, expert_id: str) -> ExpertCache:
        """The cache that this id belongs to."""
        return self.sides[self.name_of_side(expert_id)]

    def want(
        self,
        expert_id: str,
        layout: Layout,
        rows: Collection[int] = (),
        protected: Set[str] = NO_EXPERTS,
        uses: int = 1,
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
        """As ExpertCache.resident: experts first, then the other sides."""
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
    """The cache that this id belongs to."""
    return cache.side(expert_id) if isinstance(cache, SplitCache) else cache


def sides_of(cache: Cache) -> dict[Side, ExpertCache]:
    """Every ExpertCache, by side."""
    return cache.sides if isinstance(cache, SplitCache) else {"experts": cache}


def stays(cache: Cache, expert_id: str) -> bool:
    """Whether this is a shared base model, which stays resident from start to end."""
    return isinstance(cache, SplitCache) and cache.name_of_side(expert_id) == "bases"

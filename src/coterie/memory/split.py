"""SplitCache: a router's weights in slabs of their own beside the experts', so that neither ever evicts the other.

        run tier   | experts ........................ | router ... |      each side is an ExpertCache with its budgets
        below      | experts ........................ | router ... |

Knows nothing about models, or about which side a name should be on: it is told.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from typing import Literal, TypeAlias

from coterie.checkpoint.layout import Layout
from coterie.device import Event
from coterie.memory.cache import NOBODY, ExpertCache
from coterie.memory.residency import Residency
from coterie.memory.tiers import Ended


class SplitCache:
    """Two caches as one. `router_ids` live in `routers`, everybody else in `experts`."""

    def __init__(self, experts: ExpertCache, routers: ExpertCache, router_ids: Set[str]) -> None:
        self.experts, self.routers = experts, routers
        self._router_ids = frozenset(router_ids)

    def side(self, expert_id: str) -> ExpertCache:
        """The cache in which this one lives."""
        return self.routers if expert_id in self._router_ids else self.experts

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
        ended, of_routers = self.experts.poll(), self.routers.poll()
        return (*ended, *of_routers) if of_routers else ended

    def resident(self) -> tuple[str, ...]:
        """As ExpertCache.resident: the experts, then the routers."""
        return (*self.experts.resident(), *self.routers.resident())

    @property
    def residents(self) -> frozenset[str]:
        """As ExpertCache.residents."""
        return self.experts.residents | self.routers.residents

    def loading(self) -> tuple[str, ...]:
        """As ExpertCache.loading."""
        return (*self.experts.loading(), *self.routers.loading())

    @property
    def changes(self) -> int:
        """As ExpertCache.changes."""
        return self.experts.changes + self.routers.changes

    def pending(self) -> tuple[Event, ...]:
        """As ExpertCache.pending."""
        return (*self.experts.pending(), *self.routers.pending())

    def check_integrity(self) -> None:
        """As ExpertCache.check_integrity."""
        self.experts.check_integrity()
        self.routers.check_integrity()


Cache: TypeAlias = ExpertCache | SplitCache
Side: TypeAlias = Literal["experts", "router"]


def side_of(cache: Cache, expert_id: str) -> ExpertCache:
    """The cache in which this one lives."""
    return cache.side(expert_id) if isinstance(cache, SplitCache) else cache


def sides_of(cache: Cache) -> dict[Side, ExpertCache]:
    """All caches that there are, by whose weights they hold."""
    if isinstance(cache, SplitCache):
        return {"experts": cache.experts, "router": cache.routers}
    return {"experts": cache}

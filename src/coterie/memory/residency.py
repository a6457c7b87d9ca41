"""Residency: where a resident expert's weights are, and what a run of them must await.

Knows nothing about how they came there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from coterie.core.values import value
from coterie.device import Buffer, Event

Evicted: TypeAlias = tuple[tuple[str, str], ...]
"""(expert_id, tier) of each copy that a load made room by evicting, in the order in which they went."""

NO_GATES: Mapping[str, Event] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Early:
    """A stage that needs, for tokens that are all among `rows`, no more than what is there after `gate`."""

    stage: str
    rows: frozenset[int]
    gate: Event


@value
class Residency:
    """An expert in the run tier. `gates`: stage -> event; `ready`: the last, None once a poll has seen the load finish.

    `hit` is False only for the want that started the load; one that joins a load in flight has hit and is_loading.
    `evicted`: who had to go for that load; nobody for a hit.
    It is good until the next want or forget, and longer only if `hold` was called for the work that reads it.
    """

    expert_id: str
    weights: Buffer
    gates: Mapping[str, Event]
    ready: Event | None
    hit: bool
    early: Early | None = None
    evicted: Evicted = ()

    @property
    def is_loading(self) -> bool:
        """True while ranges are still arriving, as far as the last poll knows."""
        return self.ready is not None

    @property
    def first(self) -> Event | None:
        """After this something can run; None once all is there."""
        return self.early.gate if self.early is not None else next(iter(self.gates.values()), None)

    def gates_of(self, tokens: Iterable[int], steps: int) -> Mapping[str, Event]:
        """What a run of these tokens awaits. Tokens that it draws itself, with several steps, are not known before."""
        early = self.early
        if early is None or steps > 1 or not early.rows.issuperset(tokens):
            return self.gates
        return {**self.gates, early.stage: early.gate}

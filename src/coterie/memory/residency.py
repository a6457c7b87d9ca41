"""Residency: where a resident expert's weights are, and which events a run on them must await.

Knows nothing about how they got there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from coterie.core.values import value
from coterie.device import Buffer, Event

Evicted: TypeAlias = tuple[tuple[str, str], ...]
"""(expert_id, tier) of each copy that a load evicted, in order."""

NO_GATES: Mapping[str, Event] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Early:
    """A weaker gate for the stage that reads the embedding: enough for batches whose tokens are all among `rows`."""

    stage: str
    rows: frozenset[int]
    gate: Event


@value
class Residency:
    """An expert in the run tier. `gates`: stage -> event; `ready`: the last event, None once a poll saw the load end.

    `hit` is False only for the `want` that started the load; joining a load in flight gives hit and is_loading.
    `evicted`: the copies evicted for this load; empty for a hit.
    Valid until the next `want` or `forget`; beyond that only while a `hold` protects it.
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
        """True until a poll has seen the load finish."""
        return self.ready is not None

    @property
    def first(self) -> Event | None:
        """The event after which the first stage can run; None once everything has arrived."""
        return self.early.gate if self.early is not None else next(iter(self.gates.values()), None)

    def gates_of(self, tokens: Iterable[int], steps: int) -> Mapping[str, Event]:
        """The gates for a run of these tokens. A multi-step run needs all rows: the tokens it will draw are unknown."""
        early = self.early
        if early is None or steps > 1 or not early.rows.issuperset(tokens):
            return self.gates
        return {**self.gates, early.stage: early.gate}

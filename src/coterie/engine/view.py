"""What a decision about the next step may depend on, and what it may be.

Knows nothing about how it is made (scheduler.py), or about time, devices, bytes or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from coterie.core.values import value


class Residence(Enum):
    """How much of an expert is in the tier from which it runs."""

    ABSENT = 0
    ARRIVING = 1  # loading, nothing can run yet
    STARTED = 2  # its first stage has arrived: it can run, as fast as the rest arrives
    READY = 3  # fully loaded


ABSENT: Final = Residence.ABSENT
STARTED: Final = Residence.STARTED
READY: Final = Residence.READY


@value
class Waiting:
    """A request not admitted yet: its place in the order of arrival, and an upper bound on the KV blocks it needs.
    Lower `priority` goes first.
    """

    number: int
    blocks: int
    priority: int = 0


@value
class Group:
    """An expert and its work.

    waiting: the first few of its `num_waiting` requests; running: how many are admitted.
    oldest: the least number among the waiting and running requests of its best `priority`.
    last_run: the step in which it last ran (-1: never); turn_steps: steps it has run since it was loaded.
    variant_group: fully loaded experts of the same group can share steps (variants.py).
    partners: for a joined group, its members other than `expert_id`.
    running_priorities: the priorities of its running requests.
    """

    expert_id: str
    residence: Residence
    waiting: tuple[Waiting, ...]
    num_waiting: int
    running: int
    oldest: int
    last_run: int = -1
    turn_steps: int = 0
    variant_group: str = ""
    partners: tuple[str, ...] = ()
    priority: int = 0
    running_priorities: tuple[int, ...] = ()

    def after_run(self, last_run: int, turn_steps: int) -> Group:
        """A copy after a run during which no request arrived, was admitted or ended."""
        return Group(
            self.expert_id,
            self.residence,
            self.waiting,
            self.num_waiting,
            self.running,
            self.oldest,
            last_run,
            turn_steps,
            self.variant_group,
            (),
            self.priority,
            self.running_priorities,
        )

    def places(self, max_batch: int) -> int:
        """How many more requests of its first waiting one's priority may be admitted.

        Running ones of worse priority are not counted, because they sit out when the batch is full.
        """
        first = self.waiting[0].priority
        return max_batch - self.running + sum([rank > first for rank in self.running_priorities])


@value
class First:
    """The first waiting request of an expert, and how many later requests were admitted ahead of it."""

    expert_id: str
    number: int
    overtaken: int
    blocks: int = 0
    priority: int = 0


@value
class View:
    """What a decision may depend on.

    firsts: the first waiting requests of the two experts (more if `has_variants`) that have waited longest, oldest
        first; as many for each priority, the best first.
    arrived: requests so far.
    current: the expert of the last step; streak: how many consecutive steps it has run.
    under_way: unfinished fetches.
    refused: experts that could not be fetched just now, because everything that would have to be evicted is in use.
    """

    groups: tuple[Group, ...]
    free_blocks: int
    firsts: tuple[First, ...] = ()
    arrived: int = 0
    current: str | None = None
    streak: int = 0
    under_way: int = 0
    refused: frozenset[str] = frozenset()
    has_variants: bool = False


@value
class Fetch:
    """Load an expert. Those in `keep` must stay; those in `spare` are evicted only if it does not fit otherwise."""

    expert_id: str
    keep: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()


@value
class Run:
    """Admit these waiting requests, then run one step of the expert, together with the variants in `partners`."""

    expert_id: str
    admit: tuple[int, ...]
    partners: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can run now."""


Decision: TypeAlias = Fetch | Run | Wait

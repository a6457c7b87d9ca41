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
    ARRIVING = 1  # under way, nothing can run yet
    STARTED = 2  # its first stage is there: it can run, at the speed of the wire
    READY = 3  # all of it is there


ABSENT: Final = Residence.ABSENT
STARTED: Final = Residence.STARTED
READY: Final = Residence.READY


@value
class Waiting:
    """A request that is not admitted: its place in the order of arrival, and the KV blocks that it needs at worst. Of
    two the one of the lower `priority` goes first.
    """

    number: int
    blocks: int
    priority: int = 0


@value
class Group:
    """An expert and its work. `waiting` are the first few of its `num_waiting` requests, `running` counts its admitted
    ones. `oldest`: the least number among waiting and running, of those of the best `priority`. `last_run`: the step in
    which it ran last (-1: never). `turn_steps`: the steps that it ran since it was brought in. `variant_group`:
    those that are there and of one such group can share steps (variants.py); `beside`: of a group of several, who is in
    it besides `expert_id`. `ranks`: the priorities of its running ones.
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
    beside: tuple[str, ...] = ()
    priority: int = 0
    ranks: tuple[int, ...] = ()

    def after_run(self, last_run: int, turn_steps: int) -> Group:
        """The same after it ran, when nobody came, was admitted or ended."""
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
            self.ranks,
        )

    def places(self, max_batch: int) -> int:
        """How many more may be admitted of the priority of its first waiting one: others of the same fill a batch."""
        first = self.waiting[0].priority
        return max_batch - self.running + sum([rank > first for rank in self.ranks])


@value
class First:
    """The first waiting request of an expert, and how many later ones were admitted before it."""

    expert_id: str
    number: int
    overtaken: int
    blocks: int = 0
    priority: int = 0


@value
class View:
    """What a decision may depend on.

    `firsts`: of the experts that wait, the two (more where it `has_variants`) whose first request is oldest, that one
    first; of each priority so many, the best first. `arrived` counts all requests so far. `current` is the expert of
    the last step and `streak` the steps that it ran in a row; `under_way` counts the fetches that are not finished.
    `refused`: experts that could not be brought in just now, because all that would have to go is in use.
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
    """Bring an expert in. The experts in `keep` must stay; those in `spare` go only if it does not fit otherwise."""

    expert_id: str
    keep: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()


@value
class Run:
    """Admit these waiting requests, then run one step of the expert, and of those `beside` it."""

    expert_id: str
    admit: tuple[int, ...]
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can run now."""


Decision: TypeAlias = Fetch | Run | Wait

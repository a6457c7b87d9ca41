"""Which expert runs next, who is admitted, what is fetched: pure functions from a View to a Decision.

    View -> Fetch(expert)   start bringing it up, then decide again (a refusal is in the next View)
         -> Run(expert)     one step of its running sequences and the newly admitted ones
         -> Wait            nothing can run until a fetch is done

Knows nothing about time, devices, bytes or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from coterie.core.errors import UsageError
from coterie.engine.policy import Policy


class Residence(Enum):
    """How much of an expert is in the tier from which it runs."""

    ABSENT = 0
    ARRIVING = 1  # under way, nothing can run yet
    STARTED = 2  # its first stage is there: it can run, at the speed of the wire
    READY = 3  # all of it is there


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that is not admitted: its place in the order of arrival, and the KV blocks that it needs at worst."""

    number: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Group:
    """An expert and its work. `waiting` are its first few waiting requests, `running` counts its admitted ones.

    `overtaken`: how many later requests were admitted before its first waiting one. `oldest`: the least number among
    waiting and running. `last_run`: the step in which it ran last (-1: never). `turn_steps`: the steps that it ran
    since it was brought in. `refused`: it could not be brought in, because all that would have to go is in use.
    """

    expert_id: str
    residence: Residence
    waiting: tuple[Waiting, ...]
    running: int
    overtaken: int
    oldest: int
    last_run: int = -1
    turn_steps: int = 0
    refused: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """What a decision may depend on.

    `current` is the expert of the last step and `streak` the steps that it ran in a row; `under_way` counts the fetches
    that are not finished.
    """

    groups: tuple[Group, ...]
    free_blocks: int
    current: str | None = None
    streak: int = 0
    under_way: int = 0


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring an expert in. The experts in `keep` must stay; those in `spare` go only if it does not fit otherwise."""

    expert_id: str
    keep: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Run:
    """Admit these waiting requests, then run one step of the expert."""

    expert_id: str
    admit: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can run now."""


Decision: TypeAlias = Fetch | Run | Wait


def grouped(view: View, policy: Policy) -> Decision:
    """Run what is resident, in quanta and in turn; bring the next expert in as soon as that costs nobody his turn.

    Admission is first come first served within an expert. Across experts a later request may go first, but no request
    is overtaken more than `age_bound` times. An absent expert with work comes in, least recently run first, in the
    place of experts without work or whose turn is over; so every expert gets its turn.
    """
    admissible = {group.expert_id: _admissible(group, view, policy) for group in view.groups}
    working = [group for group in view.groups if group.running or admissible[group.expert_id]]
    fetch = _next_fetch(working, view, policy)
    if fetch is not None:
        return fetch
    group = _next_group(working, view, policy)
    return Wait() if group is None else Run(group.expert_id, admissible[group.expert_id])


def fcfs(view: View, policy: Policy) -> Decision:
    """First come first served, the baseline: the oldest request's expert runs, with those right behind it in line.

    Another expert is brought in only when the one before has finished all its sequences.
    """
    group = next((g for g in view.groups if g.running), None) or min(view.groups, key=_first_waiting, default=None)
    if group is None or group.refused:
        return Wait()
    if group.residence is Residence.ABSENT:
        return Fetch(group.expert_id)
    rival = min((_first_waiting(g) for g in view.groups if g is not group), default=math.inf)
    in_line = tuple(w for w in group.waiting if w.number < rival)
    admit = _that_fit(in_line, view.free_blocks, policy.max_batch - group.running)
    runnable = group.residence is not Residence.ARRIVING or not policy.overlap
    return Run(group.expert_id, admit) if runnable and (admit or group.running) else Wait()


Schedule: TypeAlias = Callable[[View, Policy], Decision]
SCHEDULES: Mapping[str, Schedule] = {"grouped": grouped, "fcfs": fcfs}


def schedule_named(name: str) -> Schedule:
    """The schedule of that name. Raises UsageError."""
    if name not in SCHEDULES:
        raise UsageError("policy", f"{name!r} is not a schedule", f"use one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


def _admissible(group: Group, view: View, policy: Policy) -> tuple[int, ...]:
    """The waiting requests of a group that may be admitted now, first come first.

    Only the oldest request of the other experts can reach the bound first: who overtakes a later one overtakes it too.
    """
    rival = min((g for g in view.groups if g is not group), key=_first_waiting, default=None)
    passing = 0 if rival is None else max(0, policy.age_bound - rival.overtaken)
    before = math.inf if rival is None else _first_waiting(rival)
    free = [w for w in group.waiting if w.number < before]
    later = [w for w in group.waiting if w.number >= before]
    return _that_fit((*free, *later[:passing]), view.free_blocks, policy.max_batch - group.running)


def _that_fit(waiting: tuple[Waiting, ...], free_blocks: int, places: int) -> tuple[int, ...]:
    """As many of them, in order, as there are places and KV blocks for."""
    admitted = []
    for request in waiting[: max(places, 0)]:
        free_blocks -= request.blocks
        if free_blocks < 0:
            break
        admitted.append(request.number)
    return tuple(admitted)


def _next_fetch(working: list[Group], view: View, policy: Policy) -> Fetch | None:
    """The absent expert that should come in now, and those that must stay for it.

    When it is refused no other is tried: a large expert gets its hole because nobody smaller takes the room before it.
    """
    if view.under_way > (policy.prefetch if policy.overlap else 0):
        return None
    wanted = _first_absent(working)
    if wanted is not None:
        stay = [g for g in working if g.residence is not Residence.READY or g.turn_steps < policy.turn_steps]
        return None if wanted.refused else Fetch(wanted.expert_id, _resident(stay), _resident(working))
    known = _first_absent(view.groups) if policy.overlap and policy.prefetch else None
    return None if known is None or known.refused else Fetch(known.expert_id, _resident(view.groups))


def _next_group(working: list[Group], view: View, policy: Policy) -> Group | None:
    """The expert to run: one that is wholly there if any, else one that is arriving, at the speed of the wire."""
    ready = [g for g in working if g.residence is Residence.READY]
    started = [g for g in working if g.residence is Residence.STARTED]
    if not policy.overlap:
        started += [g for g in working if g.residence is Residence.ARRIVING]
        ready, started = started, ready
    candidates = ready or started
    current = next((g for g in candidates if g.expert_id == view.current), None)
    if current is not None and view.streak < policy.quantum_steps:
        return current
    return min(candidates, key=_turn, default=None)


def _first_absent(groups: Iterable[Group]) -> Group | None:
    return min((g for g in groups if g.residence is Residence.ABSENT), key=_turn, default=None)


def _resident(groups: Iterable[Group]) -> frozenset[str]:
    return frozenset(g.expert_id for g in groups if g.residence is not Residence.ABSENT)


def _turn(group: Group) -> tuple[int, int]:
    return group.last_run, group.oldest


def _first_waiting(group: Group) -> float:
    return group.waiting[0].number if group.waiting else math.inf

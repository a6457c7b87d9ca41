"""Which expert runs next, who is admitted, what is fetched: pure functions from a View to a Decision.

    View -> Fetch(expert)   start bringing it up, then decide again (a refusal is in the next View)
         -> Run(expert)     one step of its running sequences and the newly admitted ones
         -> Wait            nothing can run until a fetch is done

Knows nothing about time, devices, bytes or tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from coterie.core.errors import UsageError
from coterie.engine.policy import Policy
from coterie.engine.variants import together
from coterie.engine.view import (
    ABSENT,
    READY,
    STARTED,
    Decision,
    Fetch,
    First,
    Group,
    Residence,
    Run,
    View,
    Wait,
    Waiting,
)

ROUNDS = 2  # of quanta of all that have begun: else requests that come without end would stop others' answers


def grouped(view: View, policy: Policy) -> Decision:
    """Run what is resident, a few experts in turn; bring the expert in whose work weighs most.

    Admission is first come first served within an expert. Across experts a later request may go first, but no request
    is overtaken more than `age_bound` times. An expert's work weighs more with every request and with the age of its
    oldest: so requests of one expert gather and share its switch, and still every expert gets its turn. All that holds
    among requests of one priority; who has a better one goes before others.
    """
    working, weight = _working(view, policy), Weight(view, policy)
    fetch = _next_fetch(working, view, policy, weight)
    if fetch is not None:
        return fetch
    group = _next_group(together(working, view.current) if view.has_variants else working, view, policy, weight)
    return Wait() if group is None else Run(group.expert_id, _admissible(group, view, policy), group.beside)


def fcfs(view: View, policy: Policy) -> Decision:
    """First come first served, the baseline: the oldest request's expert runs, with those right behind it in line.

    Another expert is brought in only when the one before has finished all its sequences.
    """
    first = view.firsts[0].expert_id if view.firsts else None
    group = next((g for g in view.groups if g.running), None) or _named(view, first)
    if group is None or group.expert_id in view.refused:
        return Wait()
    if group.residence is Residence.ABSENT:
        return Fetch(group.expert_id)
    rival = _rival(group, view.firsts)
    in_line = group.waiting
    if rival is not None:
        before = rival.priority, rival.number
        in_line = tuple(w for w in group.waiting if (w.priority, w.number) < before)
    admit = _that_fit(in_line, view.free_blocks, group.places(policy.max_batch)) if in_line else ()
    runnable = group.residence is not Residence.ARRIVING or not policy.overlap
    return Run(group.expert_id, admit) if runnable and (admit or group.running) else Wait()


def grouped_repeats(view: View, run: Run, policy: Policy) -> int:
    """For how many steps in a row `grouped` decides this, as long as nobody arrives or ends and nothing comes up.

    Then weights, places and residences stay, and only the expert's streak and its turn grow. What was refused is so
    again until the turn is over: only then need the expert not stay.
    """
    if run.admit:
        return 1
    streak = view.streak if view.current == run.expert_id else 0
    most = policy.quantum_steps - streak
    for group in view.groups if view.refused else ():
        its = group.expert_id == run.expert_id or group.expert_id in run.beside
        if its and group.turn_steps < policy.turn_steps:
            most = min(most, policy.turn_steps - group.turn_steps)
    return max(1, most)


def fcfs_repeats(view: View, run: Run, policy: Policy) -> int:
    """As `grouped_repeats`: whoever runs goes on until one of its sequences ends."""
    return 1 if run.admit else policy.max_steps


Schedule: TypeAlias = Callable[[View, Policy], Decision]
Repeats: TypeAlias = Callable[[View, Run, Policy], int]
SCHEDULES: Mapping[str, Schedule] = {"grouped": grouped, "fcfs": fcfs}
REPEATS: Mapping[str, Repeats] = {"grouped": grouped_repeats, "fcfs": fcfs_repeats}


def schedule_named(name: str) -> Schedule:
    """The schedule of that name. Raises UsageError."""
    if name not in SCHEDULES:
        raise UsageError("policy", f"{name!r} is not a schedule", f"use one of {', '.join(SCHEDULES)}")
    return SCHEDULES[name]


def _rival(group: Group, firsts: Iterable[First]) -> First | None:
    """The oldest waiting request of another expert.

    It alone can reach the age bound first: who overtakes a later one overtakes it too.
    """
    its = (group.expert_id, *group.beside)
    return next((first for first in firsts if first.expert_id not in its), None)


def _free_for(priority: int, view: View) -> int:
    """The KV blocks that such requests may have: what the first in line needs is kept from those behind it."""
    first = view.firsts[0] if view.firsts else None
    return view.free_blocks - (0 if first is None or first.priority >= priority else first.blocks)


def _passing(rival: First | None, policy: Policy) -> int:
    return 0 if rival is None else max(0, policy.age_bound - rival.overtaken)


def _admissible(group: Group, view: View, policy: Policy) -> tuple[int, ...]:
    """The waiting requests of a group that may be admitted now, first come first, all of one priority."""
    if not group.waiting:
        return ()
    lead, its, firsts = group.waiting[0], group.waiting, view.firsts
    if its[-1].priority != lead.priority:
        its = tuple([w for w in its if w.priority == lead.priority])
    rival = _rival(group, [first for first in firsts if first.priority == lead.priority])
    free = sum(rival is None or w.number < rival.number for w in its)
    may = its[: free + _passing(rival, policy)]
    return _that_fit(may, _free_for(lead.priority, view), group.places(policy.max_batch))


def _working(view: View, policy: Policy) -> list[Group]:
    """The groups with running requests, and those of which one more may be admitted, once they are resident."""
    # The oldest request of a priority may always go; any other one of it overtakes it.
    oldest = {first.priority: first for first in reversed(view.firsts)}
    closed = {priority: its.expert_id for priority, its in oldest.items() if its.overtaken >= policy.age_bound}
    free = {priority: _free_for(priority, view) for priority in oldest}
    return [
        g
        for g in view.groups
        if g.running
        or (
            (first := g.waiting[0]).blocks <= free.get(first.priority, view.free_blocks)
            and closed.get(first.priority, g.expert_id) == g.expert_id
        )
    ]


def _that_fit(waiting: tuple[Waiting, ...], free_blocks: int, places: int) -> tuple[int, ...]:
    """As many of them, in order, as there are places and KV blocks for."""
    admitted = []
    for request in waiting[: max(places, 0)]:
        free_blocks -= request.blocks
        if free_blocks < 0:
            break
        admitted.append(request.number)
    return tuple(admitted)


def _next_fetch(working: list[Group], view: View, policy: Policy, weight: Weight) -> Fetch | None:
    """The absent expert that should come in now, and those that must stay for it.

    When it is refused no other is tried: a large expert gets its hole because nobody smaller takes the room before it.
    """
    ahead = policy.prefetch if policy.overlap else 0
    if view.under_way > ahead:
        return None
    for group in view.groups:  # mostly nobody is absent
        if group.residence is ABSENT:
            break
    else:
        return None
    wanted = _heaviest([g for g in working if g.residence is ABSENT], weight)
    if wanted is not None:
        if wanted.expert_id in view.refused or _there_before(wanted, working, weight) > ahead:
            return None
        its = wanted.priority
        stay = [
            g
            for g in working
            if g.residence is not Residence.READY or (g.turn_steps < policy.turn_steps and g.priority <= its)
        ]
        return Fetch(wanted.expert_id, _resident(stay), _resident(view.groups))
    if not ahead:
        return None
    known = _heaviest([g for g in view.groups if g.residence is ABSENT], weight)
    return None if known is None or known.expert_id in view.refused else Fetch(known.expert_id, _resident(view.groups))


def _there_before(wanted: Group, working: list[Group], weight: Weight) -> int:
    """How many experts are there, or under way, with work that is not begun and weighs no less."""
    there = [g for g in working if g.residence is not ABSENT and not g.running]
    least = weight.of(wanted)
    return sum([weight.of(group) >= least for group in there])


def _next_group(working: list[Group], view: View, policy: Policy, weight: Weight) -> Group | None:
    """The expert to run: one that is wholly there if any, else one that is arriving, at the speed of the wire.

    `turns` experts share the steps in quanta; another one begins when one of them has nothing left to do. Behind each
    quantum whoever has requests that can be admitted goes first, one that has begun too: the others wait for a quantum
    more, where a first token would wait for a round of them. Who has begun is passed for so many ROUNDS at most.
    """
    ready = [g for g in working if g.residence is READY]
    if policy.overlap:
        candidates = ready or [g for g in working if g.residence is STARTED]
    else:
        candidates = [g for g in working if g.residence in (STARTED, Residence.ARRIVING)] or ready
    if len({group.priority for group in candidates}) > 1:
        candidates = _in_front(candidates, view, policy)
    begun = [g for g in candidates if g.running]
    if view.streak < policy.quantum_steps:
        for group in begun:
            if group.expert_id == view.current:
                return group
    longest_ago = min(begun, key=lambda group: (group.last_run, group.oldest), default=None)
    now = max([group.last_run for group in view.groups], default=0)
    if longest_ago is not None and now - longest_ago.last_run > ROUNDS * len(begun) * policy.quantum_steps:
        return longest_ago
    open_to_more = candidates if len(begun) < policy.turns else begun
    newcomers = [g for g in open_to_more if g.waiting and _admissible(g, view, policy)]
    return _heaviest(newcomers, weight) if newcomers else longest_ago


def _in_front(candidates: list[Group], view: View, policy: Policy) -> list[Group]:
    """Those of the best priority of which one can go."""
    able = [group for group in candidates if group.running or _admissible(group, view, policy)]
    best = min([group.priority for group in able], default=0)
    return [group for group in able if group.priority == best]


def _heaviest(groups: list[Group], weight: Weight) -> Group | None:
    if len(groups) < 2:
        return groups[0] if groups else None
    heaviest, most = groups[0], weight.of(groups[0])
    for group in groups[1:]:
        its = weight.of(group)
        if its > most or (its == most and group.oldest < heaviest.oldest):
            heaviest, most = group, its
    return heaviest


class Weight:
    """What a switch to an expert is worth: requests times the square of the oldest one's age, in arrivals; above all,
    the best priority among them.

    Requests alone save the most switches and let single ones wait for the age bound; age alone is first come first
    served. Who has waited for more arrivals than `patience` times the requests that are here (with first come first
    served it would be once) goes before all others, the oldest first: so the longest waits stay near theirs.
    """

    __slots__ = ("_limit", "_policy", "_view")

    def __init__(self, view: View, policy: Policy) -> None:
        self._view, self._policy = view, policy
        self._limit: float | None = None  # most decisions weigh nobody

    def of(self, group: Group) -> tuple[int, bool, int]:
        """Weights compare: the larger goes first."""
        if self._limit is None:
            requests = sum([group.num_waiting + group.running for group in self._view.groups])
            self._limit = self._policy.patience * requests
        age = self._view.arrived - group.oldest
        if age > self._limit:
            return -group.priority, True, age
        return -group.priority, False, (group.num_waiting + group.running) * age * age


def _named(view: View, expert_id: str | None) -> Group | None:
    return next((g for g in view.groups if g.expert_id == expert_id), None)


def _resident(groups: Iterable[Group]) -> frozenset[str]:
    return frozenset([g.expert_id for g in groups if g.residence is not ABSENT])

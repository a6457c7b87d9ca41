"""Which expert runs next, which requests are admitted, what is fetched: pure functions from a View to a Decision.

    View -> Fetch(expert)   start loading it, then decide again (the next View records a refusal)
         -> Run(expert)     one step of its running sequences and the newly admitted ones
         -> Wait            nothing can run until a fetch is done

Knows nothing about time, devices, bytes or tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from coterie.core.errors import UsageError
from coterie.engine.policy import Policy
from coterie.engine.variants import join_variants
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

ROUNDS = 2  # rounds of quanta for which a started expert may be passed over; unbounded, new requests could starve it


def grouped(view: View, policy: Policy) -> Decision:
    """Run what is resident, a few experts in turn; fetch the absent expert whose work has the largest weight.

    Admission is first come first served within an expert. Across experts a later request may go first, but no request
    is overtaken more than `age_bound` times. An expert's weight grows with each request and with the age of its oldest
    one, so requests for one expert gather and share its switch, and still every expert gets its turn. All this holds
    among requests of equal priority; requests of a better priority always go first.
    """
    working, weight = _working(view, policy), Weight(view, policy)
    fetch = _next_fetch(working, view, policy, weight)
    if fetch is not None:
        return fetch
    group = _next_group(join_variants(working, view.current) if view.has_variants else working, view, policy, weight)
    return Wait() if group is None else Run(group.expert_id, _admissible(group, view, policy), group.partners)


def fcfs(view: View, policy: Policy) -> Decision:
    """First come first served, the baseline: runs the oldest request's expert, with the requests next in line for it.

    Another expert is fetched only when the current one has finished all its sequences.
    """
    first = view.firsts[0].expert_id if view.firsts else None
    group = next((g for g in view.groups if g.running), None) or _find(view, first)
    if group is None or group.expert_id in view.refused:
        return Wait()
    if group.residence is Residence.ABSENT:
        return Fetch(group.expert_id)
    rival = _rival(group, view.firsts)
    in_line = group.waiting
    if rival is not None:
        before = rival.priority, rival.number
        in_line = tuple(w for w in group.waiting if (w.priority, w.number) < before)
    admit = _fitting_prefix(in_line, view.free_blocks, group.places(policy.max_batch)) if in_line else ()
    runnable = group.residence is not Residence.ARRIVING or not policy.overlap
    return Run(group.expert_id, admit) if runnable and (admit or group.running) else Wait()


def grouped_repeats(view: View, run: Run, policy: Policy) -> int:
    """For how many consecutive steps `grouped` decides the same, while no request arrives or ends and no load finishes.

    Weights, places and residences then stay the same; only the expert's streak and its turn grow. A refused fetch stays
    refused until the turn of an expert it would displace is over, because only then may that one be evicted.
    """
    if run.admit:
        return 1
    streak = view.streak if view.current == run.expert_id else 0
    steps = policy.quantum_steps - streak
    for group in view.groups if view.refused else ():
        runs = group.expert_id == run.expert_id or group.expert_id in run.partners
        if runs and group.turn_steps < policy.turn_steps:
            steps = min(steps, policy.turn_steps - group.turn_steps)
    return max(1, steps)


def fcfs_repeats(view: View, run: Run, policy: Policy) -> int:
    """As `grouped_repeats`: the running expert continues until one of its sequences ends."""
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

    Only this one needs checking against the age bound: whatever overtakes a later request overtakes it too.
    """
    own = (group.expert_id, *group.partners)
    return next((first for first in firsts if first.expert_id not in own), None)


def _free_for(priority: int, view: View) -> int:
    """KV blocks available to requests of this priority: those needed by the first in line are kept from worse ones."""
    first = view.firsts[0] if view.firsts else None
    return view.free_blocks - (0 if first is None or first.priority >= priority else first.blocks)


def _overtakes_left(rival: First | None, policy: Policy) -> int:
    return 0 if rival is None else max(0, policy.age_bound - rival.overtaken)


def _admissible(group: Group, view: View, policy: Policy) -> tuple[int, ...]:
    """The waiting requests of a group that may be admitted now, first come first, all of one priority."""
    if not group.waiting:
        return ()
    lead, waiting, firsts = group.waiting[0], group.waiting, view.firsts
    if waiting[-1].priority != lead.priority:
        waiting = tuple([w for w in waiting if w.priority == lead.priority])
    rival = _rival(group, [first for first in firsts if first.priority == lead.priority])
    free = sum(rival is None or w.number < rival.number for w in waiting)
    allowed = waiting[: free + _overtakes_left(rival, policy)]
    return _fitting_prefix(allowed, _free_for(lead.priority, view), group.places(policy.max_batch))


def _working(view: View, policy: Policy) -> list[Group]:
    """The groups with running requests, and those that could admit one more request once they are resident."""
    # The oldest request of a priority may always be admitted; admitting any other of that priority overtakes it.
    oldest = {first.priority: first for first in reversed(view.firsts)}
    closed = {priority: first.expert_id for priority, first in oldest.items() if first.overtaken >= policy.age_bound}
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


def _fitting_prefix(waiting: tuple[Waiting, ...], free_blocks: int, places: int) -> tuple[int, ...]:
    """The longest prefix of these requests for which there are places and KV blocks."""
    admitted = []
    for request in waiting[: max(places, 0)]:
        free_blocks -= request.blocks
        if free_blocks < 0:
            break
        admitted.append(request.number)
    return tuple(admitted)


def _next_fetch(working: list[Group], view: View, policy: Policy, weight: Weight) -> Fetch | None:
    """The absent expert to fetch now, and the experts that must stay resident meanwhile.

    If its fetch is refused, no other is tried: otherwise smaller experts would keep taking the space a large one needs.
    """
    ahead = policy.prefetch if policy.overlap else 0
    if view.under_way > ahead:
        return None
    for group in view.groups:  # usually every expert is resident
        if group.residence is ABSENT:
            break
    else:
        return None
    wanted = _heaviest([g for g in working if g.residence is ABSENT], weight)
    if wanted is not None:
        if wanted.expert_id in view.refused or _num_heavier_waiting(wanted, working, weight) > ahead:
            return None
        priority = wanted.priority
        stay = [
            g
            for g in working
            if g.residence is not Residence.READY or (g.turn_steps < policy.turn_steps and g.priority <= priority)
        ]
        return Fetch(wanted.expert_id, _resident(stay), _resident(view.groups))
    if not ahead:
        return None
    known = _heaviest([g for g in view.groups if g.residence is ABSENT], weight)
    return None if known is None or known.expert_id in view.refused else Fetch(known.expert_id, _resident(view.groups))


def _num_heavier_waiting(wanted: Group, working: list[Group], weight: Weight) -> int:
    """How many experts, resident or loading, have unstarted work of at least this one's weight."""
    unstarted = [g for g in working if g.residence is not ABSENT and not g.running]
    own_weight = weight.of(wanted)
    return sum([weight.of(group) >= own_weight for group in unstarted])


def _next_group(working: list[Group], view: View, policy: Policy, weight: Weight) -> Group | None:
    """The expert to run: a fully resident one if any, else one still arriving, as fast as its weights arrive.

    Up to `max_active_experts` experts share the steps in quanta; another starts when one of them runs out of work.
    After each quantum an expert with admissible requests goes first, even one already started: that costs the others
    one more quantum, where a first token would have to wait for a whole round. A started expert is passed over for at
    most ROUNDS rounds.
    """
    ready = [g for g in working if g.residence is READY]
    if policy.overlap:
        candidates = ready or [g for g in working if g.residence is STARTED]
    else:
        candidates = [g for g in working if g.residence in (STARTED, Residence.ARRIVING)] or ready
    if len({group.priority for group in candidates}) > 1:
        candidates = _of_best_priority(candidates, view, policy)
    begun = [g for g in candidates if g.running]
    if view.streak < policy.quantum_steps:
        for group in begun:
            if group.expert_id == view.current:
                return group
    longest_ago = min(begun, key=lambda group: (group.last_run, group.oldest), default=None)
    now = max([group.last_run for group in view.groups], default=0)
    if longest_ago is not None and now - longest_ago.last_run > ROUNDS * len(begun) * policy.quantum_steps:
        return longest_ago
    open_to_more = candidates if len(begun) < policy.max_active_experts else begun
    newcomers = [g for g in open_to_more if g.waiting and _admissible(g, view, policy)]
    return _heaviest(newcomers, weight) if newcomers else longest_ago


def _of_best_priority(candidates: list[Group], view: View, policy: Policy) -> list[Group]:
    """The groups of the best priority that has any work that can proceed."""
    able = [group for group in candidates if group.running or _admissible(group, view, policy)]
    best = min([group.priority for group in able], default=0)
    return [group for group in able if group.priority == best]


def _heaviest(groups: list[Group], weight: Weight) -> Group | None:
    if len(groups) < 2:
        return groups[0] if groups else None
    heaviest, max_weight = groups[0], weight.of(groups[0])
    for group in groups[1:]:
        own = weight.of(group)
        if own > max_weight or (own == max_weight and group.oldest < heaviest.oldest):
            heaviest, max_weight = group, own
    return heaviest


class Weight:
    """The value of running or fetching an expert: its requests times the square of the oldest one's age in arrivals.

    Among experts of different priorities (the best of their requests) the better one comes first. The number of
    requests alone would save the most switches but leave single requests to the age bound; age alone is first come
    first served. A request that has waited for more arrivals than `overdue_factor` times the requests present beats all
    weights, oldest first. Under first come first served it would wait for about as many arrivals as there are requests
    present, so this keeps the longest waits close to that baseline.
    """

    __slots__ = ("_limit", "_policy", "_view")

    def __init__(self, view: View, policy: Policy) -> None:
        self._view, self._policy = view, policy
        self._limit: float | None = None  # computed on demand: most decisions compare no weights

    def of(self, group: Group) -> tuple[int, bool, int]:
        """Comparable weight; the larger goes first."""
        if self._limit is None:
            requests = sum([group.num_waiting + group.running for group in self._view.groups])
            self._limit = self._policy.overdue_factor * requests
        age = self._view.arrived - group.oldest
        if age > self._limit:
            return -group.priority, True, age
        return -group.priority, False, (group.num_waiting + group.running) * age * age


def _find(view: View, expert_id: str | None) -> Group | None:
    return next((g for g in view.groups if g.expert_id == expert_id), None)


def _resident(groups: Iterable[Group]) -> frozenset[str]:
    return frozenset([g.expert_id for g in groups if g.residence is not ABSENT])

"""Modelled time as a fluid: work that draws on one resource shares it, re-timed at each start and end.

    lane    compute  [ phase | phase | gate... phase ]      a phase: a delay, then flows that drain at the same time
            a->b     [ phase ]                              a flow: an amount, drained at one rate from all it uses

    merged phases   are taken in one piece while nothing else is active, one by one otherwise: the same to rounding

    rate of a flow = its max-min fair share: all rates rise together until a resource is full; its flows stop there

Knows nothing about programs, bytes or tiers: resources are names with a capacity per second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import count
from math import inf

import numpy as np

from coterie.devices.modelled_parts import Table

MAX_TABLES = 1024  # of merged phases, to be kept; a bound on memory, not on use
ROUNDING = 1e-12  # relative: what would end within this share of a step ends with it; the difference is rounding


@dataclass(frozen=True, slots=True)
class Flow:
    """An amount that drains at one rate. `uses` says how much of each resource one unit of it takes."""

    amount: float
    uses: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Phase:
    """A step of a work: await `gate` where there is one, then the delay, then drain every flow.

    `alone_s` only saves work: how long draining takes when nothing else is active. Give it where each flow uses one
    resource and no two the same. `parts` are what a merged phase is made of; it has no delay and no flows of its own.
    """

    delay_s: float = 0.0
    flows: tuple[Flow, ...] = ()
    gate: Work | None = None
    alone_s: float | None = None
    parts: tuple[Phase, ...] = ()
    drawn: tuple[tuple[str, float], ...] = ()


def merged(parts: Sequence[Phase], gate: Work | None = None) -> Phase:
    """Phases as one, that awaits `gate` first. Parts have no gates and each knows `alone_s`; ValueError otherwise."""
    total_s = 0.0
    drawn: dict[str, float] = {}
    for part in parts:
        if part.gate is not None or part.alone_s is None or part.parts:
            raise ValueError("only plain phases without gates, which know how long they take alone, can be merged")
        total_s += part.delay_s + part.alone_s
        for flow in part.flows:
            for resource, share in flow.uses.items():
                drawn[resource] = drawn.get(resource, 0.0) + share * flow.amount
    return Phase(gate=gate, alone_s=total_s, parts=tuple(parts), drawn=tuple(drawn.items()))


@dataclass(slots=True, eq=False)
class Work:
    """What a lane holds: phases done in order. `failure` is how it ends (None: well); read it when finished.

    `cuts` are the numbers of phases after which it can be cut short; `pieces` is to how many of these pieces it was.
    Once finished it holds no other work, and the clock does not hold it.
    """

    number: int
    after: tuple[Work, ...] = field(repr=False)
    phases: tuple[Phase, ...] = field(repr=False)
    failure: Exception | None
    cuts: tuple[int, ...] = ()
    pieces: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    _entered: bool = False
    _fresh: bool = False
    _index: int = 0
    _part: int = 0
    _delay_s: float = 0.0
    _left: list[float] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """True when it is done or failed."""
        return self.end_s is not None

    @property
    def took_s(self) -> float:
        """From its start to its end; 0 before."""
        return 0.0 if self.start_s is None or self.end_s is None else self.end_s - self.start_s

    def cut_short(self) -> None:
        """End after the piece that it is in; after the first if it has not begun."""
        if self.cuts and not self.finished:
            self.pieces = next(i for i, end in enumerate(self.cuts, 1) if self._index < end or i == len(self.cuts))
            self.phases = self.phases[: self.cuts[self.pieces - 1]]

    def _leaf(self) -> Phase:
        """The plain phase that it is at."""
        phase = self.phases[self._index]
        return phase.parts[self._part] if phase.parts else phase

    def _leave(self) -> None:
        """Go on to the next plain phase, not yet entered."""
        if self._part + 1 < len(self.phases[self._index].parts):
            self._part += 1
        else:
            self._index += 1
            self._part = 0
        self._entered = False


@dataclass(slots=True)
class Usage:
    """What one resource gave: the amount drawn, and the seconds in which anything drew on it."""

    drawn: float = 0.0
    busy_s: float = 0.0


def fair_rates(flows: Sequence[Mapping[str, float]], capacity: Mapping[str, float]) -> list[float]:
    """Max-min fair rates of flows, each given by what it uses, under capacities per second (progressive filling).

    What uses nothing is bounded by nothing: its rate is infinite.
    """
    rates = [0.0 if uses else inf for uses in flows]
    left = dict(capacity)
    open_flows = [i for i, uses in enumerate(flows) if uses]
    level = 0.0
    while open_flows:
        demand: dict[str, float] = {}
        for i in open_flows:
            for resource, share in flows[i].items():
                demand[resource] = demand.get(resource, 0.0) + share
        rise, tight = min((left[resource] / total, resource) for resource, total in demand.items())
        level += rise
        for resource, total in demand.items():
            left[resource] = max(0.0, left[resource] - rise * total)
        still_open = []
        for i in open_flows:
            if tight in flows[i]:
                rates[i] = level
            else:
                still_open.append(i)
        open_flows = still_open
    return rates


def _left_over(
    capacity: Mapping[str, float], names: Sequence[str], uses: Sequence[Mapping[str, float]], rates: Sequence[float]
) -> dict[str, float] | None:
    """What these flows leave of each resource to one flow more; None if that one's fair share would slow them."""
    taken: dict[str, float] = {}
    fastest: dict[str, float] = {}
    for used, rate in zip(uses, rates, strict=True):
        for name, share in used.items():
            taken[name] = taken.get(name, 0.0) + share * rate
            fastest[name] = max(fastest.get(name, 0.0), rate)
    free = {name: capacity[name] - taken.get(name, 0.0) for name in names}
    slowed = any(free[name] < fastest.get(name, 0.0) or free[name] <= 0 for name in names)
    return None if slowed else free


def _only(flow: Flow) -> str:
    (name,) = flow.uses
    return name


def _drain(work: Work, seconds: float, free: Mapping[str, float], drawn: dict[str, float]) -> None:
    """Let a work's phase go on for less than it needs."""
    waited = min(work._delay_s, seconds)
    work._delay_s -= waited
    work._fresh = False
    for k, flow in enumerate(work._leaf().flows):
        name = _only(flow)
        amount = min(work._left[k], free[name] * (seconds - waited))
        left = work._left[k] - amount
        work._left[k] = left if left > ROUNDING * flow.amount else 0.0
        drawn[name] += amount


class FluidClock:
    """Lanes of work over shared resources, and the time. Issuing never moves time; `advance` does."""

    def __init__(self, capacity: Mapping[str, float]) -> None:
        """`capacity` gives each resource's units per second, all above zero."""
        self.now = 0.0
        self.usage = {resource: Usage() for resource in capacity}
        self.lane_busy_s: dict[str, float] = {}
        self._capacity = dict(capacity)
        self._lanes: dict[str, deque[Work]] = {}
        self._numbers = count()
        self._tables: dict[int, Table] = {}

    def issue(
        self,
        lane: str,
        after: Iterable[Work],
        phases: Iterable[Phase],
        failure: Exception | None = None,
        cuts: tuple[int, ...] = (),
    ) -> Work:
        """Append a work to a lane. `after` and gates are works issued before."""
        work = Work(next(self._numbers), tuple(after), tuple(phases), failure, cuts)
        self._lanes.setdefault(lane, deque()).append(work)
        self._settle()
        return work

    def advance(self, until: float | None = None) -> bool:
        """Move to the next moment of change, or to `until` if that comes first. False: nothing is active."""
        active = [lane[0] for lane in self._lanes.values() if lane and lane[0]._entered]
        if len(active) == 1 and self._advance_alone(active[0], until):
            return True
        merged = next((work for work in active if work.phases[work._index].parts), None)
        if merged is not None and self._advance_beside(merged, [w for w in active if w is not merged], until):
            return True
        delayed, draining, uses = self._active(active)
        if not delayed and not draining:
            return False
        rates = fair_rates(uses, self._capacity)
        ends = [work._left[k] / rate for (work, k), rate in zip(draining, rates, strict=True)]
        step = min([work._delay_s for work in delayed] + ends)
        end = self.now + step
        if until is not None and end > until:
            end = max(until, self.now)
            step = end - self.now
        ended_s = step * (1 + ROUNDING)
        for work in active:
            work._fresh = False
        for work in delayed:
            work._delay_s = 0.0 if work._delay_s <= ended_s else work._delay_s - step
        for (work, k), rate, end_s in zip(draining, rates, ends, strict=True):
            work._left[k] = 0.0 if end_s <= ended_s else work._left[k] - rate * step
        self._account(uses, rates, step)
        self.now = end
        self._settle()
        return True

    def head(self, lane: str) -> Work | None:
        """The work that a lane is at, None when it has none."""
        works = self._lanes.get(lane)
        return works[0] if works else None

    def idle_until(self, moment: float) -> None:
        """Let time pass to `moment` while nothing is active; earlier moments change nothing."""
        self.now = max(self.now, moment)

    def _advance_alone(self, work: Work, until: float | None) -> bool:
        """Take whole phases of the only active work; others wait for it, so nothing else can change meanwhile."""
        moved = False
        while work._entered and work._fresh:
            whole = work.phases[work._index]
            phase = whole if whole.parts and work._part == 0 else work._leaf()
            if phase.alone_s is None:
                break
            end = self.now + phase.delay_s + phase.alone_s
            if until is not None and end > until:
                if not phase.parts:
                    break
                phase = work._leaf()
                end = self.now + phase.delay_s + (phase.alone_s or 0.0)
                if end > until:
                    break
            self._draw(phase)
            self.now = end
            moved = True
            if phase.parts:
                work._part = len(phase.parts) - 1
            work._leave()
            if work._index < len(work.phases):
                gate = work.phases[work._index].gate if work._part == 0 else None
                if gate is None:
                    self._enter(work)
        if moved:
            self._settle()
        return moved

    def _advance_beside(self, work: Work, others: Sequence[Work], until: float | None) -> bool:
        """Take parts of a merged phase up to the next change among others; False where they would slow each other.

        As long as every flow of the others gets what it would get alone, each part has the rest of what it uses: then
        how long each takes is known at once.
        """
        delayed, draining, uses = self._active(others)
        rates = fair_rates(uses, self._capacity)
        table = self._table(work.phases[work._index].parts)
        free = _left_over(self._capacity, table.resources, uses, rates)
        if free is None:
            return False
        limit = min(
            [other._delay_s for other in delayed]
            + [other._left[k] / rate for (other, k), rate in zip(draining, rates, strict=True)]
            + [inf if until is None else max(0.0, until - self.now)]
        )
        step = self._take_parts(work, table, free, limit, {name for used in uses for name in used})
        ended_s = step * (1 + ROUNDING)
        for other in delayed:
            other._delay_s = 0.0 if other._delay_s <= ended_s else other._delay_s - step
        for (other, k), rate in zip(draining, rates, strict=True):
            left = other._left[k]
            other._left[k] = 0.0 if left <= rate * ended_s else left - rate * step
        for other in others:
            other._fresh = False
        self._account(uses, rates, step)
        self.now = self.now + step if until is None else min(self.now + step, max(until, self.now))
        self._settle()
        return True

    def _take_parts(self, work: Work, table: Table, free: Mapping[str, float], limit: float, shared: Set[str]) -> float:
        """Let parts pass for at most `limit` seconds, account for them, and return how long it was."""
        leaf, at = work._leaf(), work._part
        drawn = dict.fromkeys(table.resources, 0.0)
        rest_s = max((left / free[_only(flow)] for flow, left in zip(leaf.flows, work._left, strict=True)), default=0.0)
        step = work._delay_s + rest_s
        if step <= limit:
            for flow, left in zip(leaf.flows, work._left, strict=True):
                drawn[_only(flow)] += left
            count, left_s = len(table.parts), limit - step
            if at + 1 < count:
                ends = table.ends_s(at + 1, np.array([free[name] for name in table.resources]))
                passed = int(np.searchsorted(ends, left_s, side="right"))
                for name, amount in zip(
                    table.resources, table.amounts[at + 1 : at + 1 + passed].sum(axis=0), strict=True
                ):
                    drawn[name] += float(amount)
                before = float(ends[passed - 1]) if passed else 0.0
                at, step, left_s = at + passed, step + before, left_s - before
            work._part = at
            work._leave()
            if work._index < len(work.phases) and (work._part or work.phases[work._index].gate is None):
                self._enter(work)
            if at + 1 < count:
                step = limit
                _drain(work, left_s, free, drawn)
        else:
            step = limit
            _drain(work, limit, free, drawn)
        for name, amount in drawn.items():
            usage = self.usage[name]
            usage.drawn += amount
            usage.busy_s += 0.0 if name in shared else amount / self._capacity[name]
        return step

    def _table(self, parts: tuple[Phase, ...]) -> Table:
        found = self._tables.get(id(parts))
        if found is None:
            if len(self._tables) >= MAX_TABLES:
                self._tables.clear()
            found = self._tables[id(parts)] = Table.of(parts)
        return found

    def _draw(self, phase: Phase) -> None:
        """Account for a phase that was alone."""
        if phase.parts:
            for resource, amount in phase.drawn:
                usage = self.usage[resource]
                usage.drawn += amount
                usage.busy_s += amount / self._capacity[resource]
            return
        for flow in phase.flows:
            for resource, share in flow.uses.items():
                usage = self.usage[resource]
                usage.drawn += share * flow.amount
                usage.busy_s += share * flow.amount / self._capacity[resource]

    def _active(self, works: Sequence[Work]) -> tuple[list[Work], list[tuple[Work, int]], list[Mapping[str, float]]]:
        delayed: list[Work] = []
        draining: list[tuple[Work, int]] = []
        uses: list[Mapping[str, float]] = []
        for work in works:
            if work._delay_s > 0:
                delayed.append(work)
                continue
            for k, flow in enumerate(work._leaf().flows):
                if work._left[k] > 0:
                    draining.append((work, k))
                    uses.append(flow.uses)
        return delayed, draining, uses

    def _account(self, uses: Sequence[Mapping[str, float]], rates: Sequence[float], step: float) -> None:
        for resource in dict.fromkeys(name for used in uses for name in used):
            self.usage[resource].busy_s += step
        for used, rate in zip(uses, rates, strict=True):
            for resource, share in used.items():
                self.usage[resource].drawn += share * rate * step

    def _settle(self) -> None:
        """Take every transition that needs no time, until none is left."""
        changed = True
        while changed:
            changed = False
            for name, lane in self._lanes.items():
                while lane and self._step(lane[0]):
                    changed = True
                    if lane[0].finished:
                        work = lane.popleft()
                        self.lane_busy_s[name] = self.lane_busy_s.get(name, 0.0) + work.took_s

    def _step(self, work: Work) -> bool:
        """Take one transition of a lane's head; False if it must wait."""
        if work.start_s is None:
            return self._start(work)
        if work._index == len(work.phases):
            self._finish(work, work.failure)
            return True
        if not work._entered:
            return self._enter(work)
        if work._delay_s > 0 or any(left > 0 for left in work._left):
            return False
        work._leave()
        return True

    def _start(self, work: Work) -> bool:
        if not all(cause.finished for cause in work.after):
            return False
        work.start_s = self.now
        failure = next((cause.failure for cause in work.after if cause.failure is not None), None)
        work.after = ()
        if failure is not None:
            self._finish(work, failure)
        return True

    def _enter(self, work: Work) -> bool:
        gate = work.phases[work._index].gate
        if gate is not None and work._part == 0:
            if not gate.finished:
                return False
            if gate.failure is not None:
                self._finish(work, gate.failure)
                return True
        phase = work._leaf()
        work._entered = work._fresh = True
        work._delay_s = phase.delay_s
        work._left = [flow.amount for flow in phase.flows]
        return True

    def _finish(self, work: Work, failure: Exception | None) -> None:
        work.failure = failure
        work.end_s = self.now
        work.phases, work._left, work._entered = (), [], False

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
from dataclasses import dataclass
from itertools import count
from math import inf

import numpy as np

from coterie.devices.modelled_parts import Table
from coterie.devices.modelled_share import fair_rates, left_over
from coterie.devices.modelled_work import Flow, Phase, Work, merged

__all__ = ["Flow", "FluidClock", "Phase", "Usage", "Work", "fair_rates", "merged"]

MAX_TABLES = 1024  # of merged phases, to be kept; a bound on memory, not on use
ROUNDING = 1e-12  # relative: what would end within this share of a step ends with it; the difference is rounding


@dataclass(slots=True)
class Usage:
    """What one resource gave: the amount drawn, and the seconds in which anything drew on it."""

    drawn: float = 0.0
    busy_s: float = 0.0


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
        free = left_over(self._capacity, table.resources, uses, rates)
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

"""A fluid model of time: concurrent work shares resources, and rates are recomputed whenever work starts or ends.

    lane    compute  [ phase | phase | gate... phase ]      a phase: a delay, then flows that drain concurrently
            a->b     [ phase ]                              a flow: an amount, drained at one rate from all it uses

    merged phases   are processed as a whole while nothing else is active, else part by part; equal up to rounding

    rate of a flow = its max-min fair share: all rates rise together until a resource is full, which fixes its flows

Knows nothing about programs, bytes or tiers: resources are names with a capacity per second.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf

from coterie.devices.modelled.share import Shared, Shares, fair_rates
from coterie.devices.modelled.work import Flow, Parts, Phase, Work, merged

__all__ = ["Flow", "FluidClock", "Phase", "Usage", "Work", "fair_rates", "merged"]

ROUNDING = 1e-12  # relative tolerance: whatever would end this close to the end of a step ends with it


@dataclass(slots=True)
class Usage:
    """Use of one resource: the amount drawn, and the seconds in which anything drew on it."""

    drawn: float = 0.0
    busy_s: float = 0.0


def _drain(work: Work, columns: Sequence[int], seconds: float, free: tuple[float, ...], drawn: list[float]) -> None:
    """Advance a work's phase by less than it needs; `columns`: index of each of its flows in `free` and `drawn`."""
    waited = min(work._delay_s, seconds)
    work._delay_s -= waited
    work._fresh = False
    left, seconds = work._left, seconds - waited
    for k, (flow, column) in enumerate(zip(work._leaf().flows, columns, strict=True)):
        amount = min(left[k], free[column] * seconds)
        rest = left[k] - amount
        left[k] = rest if rest > ROUNDING * flow.amount else 0.0
        drawn[column] += amount


class FluidClock:
    """Lanes of work over shared resources, and the current time, which only `advance` moves."""

    def __init__(self, capacity: Mapping[str, float]) -> None:
        """`capacity`: units per second of each resource, all positive."""
        self.now = 0.0
        self.usage = {resource: Usage() for resource in capacity}
        self.lane_busy_s: dict[str, float] = {}
        self._capacity = dict(capacity)
        self._lanes: dict[str, deque[Work]] = {}
        self._shares = Shares(self._capacity)
        self._numbers = count()

    def issue(
        self,
        lane: str,
        after: Iterable[Work],
        phases: Iterable[Phase],
        failure: Exception | None = None,
        cuts: tuple[int, ...] = (),
    ) -> Work:
        """Append a work to a lane. `after` and gates must have been issued earlier."""
        work = Work(next(self._numbers), tuple(after), tuple(phases), failure, cuts)
        waiting = self._lanes.setdefault(lane, deque())
        waiting.append(work)
        # All else is settled, and work queued after other work changes nothing yet.
        if len(waiting) == 1:
            self._settle()
        return work

    def issue_chain(self, lane: str, after: Iterable[Work], phases: Iterable[Phase]) -> list[Work]:
        """Append works of one phase each to a lane; each waits for its predecessor, the first for `after`."""
        works: list[Work] = []
        for phase in phases:
            works.append(self.issue(lane, works[-1:] or after, (phase,)))
        return works

    def advance(self, until: float | None = None) -> bool:
        """Advance to the next change, or to `until` if that comes first. False: nothing is active."""
        active = [lane[0] for lane in self._lanes.values() if lane and lane[0]._entered]
        if len(active) == 1 and active[0]._fresh and active[0]._part == 0 and self._advance_alone(active[0], until):
            return True
        for work in active:
            parts = work.phases[work._index].parts
            if parts is not None:
                if self._advance_beside(work, parts, [other for other in active if other is not work], until):
                    return True
                break
        delayed, draining, uses = self._active(active)
        if not delayed and not draining:
            return False
        shared = self._shares.of(uses)
        ends = [work._left[k] / rate for (work, k), rate in zip(draining, shared.rates, strict=True)]
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
        for (work, k), rate, end_s in zip(draining, shared.rates, ends, strict=True):
            work._left[k] = 0.0 if end_s <= ended_s else work._left[k] - rate * step
        self._account(shared, step)
        self.now = end
        self._settle()
        return True

    def wait(self, works: Sequence[Work], until: float | None = None) -> bool:
        """Advance until one of the works is finished or the time is `until`; False if that would never happen."""
        while until is None or self.now < until:
            for work in works:
                if work.end_s is not None:
                    return True
            if not self.advance(until):
                if until is None:
                    return False
                self.idle_until(until)
        return True

    def head(self, lane: str) -> Work | None:
        """A lane's current work, or None."""
        works = self._lanes.get(lane)
        return works[0] if works else None

    def idle_until(self, moment: float) -> None:
        """Set the time to `moment`, if that is later; only while nothing is active."""
        self.now = max(self.now, moment)

    def _advance_alone(self, work: Work, until: float | None) -> bool:
        """Process whole phases of the only active work, which is at the start of one; False if none ends by `until`.

        All other work waits for it, so nothing else can change meanwhile.
        """
        phases, index = work.phases, work._index
        while True:
            phase = phases[index]
            if phase.alone_s is None:
                break
            end = self.now + phase.delay_s + phase.alone_s
            if until is not None and end > until:
                break
            self._draw(phase)
            self.now = end
            index += 1
            if index == len(phases) or phases[index].gate is not None:
                break
        if index == work._index:
            return False
        work._index, work._entered = index, False
        if index < len(phases) and phases[index].gate is None:
            self._enter(work)
        self._settle()
        return True

    def _advance_beside(self, work: Work, parts: Parts, others: Sequence[Work], until: float | None) -> bool:
        """Process parts of a merged phase up to the next change in other work; False if they would slow each other.

        While every other flow keeps the rate it has without this work, each part gets the remaining capacity, so all
        parts' durations are known in closed form.
        """
        delayed, draining, uses = self._active(others)
        shared = self._shares.of(uses)
        free = self._shares.left(parts.table.resources, shared)
        if free is None:
            return False
        limit = inf if until is None else max(0.0, until - self.now)
        for other in delayed:
            limit = min(limit, other._delay_s)
        for (other, k), rate in zip(draining, shared.rates, strict=True):
            limit = min(limit, other._left[k] / rate)
        step = self._take_parts(work, parts, free, limit, shared.drawn_per_s)
        ended_s = step * (1 + ROUNDING)
        for other in delayed:
            other._delay_s = 0.0 if other._delay_s <= ended_s else other._delay_s - step
        for (other, k), rate in zip(draining, shared.rates, strict=True):
            left = other._left[k]
            other._left[k] = 0.0 if left <= rate * ended_s else left - rate * step
        for other in others:
            other._fresh = False
        self._account(shared, step)
        self.now = self.now + step if until is None else min(self.now + step, max(until, self.now))
        self._settle()
        return True

    def _take_parts(
        self, work: Work, parts: Parts, free: tuple[float, ...], limit: float, beside: Mapping[str, float]
    ) -> float:
        """Process parts for at most `limit` seconds, account for them, and return the seconds taken.

        `free`: remaining capacity of each of the table's resources; `beside`: what other work draws, by resource.
        """
        table, at, left = parts.table, work._part, work._left
        columns = table.columns[table.places[at]]
        drawn = [0.0] * len(free)
        rest_s = 0.0
        for k, column in enumerate(columns):
            rest_s = max(rest_s, left[k] / free[column])
        step = work._delay_s + rest_s
        if step <= limit:
            for k, column in enumerate(columns):
                drawn[column] += left[k]
            last, left_s = len(table.places) - 1, limit - step
            if at < last:
                ends = table.ends_s(free)
                begun = ends[at]
                passed = bisect_right(ends, begun + left_s, at + 1) - 1
                if passed > at:
                    for column, sums in enumerate(table.sums):
                        drawn[column] += sums[passed + 1] - sums[at + 1]
                    step, left_s, at = step + (ends[passed] - begun), left_s - (ends[passed] - begun), passed
            work._part = at
            work._leave()
            if work._index < len(work.phases) and (work._part or work.phases[work._index].gate is None):
                self._enter(work)
            if at < last:
                step = limit
                _drain(work, table.columns[table.places[at + 1]], left_s, free, drawn)
        else:
            step = limit
            _drain(work, columns, limit, free, drawn)
        for name, amount in zip(table.resources, drawn, strict=True):
            usage = self.usage[name]
            usage.drawn += amount
            if name not in beside:
                usage.busy_s += amount / self._capacity[name]
        return step

    def _draw(self, phase: Phase) -> None:
        """Account for a phase that ran with nothing else active."""
        if phase.parts is not None:
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

    def _account(self, shared: Shared, step: float) -> None:
        for resource, per_s in shared.drawn_per_s.items():
            usage = self.usage[resource]
            usage.busy_s += step
            usage.drawn += per_s * step

    def _settle(self) -> None:
        """Take all transitions that need no time."""
        ended = True
        while ended:
            # Only the end of a work can unblock other lanes.
            ended = False
            for name, lane in self._lanes.items():
                while lane:
                    work = lane[0]
                    if not self._step(work):
                        break
                    if work.end_s is not None:
                        lane.popleft()
                        self.lane_busy_s[name] = self.lane_busy_s.get(name, 0.0) + work.took_s
                        ended = True

    def _step(self, work: Work) -> bool:
        """Take one transition of a lane's current work; False if it must wait."""
        if work._entered:
            if work._delay_s > 0 or (work._left and max(work._left) > 0):
                return False
            work._leave()
            return True
        if work.start_s is None:
            return self._start(work)
        if work._index == len(work.phases):
            self._finish(work, work.failure)
            return True
        return self._enter(work)

    def _start(self, work: Work) -> bool:
        failure = None
        for cause in work.after:
            if cause.end_s is None:
                return False
            failure = cause.failure if failure is None else failure
        work.start_s = self.now
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

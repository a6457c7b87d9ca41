"""Simulates a network with shared bandwidth: concurrent transfers on one resource split it equally.

    hbm    |==== a ====|                 alone: full speed
           |== a ==|== a, b ==|== b ==|  together: half each, until one is done

An event-driven simulation with a global clock, because a transfer's duration depends on concurrent ones. Without
resources it equals stream.simulate; with them it is never faster.

Knows nothing about what the resources are.
"""

from __future__ import annotations

import heapq
from collections import defaultdict

from coterie.dataflow.stream import Network, Run, empty_run, program

_EPSILON = 1e-12  # relative to the time: ends that differ only by rounding are one event


class _Resource:
    """Processor sharing by virtual time, which advances at real time divided by the number of active transfers."""

    def __init__(self) -> None:
        self.virtual = self.since = self.busy_s = 0.0
        self.queue: list[tuple[float, int]] = []

    def advance(self, now: float) -> None:
        """Advance virtual time to `now`."""
        if self.queue:
            self.virtual += (now - self.since) / len(self.queue)
            self.busy_s += now - self.since
        self.since = now

    def add(self, now: float, actor: int, alone_s: float) -> None:
        """Start a transfer that would take `alone_s` by itself."""
        self.advance(now)
        heapq.heappush(self.queue, (self.virtual + alone_s, actor))

    def next_s(self) -> float:
        """When the next transfer ends if nothing changes."""
        return self.since + max(0.0, self.queue[0][0] - self.virtual) * len(self.queue)

    def ended(self, now: float) -> list[int]:
        """Actors whose transfers end at `now`.

        Compared in real time: late in a run, the rest of a short transfer may be too small to advance the clock.
        """
        self.advance(now)
        done = []
        while self.queue and self.next_s() <= now * (1 + _EPSILON):
            done.append(heapq.heappop(self.queue)[1])
        return done


class _Shared:
    """The state of a run: each actor's position in its program, and the active work."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.actors = network.actors
        self.programs = [program(network, n) for n in range(len(self.actors))]
        self.step, self.firing = [0] * len(self.actors), [0] * len(self.actors)
        self.working = [False] * len(self.actors)
        self.resources: dict[str, _Resource] = defaultdict(_Resource)
        self.timers: list[tuple[float, int]] = []
        self.run = empty_run(network)

    def settle(self, ready: list[int], now: float) -> None:
        """Advance all actors that can proceed at `now`."""
        while ready:
            at = ready.pop()
            while not self.working[at] and self.firing[at] < self.actors[at].firings:
                what, index = self.programs[at][self.step[at]]
                if what == "work":
                    self.begin(at, now)
                    continue
                fifo, put, take = self.network.fifos[index], self.run.put_s[index], self.run.take_s[index]
                if (len(put) == len(take)) if what == "take" else (len(put) - len(take) >= fifo.depth):
                    break
                (take if what == "take" else put).append(now)
                ready.append(fifo.src if what == "take" else fifo.dst)
                self.next_step(at, now)

    def next_step(self, at: int, now: float) -> None:
        """Advance to the next step, or after the last one to the next firing."""
        self.step[at] += 1
        if self.step[at] == len(self.programs[at]):
            self.run.end_s[at].append(now)
            self.step[at], self.firing[at] = 0, self.firing[at] + 1

    def begin(self, at: int, now: float) -> None:
        """Start the work of a firing."""
        self.working[at] = True
        self.run.start_s[at].append(now)
        actor = self.actors[at]
        if actor.resource:
            self.resources[actor.resource].add(now, at, actor.service(self.firing[at]))
        else:
            heapq.heappush(self.timers, (now + actor.service(self.firing[at]), at))

    def next_event_s(self) -> float | None:
        """When the next work ends; None if none is active."""
        ends = [resource.next_s() for resource in self.resources.values() if resource.queue]
        ends += [self.timers[0][0]] if self.timers else []
        return min(ends, default=None)

    def ended(self, now: float) -> list[int]:
        """Actors whose work ends at `now`, in order."""
        done = []
        while self.timers and self.timers[0][0] <= now:
            done.append(heapq.heappop(self.timers)[1])
        for resource in self.resources.values():
            if resource.queue and resource.next_s() <= now * (1 + _EPSILON):
                done += resource.ended(now)
        return sorted(done)


def simulate_shared(network: Network) -> tuple[Run, dict[str, float]]:
    """Simulate a network whose actors share resources; also returns the busy seconds of each resource."""
    state = _Shared(network)
    state.settle(list(reversed(range(len(network.actors)))), 0.0)
    while (now := state.next_event_s()) is not None:
        for at in state.ended(now):
            state.working[at] = False
            state.next_step(at, now)
            state.settle([at], now)
    left = [n for n, actor in enumerate(network.actors) if state.firing[n] < actor.firings]
    state.run.stuck = tuple(f"{network.actors[n].name} cannot go on after {state.firing[n]} firings" for n in left)
    return state.run, {name: resource.busy_s for name, resource in state.resources.items()}

"""Exact simulation of actors connected by bounded FIFOs, without a global clock.

    actor:  repeatedly take its inputs in order -> work for its service time -> put its outputs in order
    fifo:   a put waits until the token `depth` positions earlier was taken; a take waits until the token was put

Each actor runs until it must wait for another one; the network is determinate, so the order of execution does not
matter (G. Kahn, 1974; local clocks as in the Dataflow Abstract Machine, 2024).

Knows nothing about ops, machines or shared bandwidth (share.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Actor:
    """Fires `firings` times; `service_s`: one time per firing, or a single one for all. `resource`: see share.py.

    With a resource, `service_s` is the time of a firing that has the resource to itself.
    """

    name: str
    firings: int
    service_s: tuple[float, ...]
    resource: str = ""

    def service(self, firing: int) -> float:
        """Seconds of one firing."""
        return self.service_s[firing if len(self.service_s) > 1 else 0]

    @property
    def total_s(self) -> float:
        """Seconds of all firings."""
        return self.firings * self.service_s[0] if len(self.service_s) == 1 else sum(self.service_s)


@dataclass(frozen=True, slots=True)
class Fifo:
    """Holds up to `depth` tokens from actor `src` to `dst`; firings put `produce` and take `consume` tokens."""

    name: str
    src: int
    dst: int
    depth: int
    produce: int = 1
    consume: int = 1


@dataclass(frozen=True, slots=True)
class Network:
    """Actors in topological order, and the FIFOs between them."""

    actors: tuple[Actor, ...]
    fifos: tuple[Fifo, ...]

    def ins(self, actor: int) -> list[int]:
        """Indices of an actor's input FIFOs, in the order in which it takes from them."""
        return [i for i, fifo in enumerate(self.fifos) if fifo.dst == actor]

    def outs(self, actor: int) -> list[int]:
        """Indices of an actor's output FIFOs, in the order in which it puts to them."""
        return [i for i, fifo in enumerate(self.fifos) if fifo.src == actor]


def program(network: Network, actor: int) -> tuple[tuple[str, int], ...]:
    """The steps of one firing: take all inputs, work, put all outputs; each with the index of its FIFO (or actor)."""
    ins = (i for i in network.ins(actor) for _ in range(network.fifos[i].consume))
    outs = (i for i in network.outs(actor) for _ in range(network.fifos[i].produce))
    return (*(("take", i) for i in ins), ("work", actor), *(("put", i) for i in outs))


@dataclass(slots=True)
class Run:
    """Times of each FIFO's tokens and each actor's firings. `stuck`: after a deadlock, what each actor waits for."""

    put_s: list[list[float]]
    take_s: list[list[float]]
    start_s: list[list[float]]
    end_s: list[list[float]]
    stuck: tuple[str, ...] = field(default=())

    @property
    def makespan_s(self) -> float:
        """End of the last firing of any actor. Infinite after a deadlock."""
        return float("inf") if self.stuck else max((ends[-1] for ends in self.end_s if ends), default=0.0)


def simulate(network: Network) -> Run:
    """Run a network to its end, or until no actor can proceed (a deadlock)."""
    run = empty_run(network)
    processes = [_Process(network, actor, run) for actor in range(len(network.actors))]
    ready = list(reversed(range(len(processes))))
    waiting = [False] * len(processes)
    while ready:
        at = ready.pop()
        waiting[at] = False
        for neighbour in processes[at].go():
            if not waiting[neighbour]:
                waiting[neighbour] = True
                ready.append(neighbour)
    run.stuck = tuple(why for process in processes if (why := process.why()))
    return run


def empty_run(network: Network) -> Run:
    """The record of a run that has not started."""
    fifos, actors = range(len(network.fifos)), range(len(network.actors))
    return Run([[] for _ in fifos], [[] for _ in fifos], [[] for _ in actors], [[] for _ in actors])


class _Process:
    """One actor's program, its position in it, and its local clock."""

    def __init__(self, network: Network, actor: int, run: Run) -> None:
        self.network, self.at, self.actor, self.run = network, actor, network.actors[actor], run
        self.steps = program(network, actor)
        self.firing = self.step = 0
        self.clock = 0.0

    def go(self) -> set[int]:
        """Run until a token or room is missing; returns the actors that may proceed as a result."""
        woken: set[int] = set()
        while self.firing < self.actor.firings:
            what, index = self.steps[self.step]
            if what == "work":
                self.run.start_s[index].append(self.clock)
                self.clock += self.actor.service(self.firing)
            elif not self._pass(what, index, woken):
                return woken
            self.step += 1
            if self.step == len(self.steps):
                self.run.end_s[self.at].append(self.clock)
                self.step, self.firing = 0, self.firing + 1
        return woken

    def _pass(self, what: str, index: int, woken: set[int]) -> bool:
        """Take or put one token, no earlier than the token or the room existed. False: that is not known yet."""
        fifo, put, take = self.network.fifos[index], self.run.put_s[index], self.run.take_s[index]
        if what == "take":
            if len(take) == len(put):
                return False
            self.clock = max(self.clock, put[len(take)])
            take.append(self.clock)
            woken.add(fifo.src)
            return True
        freed = len(put) - fifo.depth
        if freed >= len(take):
            return False
        if freed >= 0:
            self.clock = max(self.clock, take[freed])
        put.append(self.clock)
        woken.add(fifo.dst)
        return True

    def why(self) -> str:
        """What this actor is waiting for; empty if it is done."""
        if self.firing == self.actor.firings:
            return ""
        what, index = self.steps[self.step]
        fifo = self.network.fifos[index]
        at = f"{self.actor.name} (firing {self.firing} of {self.actor.firings})"
        return f"{at} waits for a token of {fifo.name}" if what == "take" else f"{at} waits for room in {fifo.name}"


def steady_s(network: Network) -> float:
    """A lower bound on the makespan, exact for chains with constant service times: fill, slowest actor, drain.

    The maximum over actors of: time until the first tokens reach it, all its firings, time for the last to drain.
    """
    actors, fifos = network.actors, network.fifos
    head, tail = _heads(network), [0.0] * len(actors)
    for fifo in sorted(fifos, key=lambda f: -f.src):
        after, firings = actors[fifo.dst], -(-fifo.produce // fifo.consume)
        behind = sum(after.service(after.firings - 1 - k) for k in range(firings))
        tail[fifo.src] = max(tail[fifo.src], tail[fifo.dst] + behind)
    return max((head[n] + actor.total_s + tail[n] for n, actor in enumerate(actors)), default=0.0)


def first_s(network: Network) -> float:
    """A lower bound on the time until every actor has fired once."""
    return max(
        (head + actor.service(0) for head, actor in zip(_heads(network), network.actors, strict=True)), default=0.0
    )


def _heads(network: Network) -> list[float]:
    """For each actor, a lower bound on the time until its first inputs arrive."""
    head = [0.0] * len(network.actors)
    for fifo in sorted(network.fifos, key=lambda f: f.dst):
        firings = -(-fifo.consume // fifo.produce)
        before = sum(network.actors[fifo.src].service(k) for k in range(firings))
        head[fifo.dst] = max(head[fifo.dst], head[fifo.src] + before)
    return head


def hop_depths(pairs: Sequence[tuple[int, int]], actors: int, minimum: int = 2) -> list[int]:
    """Depth of each edge (src, dst) such that no short path throttles a longer parallel one.

    An edge parallel to a path of h hops must hold h tokens: h - 1 tiles are on that path while one waits.
    """
    depths = []
    for src, dst in pairs:
        longest = [-1] * actors
        longest[src] = 0
        for a, b in sorted(pairs):
            if longest[a] >= 0:
                longest[b] = max(longest[b], longest[a] + 1)
        depths.append(max(minimum, longest[dst]))
    return depths

"""Bounded FIFOs between actors: when each tile is taken, worked on and handed over, exactly, without a global clock.

    actor:  take its inputs in order -> work for its service time -> put its outputs in order, and again
    fifo:   a put waits until the token `depth` places before it was taken; a take waits until the token was put

Each actor is run until it must wait for another; the network is deterministic, so the order of running does not matter
(G. Kahn, 1974; the clocks of channels are those of the Dataflow Abstract Machine, 2024).

Knows nothing about ops, machines or shared bandwidth (share.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Actor:
    """Fires `firings` times; `service_s` has a time per firing, or one time for all. `resource` is for share.py.

    On a resource, `service_s` is how long a firing takes when it has the resource to itself.
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
    """Holds up to `depth` tokens from actor `src` to actor `dst`; a firing puts `produce` and takes `consume`."""

    name: str
    src: int
    dst: int
    depth: int
    produce: int = 1
    consume: int = 1


@dataclass(frozen=True, slots=True)
class Network:
    """Actors in topological order and the FIFOs among them."""

    actors: tuple[Actor, ...]
    fifos: tuple[Fifo, ...]

    def ins(self, actor: int) -> list[int]:
        """Positions of the FIFOs into an actor, in the order in which it takes."""
        return [i for i, fifo in enumerate(self.fifos) if fifo.dst == actor]

    def outs(self, actor: int) -> list[int]:
        """Positions of the FIFOs out of an actor, in the order in which it puts."""
        return [i for i, fifo in enumerate(self.fifos) if fifo.src == actor]


def program(network: Network, actor: int) -> tuple[tuple[str, int], ...]:
    """The steps of one firing: take all inputs, work, put all outputs; each with the FIFO (or actor) that it is on."""
    ins = (i for i in network.ins(actor) for _ in range(network.fifos[i].consume))
    outs = (i for i in network.outs(actor) for _ in range(network.fifos[i].produce))
    return (*(("take", i) for i in ins), ("work", actor), *(("put", i) for i in outs))


@dataclass(slots=True)
class Run:
    """Times of the tokens of each FIFO and of the firings of each actor; `stuck` says who waits for what for ever."""

    put_s: list[list[float]]
    take_s: list[list[float]]
    start_s: list[list[float]]
    end_s: list[list[float]]
    stuck: tuple[str, ...] = field(default=())

    @property
    def makespan_s(self) -> float:
        """When the last actor was done with its last firing. Infinite after a deadlock."""
        return float("inf") if self.stuck else max((ends[-1] for ends in self.end_s if ends), default=0.0)


def simulate(network: Network) -> Run:
    """Run a network to its end, or until nobody can go on (a deadlock)."""
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
    """The record of a run before its start."""
    fifos, actors = range(len(network.fifos)), range(len(network.actors))
    return Run([[] for _ in fifos], [[] for _ in fifos], [[] for _ in actors], [[] for _ in actors])


class _Process:
    """One actor's program, and where it stands."""

    def __init__(self, network: Network, actor: int, run: Run) -> None:
        self.network, self.at, self.actor, self.run = network, actor, network.actors[actor], run
        self.steps = program(network, actor)
        self.firing = self.step = 0
        self.clock = 0.0

    def go(self) -> set[int]:
        """Run until something is missing; the actors that may go on because of it."""
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
        """Take or put one token, later than the token or the room for it was there. False: neither is known yet."""
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
        """What this actor waits for for ever; empty if it is done."""
        if self.firing == self.actor.firings:
            return ""
        what, index = self.steps[self.step]
        fifo = self.network.fifos[index]
        at = f"{self.actor.name} (firing {self.firing} of {self.actor.firings})"
        return f"{at} waits for a token of {fifo.name}" if what == "take" else f"{at} waits for room in {fifo.name}"


def steady_s(network: Network) -> float:
    """A lower bound of the makespan, met by constant services in a chain: fill, the slowest actor, drain.

    For each actor: the way of the first tokens to it, all its own firings, the way of the last tokens from it.
    """
    actors, fifos = network.actors, network.fifos
    head, tail = _heads(network), [0.0] * len(actors)
    for fifo in sorted(fifos, key=lambda f: -f.src):
        after, firings = actors[fifo.dst], -(-fifo.produce // fifo.consume)
        behind = sum(after.service(after.firings - 1 - k) for k in range(firings))
        tail[fifo.src] = max(tail[fifo.src], tail[fifo.dst] + behind)
    return max((head[n] + actor.total_s + tail[n] for n, actor in enumerate(actors)), default=0.0)


def first_s(network: Network) -> float:
    """A lower bound of the time after which every actor has fired once: the way of the first tokens."""
    return max(
        (head + actor.service(0) for head, actor in zip(_heads(network), network.actors, strict=True)), default=0.0
    )


def _heads(network: Network) -> list[float]:
    """For each actor, the way of the first tokens to it."""
    head = [0.0] * len(network.actors)
    for fifo in sorted(network.fifos, key=lambda f: f.dst):
        firings = -(-fifo.consume // fifo.produce)
        before = sum(network.actors[fifo.src].service(k) for k in range(firings))
        head[fifo.dst] = max(head[fifo.dst], head[fifo.src] + before)
    return head


def hop_depths(pairs: Sequence[tuple[int, int]], actors: int, least: int = 2) -> list[int]:
    """Depth of each edge (src, dst) so that no shorter way throttles a longer one.

    An edge beside a way of h hops must hold h tokens: h - 1 tiles are on that way while one waits.
    """
    depths = []
    for src, dst in pairs:
        longest = [-1] * actors
        longest[src] = 0
        for a, b in sorted(pairs):
            if longest[a] >= 0:
                longest[b] = max(longest[b], longest[a] + 1)
        depths.append(max(least, longest[dst]))
    return depths

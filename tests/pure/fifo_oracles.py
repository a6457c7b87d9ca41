"""Networks of FIFOs by plainer ways than those of coterie.dataflow: what these are compared with.

Knows nothing about ops or machines.
"""

from __future__ import annotations

from dataclasses import replace

from coterie.dataflow.deadlock import shallow
from coterie.dataflow.stream import Actor, Network, simulate


def deepened(network: Network) -> Network:
    """The network with every FIFO as deep as the rule asks."""
    needed = {item.fifo: item.needed for item in shallow(network)}
    fifos = tuple(replace(f, depth=max(f.depth, needed.get(f.name, 0))) for f in network.fifos)
    return Network(network.actors, fifos)


def deadlocks(network: Network) -> tuple[str, ...]:
    """The exact answer, by playing the tokens without time: who waits for what; empty if all come to their end."""
    actors = tuple(Actor(actor.name, actor.firings, (0.0,)) for actor in network.actors)
    return simulate(Network(actors, network.fifos)).stuck


def recurrence(network: Network) -> float:
    """The makespan of a network whose actors all fire as often and move one token: the plain closed recurrence.

    t = free; for each input t = max(t, put[k]), taken at t; t += service; for each output t = max(t, taken[k - depth]).
    """
    ins, outs = ([of(n) for n in range(len(network.actors))] for of in (network.ins, network.outs))
    put: list[list[float]] = [[] for _ in network.fifos]
    take: list[list[float]] = [[] for _ in network.fifos]
    free = [0.0] * len(network.actors)
    for k in range(network.actors[0].firings):
        for n, actor in enumerate(network.actors):
            t = free[n]
            for e in ins[n]:
                t = max(t, put[e][k])
                take[e].append(t)
            t += actor.service(k)
            for e in outs[n]:
                freed = k - network.fifos[e].depth
                t = max(t, take[e][freed]) if freed >= 0 else t
                put[e].append(t)
            free[n] = t
    return max(free)

"""Static deadlock detection in FIFO networks, from token counts alone.

Whether such a network deadlocks does not depend on the speeds of its actors. The rule considers every pair of paths
from a fork to a join: while one path absorbs n firings of the fork before its first token emerges (a reduction over R
tiles absorbs R), the other must buffer the tokens of those n firings. Also, if an actor has several inputs or outputs,
each FIFO must hold the tokens of a whole firing, since the actor completes one FIFO before it serves the next.

Knows nothing about ops or time.
"""

from __future__ import annotations

from dataclasses import dataclass

from coterie.dataflow.stream import Fifo, Network


@dataclass(frozen=True, slots=True)
class Shallow:
    """A FIFO that is too shallow for what `fork` puts in before `join` takes anything."""

    fifo: str
    fork: str
    join: str
    depth: int
    needed: int

    def __str__(self) -> str:
        return (
            f"fifo {self.fifo} holds {self.depth} tokens, but {self.join} takes none of them before {self.fork} has "
            f"put {self.needed}; make it {self.needed} deep"
        )


def shallow(network: Network) -> tuple[Shallow, ...]:
    """FIFOs that the rule finds too shallow. If there are none, the network cannot deadlock; otherwise it may."""
    found: dict[str, Shallow] = {}

    def ask(fifo: Fifo, fork: int, join: int, tokens: int) -> None:
        known = found.get(fifo.name)
        if fifo.depth < tokens and (known is None or known.needed < tokens):
            ends = network.actors[fork].name, network.actors[join].name
            found[fifo.name] = Shallow(fifo.name, *ends, fifo.depth, tokens)

    for fork in range(len(network.actors)):
        outs, ins = network.outs(fork), network.ins(fork)
        for fifo in (network.fifos[e] for e in outs if len(outs) > 1):
            ask(fifo, fork, fifo.dst, fifo.produce)
        for fifo in (network.fifos[e] for e in ins if len(ins) > 1):
            ask(fifo, fifo.src, fork, fifo.consume)
        reached = {e: _firings_needed(network, e) for e in outs if len(outs) > 1}
        for join in range(fork + 1, len(network.actors)):
            need = {e: ways[join] for e, ways in reached.items() if join in ways}
            most = max(need.values(), default=0)
            for e in (e for e in need if len(need) > 1 and need[e] < most):
                ask(network.fifos[e], fork, join, most * network.fifos[e].produce)
    return tuple(found.values())


def _firings_needed(network: Network, first: int) -> dict[int, int]:
    """For each actor downstream of FIFO `first`: firings of the FIFO's source before it can fire once.

    The slowest of several paths counts, since an actor waits for all its inputs.
    """
    start = network.fifos[first]
    ways: dict[int, tuple[Fifo, ...]] = {start.dst: (start,)}
    needed = {start.dst: _source_firings(ways[start.dst])}
    for n in range(start.dst, len(network.actors)):
        for e in network.outs(n) if n in ways else ():
            longer = (*ways[n], network.fifos[e])
            firings = _source_firings(longer)
            if needed.get(longer[-1].dst, 0) < firings:
                needed[longer[-1].dst], ways[longer[-1].dst] = firings, longer
    return needed


def _source_firings(way: tuple[Fifo, ...]) -> int:
    """Firings of a path's first actor before its last one can fire once."""
    firings = 1
    for fifo in reversed(way):
        firings = -(-firings * fifo.consume // fifo.produce)
    return firings

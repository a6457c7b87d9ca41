"""Builds the actor network of a mapped section: its stages, joins for whole buffers, and off-chip transfers.

    load W1 -> load W2 -> ...      weights arrive one after another, in order of use
       |          |
    stage a -> stage b -> [join: all tiles] -> stage c -> store
                 |
               wire                traffic on the busiest on-chip link, if the section is placed

Knows nothing about how the section was mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from coterie.dataflow.stage import Stage, Unit
from coterie.dataflow.stream import Actor, Fifo, Network
from coterie.dataflow.traffic import Flow, Stream, streamed_bytes
from coterie.dataflow.walk import EdgeKind

MEMORY, LINKS, WIRE = "memory", "links", "wire"


@dataclass(frozen=True, slots=True)
class Wire:
    """Use of an on-chip link: seconds per pass that a stage needs it for, to read a value."""

    value: str
    stage: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Transfers:
    """Transfers between a section and off-chip memory, at `bytes_per_s`.

    `streamed`: values of which each tile transfers what it needs, repeatedly; all others are transferred once.
    """

    streams: Sequence[Stream] = ()
    streamed: frozenset[str] = frozenset()
    bytes_per_s: float = 0.0


NO_TRANSFERS = Transfers()


@dataclass(slots=True)
class _Builder:
    """Actors by name in topological order, and FIFOs by the names of their ends."""

    transfers: Transfers
    actors: list[Actor] = field(default_factory=list)
    fifos: list[tuple[str, str, str, int, int, int]] = field(default_factory=list)
    last_weight: str = ""

    def actor(self, name: str, service_s: tuple[float, ...], resource: str = "") -> None:
        self.actors.append(Actor(name, len(service_s), service_s, resource))

    def fifo(self, name: str, src: str, dst: str, depth: int, produce: int = 1, consume: int = 1) -> None:
        self.fifos.append((name, src, dst, depth, produce, consume))

    def load(self, name: str, stage: Stage, stream: Stream, tiles: int) -> None:
        """A transfer into a stage: once, before its first tile, or a part per tile. Weights load one by one."""
        if (stream.kind == "input" and stream.by_tile) or stream.value in self.transfers.streamed:
            self.actor(name, self._tile_s(stage, stream, tiles), MEMORY)
            self.fifo(stream.value, name, stage.name, 2)
            return
        self.actor(name, (stream.size_bytes / self.transfers.bytes_per_s,), MEMORY)
        self.fifo(stream.value, name, stage.name, tiles, tiles, 1)
        if stream.kind == "weight":
            if self.last_weight:
                self.fifo(f"{self.last_weight} first", self.last_weight, name, 1)
            self.last_weight = name

    def store(self, name: str, stage: Stage, stream: Stream, tiles: int) -> None:
        """A transfer out of a stage: a part per tile, or all of it after the last.

        Sums that do not fit on chip are written and read back.
        """
        if stream.by_tile or stream.value in self.transfers.streamed:
            self.actor(name, self._tile_s(stage, stream, tiles), MEMORY)
            self.fifo(stream.value, stage.name, name, 2)
            return
        self.actor(name, (stream.size_bytes / self.transfers.bytes_per_s,), MEMORY)
        self.fifo(stream.value, stage.name, name, tiles, 1, tiles)

    def build(self) -> Network:
        at = {actor.name: n for n, actor in enumerate(self.actors)}
        fifos = (Fifo(name, at[src], at[dst], depth, p, c) for name, src, dst, depth, p, c in self.fifos)
        return Network(tuple(self.actors), tuple(fifos))

    def _tile_s(self, stage: Stage, stream: Stream, tiles: int) -> tuple[float, ...]:
        """Transfer time of each tile's part of a stream."""
        rate = self.transfers.bytes_per_s
        again = streamed_bytes(stream, stage, tiles) if stream.value in self.transfers.streamed else ()
        return tuple([size / rate for size in again]) or (stream.size_bytes / rate / tiles,) * tiles


def network(
    stages: Sequence[Stage],
    flows: Sequence[Flow],
    service_s: Sequence[tuple[float, ...]],
    depths: Sequence[int] = (),
    transfers: Transfers = NO_TRANSFERS,
    wires: Sequence[Wire] = (),
) -> Network:
    """Connect the stages by FIFOs, which are unbounded without `depths`; without `transfers`, data is always there.

    All `wires` are of a single link, which concurrent users share.
    """
    build = _Builder(transfers)
    for at, stage in enumerate(stages):
        tiles = len(service_s[at])
        _joins(build, at, stages, flows, service_s)
        mine = [s for s in transfers.streams if s.stage == at and s.size_bytes]
        for n, stream in enumerate(s for s in mine if s.kind in ("weight", "input", "kv_read")):
            build.load(f"load {stream.value} {n}", stage, stream, tiles)
        for n, wire in enumerate(w for w in wires if w.stage == at):
            name = f"wire {wire.value} {at}.{n}"
            build.actor(name, (wire.seconds / tiles,) * tiles, WIRE)
            build.fifo(name, name, stage.name, 2)
        build.actor(stage.name, service_s[at], LINKS if stage.unit is Unit.LINK else "")
        for n, stream in enumerate(s for s in mine if s.kind in ("output", "kv_write")):
            build.store(f"store {stream.value} {n}", stage, stream, tiles)
    for n, flow in enumerate(flows):
        src, dst = stages[flow.src].name, stages[flow.dst].name
        have, want = len(service_s[flow.src]), len(service_s[flow.dst])
        if flow.kind is EdgeKind.FULL or have != want:
            build.fifo(flow.value, src, _join(flow), have, 1, have)
            build.fifo(f"{flow.value} whole", _join(flow), dst, want, want, 1)
        else:
            build.fifo(flow.value, src, dst, depths[n] if depths else have)
    return build.build()


def _joins(
    build: _Builder, at: int, stages: Sequence[Stage], flows: Sequence[Flow], service_s: Sequence[tuple[float, ...]]
) -> None:
    for flow in flows:
        if flow.dst == at and (flow.kind is EdgeKind.FULL or len(service_s[flow.src]) != len(service_s[at])):
            build.actor(_join(flow), (0.0,))


def _join(flow: Flow) -> str:
    return f"all of {flow.value} for {flow.dst}"

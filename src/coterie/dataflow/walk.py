"""Which edges of a section can stream: follows the loop that is walked tile by tile from op to op.

    stream    the reader walks the same dimension in the same order: a FIFO of tiles
    full      the reader needs the whole value before it starts (a reduction over the walked dimension): a buffer
    barrier   the reader gathers by indices that the section itself computes: the two cannot share a section

Knows nothing about capacity or cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from coterie.core.shapes import Sizes
from coterie.dataflow.loops import GATHER, Access, Nest, Tag
from coterie.dataflow.nest import nest
from coterie.graph.ir import Graph, Op


class EdgeKind(Enum):
    """How a value gets from its producer to a reader inside a section."""

    STREAM = "stream"
    FULL = "full"
    BARRIER = "barrier"


@dataclass(frozen=True, slots=True)
class Edge:
    """A value between two ops, given by position in the section. `transposed`: read along another dimension."""

    value: str
    src: int
    dst: int
    kind: EdgeKind
    reason: str
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Walk:
    """How a section is walked in tiles. Per op: its walked loop ("" if none) and its phase.

    A full edge starts a new phase: by then, all earlier phases have processed every tile.
    """

    nests: tuple[Nest, ...]
    loops: tuple[str, ...]
    phases: tuple[int, ...]
    edges: tuple[Edge, ...]

    @property
    def barriers(self) -> tuple[Edge, ...]:
        """Edges whose two ops cannot be in one section."""
        return tuple(edge for edge in self.edges if edge.kind is EdgeKind.BARRIER)

    def readers(self, name: str) -> list[int]:
        """Ops that read a value, by phase."""
        found = [at for at, nest in enumerate(self.nests) if any(access.value == name for access in nest.reads)]
        return sorted(found, key=lambda at: (self.phases[at], at))

    def origin(self, name: str) -> tuple[int, str, bool]:
        """Resolve views: (producing op or -1 for an input, the value it produces, whether tiles pass through).

        Tiles pass if the producer completes a part of the value with each of its tiles and all views stream.
        """
        at = next((n for n, nest in enumerate(self.nests) for access in nest.writes if access.value == name), -1)
        if at < 0:
            return at, name, True
        nest = self.nests[at]
        if not nest.is_view:
            access = next(access for access in nest.writes if access.value == name)
            return at, name, dimension_of(access, self.loops[at]) is not None
        source = nest.reads[0].value
        root, value, passes = self.origin(source)
        kinds = [edge.kind for edge in self.edges if edge.dst == at and edge.value == source]
        walks_on = dimension_of(nest.writes[0], self.loops[at]) is not None
        return root, value, passes and walks_on and all(kind is EdgeKind.STREAM for kind in kinds)

    def tiles_of(self, op: int) -> int:
        """Upper bound on the number of tiles in the op's phase; groups of rows are never split across tiles."""
        return math.gcd(*(self.size_of(at) for at, phase in enumerate(self.phases) if phase == self.phases[op]))

    def size_of(self, op: int) -> int:
        """Iterations of the op's walked loop."""
        return self.nests[op].loop(self.loops[op]).size if self.loops[op] else 1


def walk(graph: Graph, ops: Sequence[Op], sizes: Sizes) -> Walk:
    """The walk of a section with the fewest barriers, then phases, whole buffers and sums over tiles.

    Tries each loop of the first op. Raises UnsupportedError for an op without a normal form.
    """
    nests = tuple(nest(graph, op, sizes) for op in ops)
    first = nests[0]
    head = first.loops[0]
    outer = [*([head.name] if head.tag is Tag.REDUCTION and head.online else []), *_walkable(first)]
    walks = [_follow(nests, seed) for seed in ([head.name] if first.by_token else outer or [head.name])]

    def burden(found: Walk) -> tuple[int, int, int, int]:
        sums = sum(n.loop(loop).tag is Tag.REDUCTION for n, loop in zip(found.nests, found.loops, strict=True) if loop)
        whole = sum(e.kind is EdgeKind.FULL for e in found.edges) + _unlike(found)
        return len(found.barriers), max(found.phases), whole, sums

    return min(walks, key=burden)


def _unlike(found: Walk) -> int:
    """Inputs that ops of one phase walk along different dimensions, so that they must be kept whole."""
    made = {access.value for writer in found.nests for access in writer.writes}
    places: dict[tuple[str, int], set[int | None]] = {}
    for reader, loop, phase in zip(found.nests, found.loops, found.phases, strict=True):
        for access in reader.reads:
            if access.value not in made:
                places.setdefault((access.value, phase), set()).add(dimension_of(access, loop))
    return sum(len(each) - 1 for each in places.values())


def _follow(nests: tuple[Nest, ...], seed: str) -> Walk:
    made: dict[str, tuple[int, Access]] = {}
    loops: list[str] = []
    phases: list[int] = []
    edges: list[Edge] = []
    read: dict[str, int] = {}
    for at, reader in enumerate(nests):
        loop, phase, found = _enter(nests, reader, at, made, loops, phases)
        if loop is None:
            loop = seed if at == 0 else _beside(reader, read) or _outermost(reader)
        for access in reader.reads:
            dimension = dimension_of(access, loop)
            if dimension is not None:
                read.setdefault(access.value, dimension)
        loops.append(loop)
        phases.append(phase)
        edges += found
        for access in reader.writes:
            made[access.value] = (at, access)
    return _delayed(Walk(nests, tuple(loops), tuple(phases), tuple(edges)))


def _delayed(found: Walk) -> Walk:
    """Delay ops whose readers are in a later phase, if their operands need less memory than their results."""
    for at in reversed(range(len(found.nests))):
        later = _wait(found, at)
        found = later or found
    return found


def _wait(found: Walk, at: int) -> Walk | None:
    """The walk with one op moved to the phase of its first reader; None if that is impossible or saves no memory."""
    nest, loop = found.nests[at], found.loops[at]
    outs, ins = [e for e in found.edges if e.src == at], [e for e in found.edges if e.dst == at]
    ends = [found.nests[edge.dst] for edge in outs]
    if not outs or nest.is_view or nest.by_token or any(end.is_view or end.by_token for end in ends):
        return None
    phase = min(found.phases[edge.dst] for edge in outs)
    if phase <= found.phases[at] or any(edge.kind is not EdgeKind.FULL for edge in outs):
        return None
    now = [edge for edge in outs if found.phases[edge.dst] == phase]
    written = {access.value: access for access in nest.writes}
    for edge in now:
        access = next(access for access in found.nests[edge.dst].reads if access.value == edge.value)
        goes, _ = _loop_of(nest, written[edge.value], loop, found.nests[edge.dst], access)
        if not goes or goes != found.loops[edge.dst]:
            return None
    phases = (*found.phases[:at], phase, *found.phases[at + 1 :])
    moved = replace(found, phases=phases)
    if moved.tiles_of(at) != found.tiles_of(now[0].dst):
        return None
    rest = {edge.value for edge in found.edges if edge.dst != at and edge.kind is EdgeKind.FULL}
    shared = {access.value for n, other in enumerate(found.nests) if n != at for access in other.reads}
    held = {edge.value for edge in ins if edge.kind is EdgeKind.STREAM} - rest
    made = {access.value for other in found.nests for access in other.writes}
    held |= {a.value for a in nest.reads if a.value in shared - made and dimension_of(a, loop) is not None}
    sizes = {access.value: nest.elements(access) for access in nest.reads}
    saved = sum(nest.elements(written[name]) for name in {edge.value for edge in now})
    if sum(sizes[name] for name in held) >= saved:
        return None
    edges = [_moved(found, edge, at, now) for edge in found.edges]
    return replace(moved, edges=tuple(edges))


def _moved(found: Walk, edge: Edge, at: int, now: Sequence[Edge]) -> Edge:
    """An edge after op `at` was delayed to the phase of its readers: it reads whole values and streams to them."""
    if edge.dst == at:
        return replace(edge, kind=EdgeKind.FULL, transposed=False, reason="it is less to hold than what is made of it")
    if edge not in now:
        return edge
    writer, reader = found.nests[at], found.nests[edge.dst]
    ends = (access for access in (*writer.writes, *reader.reads) if access.value == edge.value)
    places = {
        dimension_of(access, loop) for access, loop in zip(ends, (found.loops[at], found.loops[edge.dst]), strict=True)
    }
    return replace(edge, kind=EdgeKind.STREAM, transposed=len(places) > 1, reason="it is made when its reader walks")


def _enter(
    nests: tuple[Nest, ...],
    reader: Nest,
    at: int,
    made: Mapping[str, tuple[int, Access]],
    loops: Sequence[str],
    phases: Sequence[int],
) -> tuple[str | None, int, list[Edge]]:
    """The loop that the reader must walk because of its producers (None if free), its phase, and its edges."""
    inside = [access for access in reader.reads if access.value in made]
    numbers = {access.by for access in reader.reads}
    along: dict[int, str] = {}
    reasons: list[str] = []
    for i, access in enumerate(inside):
        src, written = made[access.value]
        loop, reason = _loop_of(nests[src], written, loops[src], reader, access)
        computed = access.value in numbers
        reasons.append(f"{reader.op.kind} is addressed by {access.value}, which is computed" if computed else reason)
        if loop:
            along[i] = loop
    latest = max((phases[made[access.value][0]] for access in inside), default=0)
    # Results of earlier phases are complete already, so only inputs from the latest phase determine the loop.
    current = [i for i, access in enumerate(inside) if phases[made[access.value][0]] == latest]
    leaders = [along[i] for i in current if i in along]
    chosen = max(leaders, key=leaders.count) if leaders else None
    # If one input must be complete, the others are buffered in full too, and the reader starts a new phase.
    streams = chosen is not None and all(along.get(i) == chosen for i in current)
    edges = []
    for i, access in enumerate(inside):
        src, written = made[access.value]
        kind = EdgeKind.STREAM if streams and i in current else EdgeKind.FULL
        kind = EdgeKind.BARRIER if access.value in numbers else kind
        turned = kind is EdgeKind.STREAM and dimension_of(written, loops[src]) != dimension_of(access, chosen or "")
        reason = (
            reasons[i]
            if i not in along or along[i] != chosen or kind is not EdgeKind.FULL
            else "another input must be complete"
        )
        edges.append(Edge(access.value, src, at, kind, reason, turned))
    return chosen, latest if streams or not inside else latest + 1, edges


def _loop_of(src: Nest, written: Access, walked: str, reader: Nest, access: Access) -> tuple[str, str]:
    """The reader's loop that corresponds to the producer's walked loop, or "" if it cannot stream; and the reason."""
    dimension = dimension_of(written, walked)
    if dimension is None:
        return "", f"{src.op.kind} reduces over the walked loop: its result is complete after the last tile"
    index = access.index[dimension] if dimension < len(access.index) else ()
    if index == GATHER:
        return "", f"{reader.op.kind} takes its rows by number, in any order"
    if not index or (len(index) > 1 and reader.loop(index[0]).size == 1):
        return "", f"{reader.op.kind} reads all of it for each tile"
    loop = reader.loop(index[0])
    if loop.tag is Tag.REDUCTION and not loop.online:
        return "", f"{reader.op.kind} needs all of loop {loop.name} for its first result"
    if reader.by_token and loop is not reader.loops[0]:
        return "", f"{reader.op.kind} takes whole tokens"
    how = "running reduction" if loop.tag is Tag.REDUCTION else "same order"
    return loop.name, how


def dimension_of(access: Access, loop: str) -> int | None:
    """The dimension of which a loop is the outermost index; None if there is none."""
    return next((i for i, index in enumerate(access.index) if index[:1] == (loop,)), None) if loop else None


def _beside(reader: Nest, read: Mapping[str, int]) -> str:
    """The loop that matches earlier readers of the same inputs, so that these can be read together; "" if none."""
    found = []
    for access in reader.reads:
        index = access.index[read[access.value]] if access.value in read else ()
        if index and index != GATHER:
            loop = reader.loop(index[0])
            held = loop.tag is Tag.REDUCTION and not loop.online
            if not held and (not reader.by_token or loop is reader.loops[0]):
                found.append(loop.name)
    return max(found, key=found.count) if found else ""


def _outermost(reader: Nest) -> str:
    if reader.by_token:
        return reader.loops[0].name
    loops = _walkable(reader)
    return loops[0] if loops else ""


def _walkable(nest: Nest) -> list[str]:
    """Loops that can be walked so that each tile completes a part of the result."""
    loops = (loop.name for loop in nest.loops if loop.tag is not Tag.REDUCTION)
    return [name for name in loops if dimension_of(nest.writes[0], name) is not None]

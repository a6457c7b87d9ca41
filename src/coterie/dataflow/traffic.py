"""Data movement of a section: off-chip streams across its border, and edges between its stages.

Knows nothing about units or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.core.shapes import Sizes
from coterie.dataflow.stage import Stage
from coterie.dataflow.walk import EdgeKind, Walk, dimension_of
from coterie.graph.cost import Cost, input_bytes, ops_cost
from coterie.graph.ir import Graph, Kind, Op, Value
from coterie.graph.kv_cost import KV_READERS, kv_bytes, layer_bytes
from coterie.graph.stored import elements, value_bytes

SUM_BYTES = 4  # sums over tiles are float32, whatever the type of the result


@dataclass(frozen=True, slots=True)
class Stream:
    """Off-chip bytes of one value for one stage. `kind`: weight, input, output, kv_read or kv_write.

    A weight of which each tile reads its own part (a table of rows) counts as input. `by_tile`: each tile moves its own
    part, not all of it. `columns`: it is the operand on the column side of the systolic array. `key_bytes`: bytes of
    one key and value. `sum_bytes`: bytes of float32 sums that are accumulated over tiles.
    """

    value: str
    kind: str
    stage: int
    size_bytes: int
    by_tile: bool = True
    columns: bool = False
    key_bytes: int = 0
    sum_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        """Bytes needed to keep all of it on chip."""
        return max(self.size_bytes, self.sum_bytes)


@dataclass(frozen=True, slots=True)
class Flow:
    """A value passed between stages: bytes in the whole step, and whether it streams tile by tile.

    `sum_bytes`: bytes of its float32 accumulators if it is a sum over tiles, else 0.
    """

    value: str
    src: int
    dst: int
    size_bytes: int
    kind: EdgeKind
    transposed: bool = False
    sum_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Border:
    """Values that enter and leave a set of ops."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def border(graph: Graph, ops: Sequence[Op]) -> Border:
    """Inputs in order of first use; outputs: values read by other ops or by none at all, or that leave the step."""
    names = {op.name for op in ops}
    made = {n for op in ops for n in op.outputs if graph.values[n].kind is not Kind.STATE}
    inputs = tuple(dict.fromkeys(n for op in ops for n in op.inputs if n and n not in made))
    read_inside = {n for op in ops for n in op.inputs}
    read_outside = {n for op in graph.ops if op.name not in names for n in op.inputs}
    outputs = tuple(
        n
        for n in dict.fromkeys(n for op in ops for n in op.outputs)
        if n in read_outside or n not in read_inside or graph.values[n].kind is not Kind.TENSOR
    )
    return Border(inputs, outputs)


def section_cost(graph: Graph, ops: Sequence[Op], sizes: Sizes) -> Cost:
    """Flops and bytes of ops run as one section, by graph/cost."""
    edge = border(graph, ops)
    return ops_cost(graph, tuple(ops), edge.inputs, edge.outputs, sizes)


def streams_of(graph: Graph, walk: Walk, stages: Sequence[Stage], sizes: Sizes) -> tuple[Stream, ...]:
    """Off-chip bytes by value and stage; they add up to `section_cost`'s."""
    ops = tuple(nest.op for nest in walk.nests)
    first, last = _stage_ends(walk, stages)
    edge = border(graph, ops)
    found = []
    for name in edge.inputs:
        value = graph.values[name]
        if value.kind is not Kind.STATE:
            reader, by_tile = walk.readers(name)[0], read_by_tile(graph, walk, name)
            kind = "weight" if value.kind is Kind.WEIGHT and not by_tile else "input"
            columns = ops[reader].kind == "linear" and ops[reader].inputs[1] == name
            found.append(Stream(name, kind, first[reader], input_bytes(graph, ops, value, sizes), by_tile, columns))
    for name in edge.outputs:
        if graph.values[name].kind is not Kind.STATE:
            writer = next(at for at, op in enumerate(ops) if name in op.outputs)
            passes, sums = walk.origin(name)[2], _sum_bytes(graph, walk, name, sizes)
            size = value_bytes(graph.values[name], sizes)
            # An output that is a view of an input has no stage; it is charged to the first.
            found.append(Stream(name, "output", last.get(writer, 0), size, passes, sum_bytes=sums))
    for at, op in enumerate(ops):
        if op.kind in (*KV_READERS, "kv_append"):
            kind = "kv_write" if op.kind == "kv_append" else "kv_read"
            state = next(graph.values[n] for n in op.inputs if n and graph.values[n].kind is Kind.STATE)
            key_bytes = layer_bytes(state)
            size = kv_bytes(graph, op, sizes)
            found.append(Stream(f"{op.name}.kv", kind, first[at], size, key_bytes=key_bytes))
    return tuple(found)


def read_by_tile(graph: Graph, walk: Walk, name: str) -> bool:
    """Whether all readers of an input can read it by tile; otherwise it must be kept whole.

    Readers of one phase that walk the same dimension share tiles. An activation may be kept for a later phase.
    """
    first, *others = walk.readers(name)
    where = _part_of(walk, first, name)
    kept = _may_be_kept(graph.values[name])
    alike = (
        _part_of(walk, at, name) == where and walk.phases[at] == walk.phases[first]
        for at in others
        if not kept or walk.nests[at].is_view or walk.phases[at] == walk.phases[first]
    )
    return where is not None and all(alike)


def _part_of(walk: Walk, at: int, name: str) -> int | None:
    """The dimension along which an op's tiles read a value; -1 for gathered rows; None if each tile needs all of it."""
    loop, nest = walk.loops[at], walk.nests[at]
    access = next(access for access in nest.reads if access.value == name)
    by = next((dimension_of(a, loop) for a in nest.reads if a.value == access.by), None) if access.by else None
    return dimension_of(access, loop) if by is None else -1


def _may_be_kept(value: Value) -> bool:
    return value.kind in (Kind.INPUT, Kind.TENSOR) and len(value.shape) > 1


def _sum_bytes(graph: Graph, walk: Walk, name: str, sizes: Sizes) -> int:
    """Bytes of the float32 accumulators of a value that is a sum over tiles, else 0."""
    at, source, _ = walk.origin(name)
    written = [access for access in walk.nests[at].writes if access.value == source] if at >= 0 else []
    summed = any(dimension_of(access, walk.loops[at]) is None for access in written)
    return SUM_BYTES * elements(graph.values[source], sizes) if summed else 0


def streamed_bytes(stream: Stream, stage: Stage, tiles: int) -> tuple[int, ...]:
    """Bytes that each tile moves of a value that is not kept on chip: the whole weight, or its tokens' visible keys.

    Sums are read, added to and written back; the first tile reads none, and the last writes the result.
    """
    ends = [stage.bounds(tile, tiles) for tile in range(stage.count_of(tiles))]
    if stream.sum_bytes:
        grown = [stream.sum_bytes] * (len(ends) - 1)
        return tuple(a + b for a, b in zip((0, *grown), (*grown, stream.size_bytes), strict=True))
    if stream.kind != "kv_read" or stage.seen is None:
        return (stream.size_bytes,) * len(ends)
    seen = [round(stage.seen.keys(first, last)) * stream.key_bytes for first, last in ends]
    # Sizes only give the mean context length; make sure that the tiles together read at least everything once.
    return (seen[0] + max(0, stream.size_bytes - sum(seen)), *seen[1:])


def extra_bytes(stream: Stream, stage: Stage, tiles: int) -> int:
    """Extra bytes moved because a value is streamed instead of kept on chip."""
    return sum(streamed_bytes(stream, stage, tiles)) - stream.size_bytes


def flows_of(graph: Graph, walk: Walk, stages: Sequence[Stage], sizes: Sizes) -> tuple[Flow, ...]:
    """Edges between stages. Views are transparent: their readers read from the views' producers."""
    first, last = _stage_ends(walk, stages)
    through: dict[int, tuple[int, bool, EdgeKind]] = {}
    found: list[Flow] = []
    for edge in walk.edges:
        src, turned, kind = through.get(edge.src, (last.get(edge.src, -1), False, EdgeKind.STREAM))
        turned, kind = turned or edge.transposed, edge.kind if edge.kind is not EdgeKind.STREAM else kind
        if walk.nests[edge.dst].is_view:
            through[edge.dst] = (src, True, kind)
            continue
        if src < 0:
            continue
        size = _moved_bytes(graph, walk, edge.src, edge.value, sizes)
        entries = _entries(stages, edge.dst, first[edge.dst], edge.value, graph)
        sums = _sum_bytes(graph, walk, edge.value, sizes) if graph.values[edge.value].kind is not Kind.STATE else 0
        found += [Flow(edge.value, src, dst, size, kind, turned, sums) for dst in entries]
    found += _kept(graph, walk, first, sizes)
    together = [at for at, stage in enumerate(stages[:-1]) if stages[at + 1].op == stage.op]
    found += [Flow(f"{stages[at].name}>", at, at + 1, 0, EdgeKind.STREAM) for at in together]
    return tuple(sorted(dict.fromkeys(found), key=lambda flow: (flow.src, flow.dst)))


def _kept(graph: Graph, walk: Walk, first: dict[int, int], sizes: Sizes) -> list[Flow]:
    """Edges for input activations with several readers: read once, then passed on chip from the first reader."""
    ops = [nest.op for nest in walk.nests]
    found = []
    for name in border(graph, ops).inputs:
        value = graph.values[name]
        readers = [at for at in walk.readers(name) if not walk.nests[at].is_view]
        if _may_be_kept(value) and len(readers) > 1 and read_by_tile(graph, walk, name):
            size = value_bytes(value, sizes)
            alike = (walk.phases[at] == walk.phases[readers[0]] for at in readers[1:])
            kinds = [EdgeKind.STREAM if same else EdgeKind.FULL for same in alike]
            ends = ((first[readers[0]], first[at], kind) for at, kind in zip(readers[1:], kinds, strict=True))
            found += [Flow(name, src, dst, size, kind) for src, dst, kind in ends if src < dst]
    return found


def _moved_bytes(graph: Graph, walk: Walk, src: int, value: str, sizes: Sizes) -> int:
    if graph.values[value].kind is not Kind.STATE:
        return value_bytes(graph.values[value], sizes)
    return kv_bytes(graph, walk.nests[src].op, sizes)


def _entries(stages: Sequence[Stage], op: int, first: int, value: str, graph: Graph) -> list[int]:
    """The stages of an op that read a value: keys go to the scores stage, values to the last product."""
    parts = [at for at, stage in enumerate(stages) if stage.op == op]
    return [parts[0], parts[-1]] if len(parts) > 1 and graph.values[value].kind is Kind.STATE else [first]


def _stage_ends(walk: Walk, stages: Sequence[Stage]) -> tuple[dict[int, int], dict[int, int]]:
    """The first and last stage of each op; a view takes the first of its reader and the last of its producer."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for at, stage in enumerate(stages):
        first.setdefault(stage.op, at)
        last[stage.op] = at
    for at in range(len(walk.nests)):
        if at not in last and (made := [e.src for e in walk.edges if e.dst == at and e.src in last]):
            last[at] = last[made[0]]
    for at in reversed(range(len(walk.nests))):
        if at not in first:
            readers = [e.dst for e in walk.edges if e.src == at and e.dst in first]
            first[at] = first[readers[0]] if readers else last.get(at, 0)
    return first, last

"""On-chip buffers of a mapped section: contents, depth, number of PMUs, and readers.

    tile      a FIFO of tiles between two stages: depth x tile bytes, deeper if a parallel path is longer
    whole     a value that its reader needs in full, or a sum over all tiles
    weight    resident (read once per pass) or streamed (read again for every tile, double buffered)
    kv        keys and values of the contexts, while they are read

A buffer gets enough PMUs for its bytes and for its readers' bandwidth (parallel banks).

Knows nothing about where the PMUs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from coterie.dataflow.stage import Split, Stage, Unit, blocks
from coterie.dataflow.stream import hop_depths
from coterie.dataflow.traffic import Flow, Stream
from coterie.dataflow.walk import EdgeKind
from coterie.spec.machine import SpatialUnits

KEY_BLOCK = 256  # keys whose scores are on chip at once; the online softmax proceeds block by block
CHUNKS = 2  # double buffering: a streamed value is read into one chunk (a PMU) while the other is in use


@dataclass(frozen=True, slots=True)
class Buffer:
    """A buffer read by stage `stage` and those in `also`. `depth` is in tiles (or chunks)."""

    name: str
    kind: str
    stage: int
    size_bytes: int
    depth: int
    pmus: int
    also: tuple[int, ...] = ()


def depths(flows: Sequence[Flow], stages: int) -> list[int]:
    """FIFO depth of each flow in tiles: two (double buffering), or the hops of the longest parallel path."""
    return hop_depths([(flow.src, flow.dst) for flow in flows], stages)


def flow_buffers(
    stages: Sequence[Stage],
    flows: Sequence[Flow],
    tiles: int,
    splits: Sequence[Split],
    rates: Sequence[float],
    grid: SpatialUnits,
) -> list[Buffer]:
    """A buffer per edge; readers of a whole value share one. `rates`: cycles per tile of each stage."""
    found: list[Buffer] = []
    whole: dict[tuple[str, int], tuple[int, float]] = {}
    for flow, deep in zip(flows, depths(flows, len(stages)), strict=True):
        reader = stages[flow.dst]
        if reader.unit is Unit.LINK or flow.size_bytes == 0:
            size, depth = _scores_bytes(stages[flow.src], tiles, grid), 2
        elif flow.kind is EdgeKind.FULL:
            size, depth = max(flow.size_bytes, flow.sum_bytes), 1
        else:
            size, depth = deep * -(-flow.size_bytes // tiles), deep
        again = _passes(reader, tiles, splits[flow.dst], grid)
        per_cycle = again * flow.size_bytes / tiles / max(1.0, rates[flow.dst])
        kind = "whole" if flow.kind is EdgeKind.FULL else "tile"
        key = flow.value, flow.src
        if kind == "whole" and key in whole:
            first, before = whole[key]
            whole[key] = first, before + per_cycle
            other = found[first]
            more = _buffer(flow.value, kind, other.stage, (size, depth), before + per_cycle, grid)
            found[first] = replace(more, also=(*other.also, flow.dst))
            continue
        if kind == "whole":
            whole[key] = len(found), per_cycle
        found.append(_buffer(flow.value, kind, flow.dst, (size, depth), per_cycle, grid))
    return found


def held_buffers(
    stages: Sequence[Stage],
    streams: Sequence[Stream],
    streamed: frozenset[str],
    tiles: int,
    splits: Sequence[Split],
    rates: Sequence[float],
    grid: SpatialUnits,
) -> list[Buffer]:
    """Buffers of off-chip inputs and outputs: weights, KV and sums whole unless `streamed`, all else by tile."""
    found = []
    for stream in streams:
        if stream.size_bytes == 0:
            continue
        if stream.value in streamed:
            size, depth = CHUNKS * min(grid.pmu_bytes, stream.held_bytes), CHUNKS
        elif stream.kind in ("weight", "kv_read") or not stream.by_tile:
            size, depth = stream.held_bytes, 1
        else:
            size, depth = 2 * -(-stream.size_bytes // tiles), 2
        per_tile = stream.size_bytes / (tiles if stream.by_tile else 1)
        again = _passes(stages[stream.stage], tiles, splits[stream.stage], grid, stream.columns)
        reads = stream.kind in ("weight", "input")
        per_tile = again * per_tile if reads else 2 * stream.sum_bytes  # each tile reads and writes the sums
        per_cycle = per_tile / max(1.0, rates[stream.stage])
        kind = {"weight": "weight", "kv_read": "kv"}.get(stream.kind, "whole" if stream.sum_bytes else "tile")
        found.append(_buffer(stream.value, kind, stream.stage, (size, depth), per_cycle, grid))
    return found


def _buffer(
    name: str, kind: str, stage: int, held: tuple[int, int], bytes_per_cycle: float, grid: SpatialUnits
) -> Buffer:
    size, depth = held
    banks = -(-int(bytes_per_cycle) // max(1, int(grid.pmu_bytes_per_cycle)))
    return Buffer(name, kind, stage, size, depth, max(1, -(-size // grid.pmu_bytes), banks))


def _scores_bytes(stage: Stage, tiles: int, grid: SpatialUnits) -> int:
    """Two blocks of a tile's scores (or probabilities) of 2 bytes each; a collective's send buffer likewise."""
    rows = stage.m * stage.batch
    if stage.kind not in ("scores", "softmax"):
        return 2 * 2 * -(-rows * stage.n // tiles)
    return 2 * 2 * -(-rows // tiles) * min(KEY_BLOCK, max(1, stage.n))


def _passes(reader: Stage, tiles: int, split: Split, grid: SpatialUnits, columns_side: bool = False) -> int:
    """How often a systolic reader traverses an operand: once per group of the other operand's blocks on its PCUs."""
    if reader.unit is not Unit.SYSTOLIC or not split.pcus:
        return 1
    rows, columns, _ = blocks(reader.tile(0, max(1, reader.rows // tiles)), grid)
    return -(-rows // split.rows) if columns_side else -(-columns // split.columns)

"""Places an expert's tensors in an extent, and cuts its files into ranges that are read in execution order.

        block    |  0  |  1  |  2  |  3  |  4  |  5  |         blocks of 4096 bytes of one file
        tensors  |hd|aaaa|bbbbbbb|..........|cccc|dd|          a, d: embed  b: layers.0  c: layers.1  ....: not needed
        stage    |e |e   |0   |  0| hole     |1   |e |         a block has the first stage of the tensors in it
        extent   [0,1) [1,3) [4,6)                             holes take no room; offset modulo 4096 is kept

Knows nothing about graphs: the caller says which stage needs which tensor first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from coterie.checkpoint.folder import Checkpoint
from coterie.checkpoint.layout import (
    BLOCK_BYTES,
    FileRange,
    Layout,
    PlacedRange,
    PlacedTensor,
    Table,
    aligned_end,
    spans_of,
)
from coterie.checkpoint.safetensors import Shard, TensorInfo

_Run = tuple[int, int, int]  # first block, block after the last, rank of the stage


def place(
    checkpoint: Checkpoint,
    stage_of: Mapping[str, str],
    stages: Sequence[str],
    table: str | None = None,
    again: tuple[str, ...] = (),
) -> Layout:
    """Lay out the tensors named by `stage_of` (tensor -> the first stage that needs it); `stages` is their order.

    `table` names the tensor of which that stage needs some rows only, `again` the stages that read it whole later.
    Every block that holds a needed byte is in exactly one range. Raises KeyError for a tensor that does not exist.
    """
    rank = {stage: i for i, stage in enumerate(stages)}
    by_shard: dict[Shard, list[TensorInfo]] = defaultdict(list)
    for name in stage_of:
        by_shard[checkpoint.tensors[name].shard].append(checkpoint.tensors[name])
    ranges: list[PlacedRange] = []
    tensors: dict[str, PlacedTensor] = {}
    base = 0
    for shard in sorted(by_shard, key=lambda s: s.path):
        runs = _runs((t, rank[stage_of[t.name]]) for t in by_shard[shard])
        starts = _extent_starts(runs, base)
        ranges += [_placed(shard, run, start, stages) for run, start in zip(runs, starts, strict=True)]
        tensors |= _placed_tensors(by_shard[shard], runs, starts)
        base += sum(end - first for first, end, _ in runs) * BLOCK_BYTES
    ranges.sort(key=lambda r: rank[r.stage])
    found = None if table is None else _table(checkpoint.tensors[table], tensors[table].offset, ranges, again)
    # Odd sizes that add up may need a block more where a device aligns the tensors.
    spans = spans_of(tensors)
    end = -(-aligned_end(spans) // BLOCK_BYTES) * BLOCK_BYTES
    return Layout(max(base, end), tuple(ranges), tensors, found, spans)


def _table(info: TensorInfo, offset: int, ranges: Sequence[PlacedRange], again: tuple[str, ...]) -> Table | None:
    """The table, if one range holds it: a tensor of an earlier stage may share one of its blocks."""
    for index, placed in enumerate(ranges):
        inside = placed.offset <= offset and offset + info.size_bytes <= placed.offset + placed.source.size_bytes
        if inside and info.size_bytes:
            return Table(index, offset, info.size_bytes // info.shape[0], info.shape[0], again)
    return None


def _runs(ranked: Iterable[tuple[TensorInfo, int]]) -> list[_Run]:
    """Runs of blocks with one stage each, in file order.

    A tensor shares at most its first and its last block with others, so those are looked at one by one.
    """
    ranks: dict[tuple[int, int], int] = {}
    for tensor, rank in ranked:
        if tensor.size_bytes:
            first = tensor.offset // BLOCK_BYTES
            last = (tensor.offset + tensor.size_bytes - 1) // BLOCK_BYTES
            for piece in ((first, first + 1), (first + 1, last), (last, last + 1)):
                if piece[0] < piece[1]:
                    ranks[piece] = min(rank, ranks.get(piece, rank))
    runs: list[_Run] = []
    for (first, end), rank in sorted(ranks.items()):
        if runs and runs[-1][1:] == (first, rank):
            runs[-1] = (runs[-1][0], end, rank)
        else:
            runs.append((first, end, rank))
    return runs


def _extent_starts(runs: Sequence[_Run], base: int) -> list[int]:
    starts = []
    for first, end, _ in runs:
        starts.append(base)
        base += (end - first) * BLOCK_BYTES
    return starts


def _placed(shard: Shard, run: _Run, start: int, stages: Sequence[str]) -> PlacedRange:
    first, end, rank = run
    size = (end - first) * BLOCK_BYTES
    source = FileRange(shard.path, first * BLOCK_BYTES, size, shard.identity)
    return PlacedRange(source, start, stages[rank])


def _placed_tensors(
    tensors: Sequence[TensorInfo], runs: Sequence[_Run], starts: Sequence[int]
) -> dict[str, PlacedTensor]:
    """Tensors by name; runs that touch in the file touch in the extent, so a tensor may span several."""
    placed = {}
    at = 0
    for tensor in sorted(tensors, key=lambda t: t.offset):
        while tensor.size_bytes and runs[at][1] * BLOCK_BYTES <= tensor.offset:
            at += 1
        offset = starts[at] + tensor.offset - runs[at][0] * BLOCK_BYTES if tensor.size_bytes else 0
        placed[tensor.name] = PlacedTensor(offset, tensor.dtype, tensor.shape)
    return placed

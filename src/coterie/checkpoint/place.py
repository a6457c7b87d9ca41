"""Places an expert's tensors in an extent, and cuts its files into ranges to be read in execution order.

        block    |  0  |  1  |  2  |  3  |  4  |  5  |         blocks of 4096 bytes of one file
        tensors  |hd|aaaa|bbbbbbb|..........|cccc|dd|          a, d: embed  b: layers.0  c: layers.1  ....: not needed
        stage    |e |e   |0   |  0| hole     |1   |e |         a block belongs to the first stage that needs any of it
        extent   [0,1) [1,3) [4,6)                             holes take no space; offsets modulo 4096 are kept

Knows nothing about graphs: the caller says which stage first needs each tensor.
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

_Run = tuple[int, int, int]  # [first block, end block), rank of the stage


def place(
    checkpoint: Checkpoint,
    stage_of: Mapping[str, str],
    stages: Sequence[str],
    table: str | None = None,
    later_stages: tuple[str, ...] = (),
) -> Layout:
    """Lay out the tensors named by `stage_of` (tensor -> the first stage that needs it); `stages` is their order.

    `table`: a tensor of which its first stage needs only some rows; the stages in `later_stages` read all of it.
    Each block that contains a needed byte is in exactly one range. Raises KeyError for a tensor that does not exist.
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
    found = None if table is None else _table(checkpoint.tensors[table], tensors[table].offset, ranges, later_stages)
    # On a device that aligns tensors, the padding after odd sizes may add up to another block.
    spans = spans_of(tensors)
    end = -(-aligned_end(spans) // BLOCK_BYTES) * BLOCK_BYTES
    return Layout(max(base, end), tuple(ranges), tensors, found, spans)


def _table(info: TensorInfo, offset: int, ranges: Sequence[PlacedRange], later_stages: tuple[str, ...]) -> Table | None:
    """The table, or None if no single range holds it, as when a tensor of an earlier stage shares one of its blocks."""
    for index, placed in enumerate(ranges):
        inside = placed.offset <= offset and offset + info.size_bytes <= placed.offset + placed.source.size_bytes
        if inside and info.size_bytes:
            return Table(index, offset, info.size_bytes // info.shape[0], info.shape[0], later_stages)
    return None


def _runs(ranked: Iterable[tuple[TensorInfo, int]]) -> list[_Run]:
    """Maximal runs of consecutive blocks with the same stage, in file order.

    A tensor can share only its first and its last block with others, so these are treated separately.
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
    """Tensors by name. Runs adjacent in the file are adjacent in the extent, so a tensor may span several."""
    placed = {}
    at = 0
    for tensor in sorted(tensors, key=lambda t: t.offset):
        while tensor.size_bytes and runs[at][1] * BLOCK_BYTES <= tensor.offset:
            at += 1
        offset = starts[at] + tensor.offset - runs[at][0] * BLOCK_BYTES if tensor.size_bytes else 0
        placed[tensor.name] = PlacedTensor(offset, tensor.dtype, tensor.shape)
    return placed

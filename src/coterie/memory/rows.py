"""Which blocks of an embedding table a prompt reads: these are loaded first, the whole table after everything else.

        table      |  r  |     |r r  |     |     |    |       blocks; r: rows of the prompt; x: another tensor's bytes
        range   x x|                                  |x
        parts   [        ]     [     ]                [ ]     other tensors in the table's range are loaded first too

The table's range is later read whole, which overwrites these rows with identical bytes; concurrent reads are safe.
Knows nothing about requests, devices or tiers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from coterie.checkpoint.layout import BLOCK_BYTES, Layout

# Estimated cost of one more part, in bytes that the link could move meanwhile. Disk: a small read takes some 25 us with
# several in flight, at 3 GB/s. Pinned pool below a GPU: 1 to 2 us on the host to locate a part, at some 50 GB/s.
PART_COST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class EarlyRows:
    """Rows of a table that are fetched first. `parts`: (offset, size) in the table's range; `size_bytes`: their sum."""

    rows: frozenset[int]
    parts: tuple[tuple[int, int], ...]
    size_bytes: int


def early_rows(layout: Layout, rows: Collection[int]) -> EarlyRows | None:
    """The parts to fetch first, or None if that is estimated to take over half the time of the table's whole range."""
    table = layout.table
    if table is None or not rows:
        return None
    placed = layout.ranges[table.range_index]
    first, size_bytes = table.offset - placed.offset, placed.source.size_bytes
    row_bytes = table.row_bytes
    end = first + table.num_rows * row_bytes
    # Other tensors in the range lie before the first row or after the last.
    spans = [(0, first)] if first > 0 else []
    spans += [(first + row * row_bytes, first + (row + 1) * row_bytes) for row in sorted(rows)]
    spans += [(end, size_bytes)] if end < size_bytes else []
    parts = _merged(spans)
    early_bytes = sum([size for _, size in parts])
    worth_it = 2 * (early_bytes + PART_COST_BYTES * len(parts)) <= size_bytes
    return EarlyRows(frozenset(rows), parts, early_bytes) if worth_it else None


def _merged(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Whole blocks, (offset, size), that cover `spans` [start, stop), which are sorted by both.

    Bridges a gap where reading it costs no more than one more part.
    """
    merged: list[tuple[int, int]] = []
    first = spans[0][0] // BLOCK_BYTES * BLOCK_BYTES
    end = first
    for start, stop in spans:
        begin = start // BLOCK_BYTES * BLOCK_BYTES
        if begin - end > PART_COST_BYTES:
            merged.append((first, end - first))
            first = begin
        end = -(-stop // BLOCK_BYTES) * BLOCK_BYTES
    merged.append((first, end - first))
    return tuple(merged)

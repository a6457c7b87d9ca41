"""Which blocks of an embedding a prompt reads: they come first, and the rest of the table behind everything else.

        table      |  r  |     |r r  |     |     |    |       blocks; r: rows of the prompt; x: another tensor's bytes
        range   x x|                                  |x
        parts   [        ]     [     ]                [ ]     what the table's range holds beside it comes first too

The table's range is read whole later: it writes the bytes of these rows again, which are the same for who reads them.
Knows nothing about requests, devices or tiers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from coterie.checkpoint.layout import BLOCK_BYTES, Layout

# What a link carries in the time that one more part takes, estimates. A disk: a small read, some 25 us with several at
# once, of 3 GB/s. A pinned pool below a GPU: the host, which takes 1 to 2 us to find a part's place, of some 50 GB/s.
PART_COST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class EarlyRows:
    """Rows of a table that are fetched first, by these parts (offset, size) of the table's range, of so many bytes."""

    rows: frozenset[int]
    parts: tuple[tuple[int, int], ...]
    size_bytes: int


def early_rows(layout: Layout, rows: Collection[int]) -> EarlyRows | None:
    """The parts to fetch first, or None where that takes more than half the time of the whole table."""
    table = layout.table
    if table is None or not rows:
        return None
    placed = layout.ranges[table.range_index]
    first, size_bytes = table.offset - placed.offset, placed.source.size_bytes
    row_bytes = table.row_bytes
    end = first + table.num_rows * row_bytes
    # What is beside the table lies before all rows, or behind them.
    spans = [(0, first)] if first > 0 else []
    spans += [(first + row * row_bytes, first + (row + 1) * row_bytes) for row in sorted(rows)]
    spans += [(end, size_bytes)] if end < size_bytes else []
    parts = _merged(spans)
    early_bytes = sum([size for _, size in parts])
    worth_it = 2 * (early_bytes + PART_COST_BYTES * len(parts)) <= size_bytes
    return EarlyRows(frozenset(rows), parts, early_bytes) if worth_it else None


def _merged(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Whole blocks, (offset, size), that cover spans, none of which starts or stops before the one in front of it; what
    lies between two is read too where that costs no more.
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

"""Which blocks of an embedding a prompt reads: they come first, and the rest of the table behind everything else.

        table      |  r  |     |r r  |     |     |    |       blocks; r: rows of the prompt; x: another tensor's bytes
        range   x x|                                  |x
        parts   [        ]     [     ]                [ ]     what the table's range holds beside it comes first too

The table's range is read whole later: it writes the bytes of these rows again, which are the same for who reads them.
Knows nothing about requests, devices or tiers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from coterie.checkpoint.layout import BLOCK_BYTES, Layout

# What a disk reads in the time that one small read takes (an estimate: about 25 us with several at once, of 3 GB/s).
READ_COST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class EarlyRows:
    """Rows of a table that are fetched first, by these parts (offset, size) of the table's range."""

    rows: frozenset[int]
    parts: tuple[tuple[int, int], ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts."""
        return sum([size for _, size in self.parts])


def early_rows(layout: Layout, rows: Collection[int]) -> EarlyRows | None:
    """The parts to fetch first, or None where that takes more than half the time of the whole table."""
    table = layout.table
    if table is None or not rows:
        return None
    placed = layout.ranges[table.range_index]
    first, size_bytes = table.offset - placed.offset, placed.source.size_bytes
    end = first + table.num_rows * table.row_bytes
    spans = [(first + row * table.row_bytes, first + (row + 1) * table.row_bytes) for row in sorted(rows)]
    beside = [(start, stop) for start, stop in ((0, first), (end, size_bytes)) if start < stop]
    parts = _merged(sorted(spans + beside))
    early = EarlyRows(frozenset(rows), tuple((start, stop - start) for start, stop in parts))
    return early if 2 * (early.size_bytes + READ_COST_BYTES * len(parts)) <= size_bytes else None


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Whole blocks that cover sorted spans; what lies between two is read too where that costs no more."""
    merged: list[tuple[int, int]] = []
    for start, stop in spans:
        first, end = start // BLOCK_BYTES * BLOCK_BYTES, -(-stop // BLOCK_BYTES) * BLOCK_BYTES
        if merged and first - merged[-1][1] <= READ_COST_BYTES:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((first, end))
    return merged

"""Which blocks of an embedding a prompt reads: they come first, and the rest of the table behind everything else.

        table      |  r  |     |r r  |     |     |    |       blocks; r: rows of the prompt; x: another tensor's bytes
        range   x x|                                  |x
        parts   [        ]     [     ]                [ ]     what the table's range holds beside it comes first too

The table's range is read whole later: it writes the bytes of these rows again, which are the same for who reads them.
Knows nothing about requests, devices or tiers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.layout import BLOCK_BYTES, Layout

I64: TypeAlias = npt.NDArray[np.int64]

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
    wanted = np.sort(np.fromiter(rows, np.int64, len(rows)))
    starts, stops = first + wanted * table.row_bytes, first + (wanted + 1) * table.row_bytes
    # What is beside the table lies before all rows, or behind them.
    if first > 0:
        starts, stops = np.append(0, starts), np.append(first, stops)
    if end < size_bytes:
        starts, stops = np.append(starts, end), np.append(stops, size_bytes)
    early = EarlyRows(frozenset(rows), _merged(starts, stops))
    return early if 2 * (early.size_bytes + READ_COST_BYTES * len(early.parts)) <= size_bytes else None


def _merged(starts: I64, stops: I64) -> tuple[tuple[int, int], ...]:
    """Whole blocks, (offset, size), that cover spans, which neither start nor stop before those in front of them; what
    lies between two is read too where that costs no more.
    """
    starts, stops = starts // BLOCK_BYTES * BLOCK_BYTES, -(-stops // BLOCK_BYTES) * BLOCK_BYTES
    apart = np.flatnonzero(starts[1:] - stops[:-1] > READ_COST_BYTES)
    starts, stops = starts[np.append(0, apart + 1)], stops[np.append(apart, len(stops) - 1)]
    return tuple(zip(starts.tolist(), (stops - starts).tolist(), strict=True))

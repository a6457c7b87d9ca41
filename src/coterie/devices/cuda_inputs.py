"""The inputs of runs of equal sizes, laid out as they go down to the GPU, and rewritten from one run to the next.

    tokens | positions | sequence | block_tables | rows | sampling | ends | first_end      each from a multiple of 16 on

Runs of a conversation differ in tokens and positions; how rows are sampled and where they end is written when it
changes.
Knows nothing about programs, packets or addresses.
"""

from __future__ import annotations

from itertools import accumulate, chain
from typing import TypeAlias

import numpy as np

from coterie.devices.cuda_packet import Place, places_of
from coterie.devices.host_memory import Bytes
from coterie.devices.step import INPUTS, StepRows, encode_sampling
from coterie.kernels.cpu import SETTING_WORDS

Key: TypeAlias = tuple[int, ...]
INT_BYTES, WORD_BYTES = 4, 8


class Inputs:
    """The bytes that go down, and where in them each input is."""

    def __init__(self, key: Key) -> None:
        T, B, R, columns, ends = key
        counts = {"tokens": T, "positions": T, "sequence": T, "block_tables": B * columns, "rows": R}
        sizes = {name: INT_BYTES * count for name, count in counts.items()}
        sizes |= {
            "sampling": WORD_BYTES * SETTING_WORDS * R,
            "ends": INT_BYTES * ends,
            "first_end": INT_BYTES * (R + 1),
        }
        self.key = key
        self.named = {"T": T, "B": B, "R": R, "table_width": columns}  # the numbers that kernels know by these names
        self.places, self.size_bytes = places_of(sizes)
        self.bytes: Bytes = np.zeros(self.size_bytes, np.uint8)
        self._views = [(name, self._part(name).view(np.int32).reshape(_shape(name, key))) for name in INPUTS]
        self._sampling = self._part("sampling").view(np.int64).reshape(R, SETTING_WORDS)
        self._ends, self._first_end = self._part("ends").view(np.int32), self._part("first_end").view(np.int32)
        self._has: tuple[object, object] = (None, None)  # the settings and ends that are written, which never change

    @staticmethod
    def key_of(rows: StepRows) -> Key:
        """What decides the layout: T, B, R, the columns of block tables, and all rows' ends."""
        sizes = rows.sizes
        return sizes.T, sizes.B, sizes.R, rows.inputs["block_tables"].shape[1], sum(map(len, rows.end_ids))

    def put(self, rows: StepRows) -> None:
        """Write the inputs of a run with this layout."""
        inputs = rows.inputs
        for name, view in self._views:
            view[...] = inputs[name]
        settings, ends = self._has
        if settings is rows.sampling and ends is rows.end_ids:
            return
        self._sampling[...] = encode_sampling(rows.sampling)
        of_rows = rows.end_ids or ((),) * rows.sizes.R
        self._ends[...] = list(chain.from_iterable(of_rows))
        self._first_end[...] = list(accumulate(map(len, of_rows), initial=0))
        self._has = rows.sampling, rows.end_ids

    def _part(self, name: str) -> Bytes:
        place: Place = self.places[name]
        return self.bytes[place.start : place.start + place.size_bytes]


def _shape(name: str, key: Key) -> tuple[int, ...]:
    return (key[1], key[3]) if name == "block_tables" else (-1,)

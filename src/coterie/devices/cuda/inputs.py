"""A run, and its inputs as laid out for the copy to the GPU; runs of equal sizes reuse the layout.

    tokens | positions | sequence | block_tables | rows | sampling | ends | first_end      each aligned to 16 bytes
    then inputs that only some programs read (graph/rows.py)
    a block table       blocks of recurrent state, padded | blocks of tokens               each aligned to 16 bytes

Consecutive runs of a conversation differ in tokens and positions; sampling settings and end tokens are rewritten only
when they change.
Knows nothing about streams, packets or callers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.core.shapes import Sizes
from coterie.core.values import value
from coterie.devices.cuda.packet import ALIGN_BYTES, Part, parts_of
from coterie.devices.real.host_memory import Bytes
from coterie.devices.real.lower_delta_net import STATE_TABLES
from coterie.devices.real.step import INPUTS, LoweredExecutable, StepRows, encode_sampling
from coterie.graph.ops import DERIVED_ROWS
from coterie.kernels.cpu import I64, SETTING_WORDS
from coterie.kernels.triton.bucket import Bucket
from coterie.kernels.triton.tiles import power_of_two

Key: TypeAlias = tuple[int, ...]
INT_BYTES, WORD_BYTES = 4, 8
SPAN = 256  # contexts are rounded up to this many positions times a power of two: each bucket is compiled once


@dataclass(frozen=True, slots=True, eq=False)
class PerExpertWeights:
    """Weights of a step whose sequences belong to several experts: addresses [expert, weight], and which are shared."""

    addresses_GW: I64
    is_shared_W: npt.NDArray[np.bool_]
    shared: tuple[int, ...]  # indices of shared weights: they determine which instructions split their rows


@dataclass(frozen=True, slots=True, eq=False)
class Addresses:
    """GPU addresses of weights and pages, and the bytes of a page; `per_expert` if sequences differ in weights."""

    weights: I64
    kv: int
    block_bytes: int
    per_expert: PerExpertWeights | None = None


@value
class Run:
    """Up to `steps` steps of a program: their rows, and where weights and pages are."""

    exe: LoweredExecutable
    rows: StepRows
    steps: int
    at: Addresses
    bucket: Bucket

    @staticmethod
    def of(exe: LoweredExecutable, rows: StepRows, steps: int, at: Addresses) -> Run:
        """A run in the bucket that it fits. Raises ValueError for rows that change logits."""
        if rows.changes:
            raise ValueError("logits are to be changed before tokens are drawn, which this device does not do")
        longest = int(rows.inputs["positions"].max(initial=0)) + steps
        return Run(exe, rows, steps, at, bucket_of(rows.sizes, longest))

    @property
    def sizes(self) -> Sizes:
        """The bucket's sizes, which determine the layout of stored values."""
        return Sizes(self.bucket.tokens, self.bucket.sequences, self.bucket.sampled, 0, 0)

    @property
    def drawn(self) -> int:
        """Tokens that each step samples."""
        return self.rows.sizes.R if self.exe.drawn else 0

    @property
    def decodes(self) -> bool:
        """Whether each sequence has one token."""
        return self.rows.sizes.T == self.rows.sizes.B

    @property
    def mixes(self) -> bool:
        """Whether sequences differ in weights."""
        return self.at.per_expert is not None

    @property
    def bound_by(self) -> tuple[object, ...]:
        """Equal for runs with the same launches."""
        return id(self.exe), self.bucket, self.at.per_expert and self.at.per_expert.shared


class Inputs:
    """The bytes that are copied down, and where each input is in them."""

    def __init__(self, key: Key) -> None:
        T, B, R, self._state_blocks, columns, ends, more = key
        self._first = aligned_columns(self._state_blocks)
        columns += self._first
        counts = {"tokens": T, "positions": T, "sequence": T, "block_tables": B * columns, "rows": R}
        sizes = {name: INT_BYTES * count for name, count in counts.items()}
        sizes |= {
            "sampling": WORD_BYTES * SETTING_WORDS * R,
            "ends": INT_BYTES * ends,
            "first_end": INT_BYTES * (R + 1),
        }
        names = [name for bit, name in enumerate(DERIVED_ROWS) if more >> bit & 1]
        sizes |= dict.fromkeys(names, INT_BYTES * T)
        self.key = key
        self.named = {"T": T, "B": B, "R": R, "table_width": columns}  # by the names of the kernels' operands
        self.parts, self.size_bytes = parts_of(sizes)
        self.bytes: Bytes = np.zeros(self.size_bytes, np.uint8)
        self._views = [(name, self._part(name).view(np.int32)) for name in (*INPUTS, *names) if name != "block_tables"]
        self._tables = self._part("block_tables").view(np.int32).reshape(B, columns)
        self._sampling = self._part("sampling").view(np.int64).reshape(R, SETTING_WORDS)
        self._ends, self._first_end = self._part("ends").view(np.int32), self._part("first_end").view(np.int32)
        # The settings and end tokens last written; both objects are immutable.
        self._has: tuple[object, object] = (None, None)

    @staticmethod
    def key_of(rows: StepRows, state_blocks: int = 0) -> Key:
        """What determines the layout: T, B, R, columns of block tables (state, tokens), end tokens, and extra inputs.

        A table begins with `state_blocks` columns of recurrent state. The number of other columns is rounded up to a
        power of two, so that a sequence that grows by a block rarely changes the layout.
        """
        sizes, columns = rows.sizes, power_of_two(rows.inputs["block_tables"].shape[1] - state_blocks)
        more = sum([1 << bit for bit, name in enumerate(DERIVED_ROWS) if name in rows.inputs])
        return sizes.T, sizes.B, sizes.R, state_blocks, columns, sum(map(len, rows.end_ids)), more

    def addresses(self, at: int) -> dict[str, int]:
        """Address of each input, given that of the bytes; block tables from their first column of tokens on."""
        found = {name: at + part.start for name, part in self.parts.items()}
        found[STATE_TABLES] = found["block_tables"]
        found["block_tables"] += INT_BYTES * self._first
        return found

    def put(self, rows: StepRows) -> None:
        """Write the inputs of a run with this layout."""
        inputs = rows.inputs
        for name, view in self._views:
            view[...] = inputs[name]
        state, end = self._state_blocks, inputs["block_tables"].shape[1] - self._state_blocks + self._first
        self._tables[:, :state] = inputs["block_tables"][:, :state]
        self._tables[:, self._first : end] = inputs["block_tables"][:, state:]
        self._tables[:, end:] = 0
        settings, ends = self._has
        if settings is rows.sampling and ends is rows.end_ids:
            return
        self._sampling[...] = encode_sampling(rows.sampling)
        of_rows = rows.end_ids or ((),) * rows.sizes.R
        self._ends[...] = list(chain.from_iterable(of_rows))
        self._first_end[...] = list(accumulate(map(len, of_rows), initial=0))
        self._has = rows.sampling, rows.end_ids

    def _part(self, name: str) -> Bytes:
        part: Part = self.parts[name]
        return self.bytes[part.start : part.start + part.size_bytes]


def aligned_columns(columns: int) -> int:
    """Columns of a block table, padded so that what follows is aligned if the table is."""
    return -(-columns * INT_BYTES // ALIGN_BYTES) * ALIGN_BYTES // INT_BYTES


def bucket_of(sizes: Sizes, context: int) -> Bucket:
    """The bucket of a step; only steps with one token per sequence count as decode."""
    return _bucket(sizes.T, sizes.B, sizes.R, -(-context // SPAN))


@lru_cache(256)
def _bucket(T: int, B: int, R: int, spans: int) -> Bucket:
    tokens, sequences = power_of_two(T), power_of_two(B)
    if T != B:
        tokens = max(tokens, 2)
        sequences = min(sequences, tokens - 1)
    return Bucket(tokens, sequences, power_of_two(R), SPAN * power_of_two(spans))

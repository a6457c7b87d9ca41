"""Arithmetic of a merged tensor: rows of the base's tensor or its replacement, plus scale * B A, rounded once.

    rows of W, float32  ->  + scale * B[rows] A  ->  DoRA: * magnitude / length of the row  ->  the base's type

Peak memory: the factors of one tensor in float32, and ten float32 copies of a piece of `PIECE_WEIGHTS` weights.
Knows nothing about which tensors exist, or what is written where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.core.errors import CheckpointError
from coterie.models.fine_tunes.adapter import Change, LowRank
from coterie.models.model import open_model
from coterie.models.new_folder import Entry, row_pieces
from coterie.models.tensors import kind_of, map_bytes

F32 = npt.NDArray[np.float32]

PIECE_WEIGHTS = 1 << 20  # ten copies are 40 MiB


@dataclass(slots=True)
class Sums:
    """Running sums of squares over the weights of some tensors: before, of the change, and of the rounding error."""

    num_weights: int = 0
    before: float = 0.0
    changed: float = 0.0
    lost: float = 0.0

    def add(self, before: F32, exact: F32, after: F32) -> None:
        """Add a piece of a tensor: before the merge, exactly merged, and as stored."""
        self.num_weights += after.size
        self.before += _squares(before)
        self.changed += _squares(after[: len(before)] - before)
        self.lost += _squares(after - exact)

    @classmethod
    def of(cls, several: Iterable[Sums]) -> Sums:
        """The total of several sums."""
        whole = cls()
        for one in several:
            whole.num_weights += one.num_weights
            whole.before += one.before
            whole.changed += one.changed
            whole.lost += one.lost
        return whole

    @property
    def change(self) -> float:
        """Root mean square of the change, relative to that of the weights before."""
        return (self.changed / self.before) ** 0.5 if self.before else 0.0

    @property
    def rounding(self) -> float:
        """Root mean square of the rounding error, relative to that of the change."""
        return (self.lost / self.changed) ** 0.5 if self.changed else float(self.lost > 0)


@dataclass(frozen=True, slots=True)
class KindChange:
    """The effect of merging on one kind of tensor, over all layers: `num_tensors` of `num_there` were changed.

    `change`: root mean square of the difference, relative to that of the weights before; `rounding`: that of the error
    of rounding to the base's type, relative to the difference.
    """

    kind: str
    num_tensors: int
    num_there: int
    num_weights: int
    change: float
    rounding: float


@dataclass(frozen=True, slots=True)
class Merged:
    """A written folder. `untied`: embedding and head were tied in the base and are separate here."""

    folder: Path
    size_bytes: int
    untied: bool
    vocab_size: int
    kinds: tuple[KindChange, ...]


def changed_kinds(entries: Iterable[Entry], sums: Mapping[str, Sums]) -> tuple[KindChange, ...]:
    """The effect by kind of tensor, from the sums of changed tensors by name; `entries` are all tensors."""
    there = Counter(kind_of(entry.name) for entry in entries)
    by_kind: dict[str, list[Sums]] = {}
    for name, found in sums.items():
        by_kind.setdefault(kind_of(name), []).append(found)
    rows = []
    for kind, several in by_kind.items():
        whole = Sums.of(several)
        rows.append(KindChange(kind, len(several), there[kind], whole.num_weights, whole.change, whole.rounding))
    return tuple(rows)


def check_opens(folder: Path, added: Path) -> None:
    """Open a written expert, to fail now and not when it is served. Raises CheckpointError naming what was `added`."""
    try:
        open_model(folder)
    except CheckpointError as error:
        fact = f"what it makes of the base cannot be served: {error.fact}"
        raise CheckpointError(str(added), fact, error.remedy) from error


def pieces(base: TensorInfo | None, change: Change, dtype: DType, sums: Sums) -> Iterator[bytes]:
    """The bytes of a merged tensor in type `dtype`, some rows at a time; `base` None: the tensor is new.

    Raises CheckpointError for a number that is not finite in that type.
    """
    start = change.whole or base
    assert start is not None
    rows, columns = start.shape[0], prod(start.shape[1:])
    factors = _Factors(change.low_rank) if change.low_rank else None
    for taken in row_pieces(rows, columns, PIECE_WEIGHTS):
        first, last = taken.start, taken.stop
        exact = _rows(start, first, last)
        if factors:
            exact = factors.added(exact, first)
        before = _rows(base, first, last) if base else exact[:0]
        yield rounded(before, exact, dtype, sums, f"{start.shard.path}: {start.name}")


def rounded(before: F32, exact: F32, dtype: DType, sums: Sums, where: str) -> bytes:
    """Rows of a merged tensor rounded to the stored type; adds them to `sums`. `before` has no rows if they are new.

    Raises CheckpointError for a number that is not finite in that type.
    """
    bits = from_f32(exact, dtype)
    after = to_f32(bits, dtype)
    if not np.isfinite(after).all():
        fact = f"the merged weight is infinite or not a number in {dtype.value}"
        raise CheckpointError(where, fact, "get base and adapter again")
    sums.add(before, exact, after)
    return bits.tobytes()


class _Factors:
    """B and A of one module in float32, ready to be multiplied: [rows, rank] and [rank, columns]."""

    def __init__(self, found: LowRank) -> None:
        a, b = (_rows(info, 0, info.shape[0]) for info in (found.a, found.b))
        self.left_NR, self.right_RK = (a.T, b.T) if found.is_embedding else (b, a)
        self.scale = np.float32(found.scale)
        self.magnitude_N1 = None if found.magnitude is None else _rows(found.magnitude, 0, found.magnitude.shape[0])

    def added(self, values_NK: F32, first: int) -> F32:
        """Rows of the weight, from number `first` on, with the adapter's change added."""
        here = slice(first, first + len(values_NK))
        with np.errstate(all="ignore"):  # values that are not finite are refused later
            sum_NK: F32 = values_NK + self.scale * (self.left_NR[here] @ self.right_RK)
            if self.magnitude_N1 is not None:
                sum_NK *= self.magnitude_N1[here] / np.linalg.norm(sum_NK, axis=1, keepdims=True)
        return sum_NK


def _rows(info: TensorInfo, first: int, last: int) -> F32:
    """Rows of a tensor as float32 [rows, remaining axes]; fewer if it has fewer."""
    bits = map_bytes(info).view(info.dtype.numpy).reshape(prod(info.shape[:1]), -1)
    return to_f32(np.asarray(bits[first:last]), info.dtype)


def _squares(values: F32) -> float:
    return float(np.einsum("nk,nk", values, values, dtype=np.float64))

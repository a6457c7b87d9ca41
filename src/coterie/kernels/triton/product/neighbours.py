"""Neighbouring products of the same x: with few tokens they share one launch, with more they share one staged x.

    linear x W1^T | linear x W2^T | linear x W3^T     consecutive instruction rows, each with its own y

Each row finds its neighbours in the host's rows; the first of them launches for all.
Knows nothing about how rows are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from coterie.kernels.cpu import I64, OPCODES
from coterie.kernels.triton.product.linear_each import is_low
from coterie.kernels.triton.product.staged_ahead import stages_x
from coterie.kernels.triton.rows import Call, Matrix, name_of
from coterie.kernels.triton.tiles import CudaCoreTile

LINEAR = "linear"
MAX_JOINT_ROWS = 4  # instruction rows per launch: linear_few.py has three END_ parameters
_WORDS = OPCODES[LINEAR].words
NO_END = 1 << 30  # an end that no program reaches
_ENDS = ("END_1", "END_2", "END_3")
_READ = [_WORDS[name] for name in ("x", "K", "T")]  # operands that are equal among neighbours,
_LAUNCHED = [_WORDS[name] for name in ("scale", "weight_dtype", "bias_dtype")]  # and those in one launch


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The instruction rows of one launch: rows of each one's weight, and whether the call is the first of them."""

    counts: tuple[int, ...]
    few: CudaCoreTile
    is_first: bool

    @property
    def programs(self) -> int:
        """Programs of the launch."""
        return sum(-(-count // self.few.rows) for count in self.counts)

    def constants(self, word: int) -> dict[str, int | None]:
        """Compile-time parameters that assign programs to weights.

        `word`: where an instruction row holds the number of its weight's rows.
        """
        if len(self.counts) == 1:
            return {"N": self.counts[0], "N_AT": None, **dict.fromkeys(_ENDS)}
        ends = [*accumulate(-(-count // self.few.rows) for count in self.counts[:-1]), *[NO_END] * len(_ENDS)]
        return {"N": None, "N_AT": word, **dict(zip(_ENDS, ends, strict=False))}


def neighbours(call: Call, most: int, matrix: Matrix) -> Neighbours:
    """The rows launched together with a product of up to `most` tokens; only `linear` has neighbours."""
    choose = call.tiles.few_by_itself if "norm" not in OPCODES[call.name].words else call.tiles.few

    def few_of(count: int) -> CudaCoreTile:
        return choose(count, matrix.K, most, matrix.group, matrix.is_wide, several=True)

    if call.name != LINEAR:
        count = call.integer("N")
        return Neighbours((count,), few_of(count), True)
    rows, at = _run(call, _alike)
    group, start = [rows[0]], 0
    for place, row in enumerate(rows[1:], 1):
        fits = len(group) < MAX_JOINT_ROWS and _sum_alike(few_of(_count(group[0])), few_of(_count(row)), most, matrix)
        if fits and all(_apart(row, one, call.bucket.tokens) for one in group):
            group.append(row)
        elif place > at:
            break
        else:
            group, start = [row], place
    counts = tuple(map(_count, group))
    return Neighbours(counts, max(map(few_of, counts), key=lambda one: one.rows), start == at)


def staged_by_neighbour(call: Call, matrix: Matrix) -> torch.Tensor | None:
    """Where an earlier neighbour staged the x of both; None where none did."""
    if call.name != LINEAR or call.earlier_rows is None:
        return None
    rows, at = _run(call, lambda one, other: _staged_alike(call, one, other))
    before = len(call.earlier_rows) - at - 1
    if before >= 0 and stages_x(call.earlier_rows[before], rows[0]):
        return None
    # Low-rank products round x as they load it, and stage nothing.
    if all(is_low(replace(call, host_row=row)) for row in rows[:at]):
        return None
    return call.scratch_as(matrix.dot_type, call.bucket.tokens * matrix.K)


def _run(call: Call, alike: Callable[[I64, I64], bool]) -> tuple[Sequence[I64], int]:
    """Consecutive rows around the call's, each `alike` to the row before it, and the call's index among them."""
    earlier, later = (() if rows is None else [*rows] for rows in (call.earlier_rows, call.later_rows))
    before: list[I64] = []
    for row in reversed(earlier):
        if not alike(row, before[-1] if before else call.host_row):
            break
        before.append(row)
    rows = [*reversed(before), call.host_row]
    for row in later:
        if not alike(rows[-1], row):
            break
        rows.append(row)
    return rows, len(before)


def _alike(one: I64, other: I64) -> bool:
    """Whether two rows multiply the same x by weights of one type, both with a bias or both without."""
    if not _reads_alike(one, other) or any(one[word] != other[word] for word in _LAUNCHED):
        return False
    return (int(one[_WORDS["bias"]]) == 0) == (int(other[_WORDS["bias"]]) == 0)


def _reads_alike(one: I64, other: I64) -> bool:
    return name_of(one) == name_of(other) == LINEAR and all(one[word] == other[word] for word in _READ)


def _staged_alike(call: Call, one: I64, other: I64) -> bool:
    """Whether both would stage the same values."""
    if not _reads_alike(one, other):
        return False
    types = [replace(call, name=LINEAR, host_row=row).matrix("weight", 1).dot_type for row in (one, other)]
    return bool(types[0] == types[1])


def _sum_alike(one: CudaCoreTile, other: CudaCoreTile, most: int, matrix: Matrix) -> bool:
    """Whether a weight's products have the same bits under either tile.

    With one token, each row's sum is independent of the others (is_one), so the number of rows does not matter.
    """
    if one.is_one(most, matrix.group) and other.is_one(most, matrix.group):
        return (one.columns, one.warps, one.unroll) == (other.columns, other.warps, other.unroll)
    return one == other


def _count(row: I64) -> int:
    return int(row[_WORDS["N"]])


def _apart(one: I64, other: I64, tokens: int) -> bool:
    """Whether the two outputs do not overlap."""
    first, second = sorted((one, other), key=lambda row: int(row[_WORDS["y"]]))
    return int(first[_WORDS["y"]]) + 4 * tokens * _count(first) <= int(second[_WORDS["y"]])

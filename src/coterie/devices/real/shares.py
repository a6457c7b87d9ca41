"""Mixed batches: the rows of a step divided into shares, each multiplied by a different expert's weights.

    linear       weight             ->   linear_each       each: address of a table with a weight per share
    linear_add   weight, residual   ->   linear_add_each   first: where shares begin; shares: how many there are

Instructions are switched between the two forms in place; operands that both have are in the same words.
Knows nothing about graphs, or about how a share is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.core.values import value
from coterie.device import I32
from coterie.devices.real.operands import Named, Operands, Weight
from coterie.graph.mixing import PRODUCTS
from coterie.kernels import cpu as kernels
from coterie.kernels.cpu import I64

EACH = {product: f"{product}_each" for product in PRODUCTS}
ROWS = ("T", "R")  # an instruction's rows are a step's tokens, or its sampled rows


@value
class Shares:
    """Share s is rows [first[s], first[s + 1]) and uses the weights of expert of[s] (numbered as in Variants.expert_B).

    Given separately for a step's tokens (`_T`) and its sampled rows (`_R`).
    """

    first_T: I32
    expert_T: I32
    first_R: I32
    expert_R: I32

    @property
    def key(self) -> tuple[bytes, ...]:
        """A hashable key, equal for equal shares."""
        return tuple([numbers.tobytes() for numbers in (self.first_T, self.expert_T, self.first_R, self.expert_R)])

    @property
    def counts(self) -> tuple[int, int]:
        """Number of shares of the tokens, and of the sampled rows."""
        return len(self.expert_T), len(self.expert_R)

    @staticmethod
    def of(expert_B: npt.ArrayLike, sequence_T: I32, rows_R: I32) -> Shares:
        """The shares of a step: maximal runs of consecutive rows whose sequences use the same expert."""
        number_T = np.asarray(expert_B, np.int32)[sequence_T]
        return Shares(*_runs(number_T), *_runs(number_T[rows_R]))


def _runs(numbers: I32) -> tuple[I32, I32]:
    starts = np.flatnonzero(np.diff(numbers, prepend=np.int32(-1))).astype(np.int32)
    return np.append(starts, np.int32(len(numbers))), numbers[starts]


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """The switchable instructions over one kind of rows.

    For each: its row (`at`), the index of its weight, its opcode in `plain` and `each` form, and the positions of the
    words (table of weights, share starts, number of shares).
    """

    at: I64
    weight: I64
    plain: I64
    each: I64
    words: I64

    @staticmethod
    def of(found: Sequence[tuple[int, int, str]]) -> _Kind:
        at, weight = (np.array([row[i] for row in found], np.int64) for i in (0, 1))
        each = [kernels.OPCODES[EACH[name]] for _, _, name in found]
        plain_numbers = np.array([kernels.OPCODES[name].number for _, _, name in found], np.int64)
        each_numbers = np.array([opcode.number for opcode in each], np.int64)
        words = [[opcode.words[name] for name in ("each", "first", "shares")] for opcode in each]
        return _Kind(at, weight, plain_numbers, each_numbers, np.array(words, np.int64).reshape(-1, 3).T)


class Shareable:
    """The instructions of a program that have a form for shares."""

    def __init__(self, names: Sequence[str], instructions: Sequence[Operands]) -> None:
        found: dict[str, list[tuple[int, int, str]]] = {rows: [] for rows in ROWS}
        for at, (name, operands) in enumerate(zip(names, instructions, strict=True)):
            weight, rows = operands.get("weight"), operands.get("T")
            if name in EACH and isinstance(rows, Named) and isinstance(weight, Weight):
                found[rows.name].append((at, weight.index, name))
        self._found = tuple(found.values())
        self._kinds: tuple[_Kind, ...] | None = None

    def words(self, tokens: int, sampled: int) -> int:
        """Upper bound on the words of tables, given the number of shares of tokens and of sampled rows."""
        each = zip(self._found, (tokens, sampled), strict=True)
        return sum([_even(1 + shares // 2) + len(found) * _even(shares) for found, shares in each])

    def put(
        self, rows: I64, addresses_GW: I64, is_shared_W: npt.NDArray[np.bool_], shares: Shares, tables: I64, at: int
    ) -> None:
        """Switch every instruction whose weight is not shared to its form for shares.

        `addresses_GW`: addresses of all weights, by expert. `tables`: an array of at least `words` words, visible to
        the device at address `at`, that receives the tables the rows point to.
        """
        self.take_back(rows)  # for weights that were not shared last time but now are
        sides = (shares.first_T, shares.expert_T), (shares.first_R, shares.expert_R)
        end = 0
        for kind, (first, of_S) in zip(self._kinds_of(), sides, strict=True):
            own = ~is_shared_W[kind.weight]
            places, (each, begin, count) = kind.at[own], kind.words[:, own]
            start, width = end + _even(1 + len(of_S) // 2), _even(len(of_S))
            tables[end:start].view(np.int32)[: len(first)] = first
            rows[places, begin], rows[places, count] = at + tables.itemsize * end, len(of_S)
            end = start + width * len(places)
            table = tables[start:end].reshape(len(places), width)
            table[:, : len(of_S)] = addresses_GW[of_S][:, kind.weight[own]].T
            rows[places, kernels.OPCODE_WORD] = kind.each[own]
            rows[places, each] = at + tables.itemsize * (start + width * np.arange(len(places)))

    def take_back(self, rows: I64) -> None:
        """Switch all instructions back to one weight for all rows."""
        for kind in self._kinds_of():
            rows[kind.at, kernels.OPCODE_WORD] = kind.plain

    def _kinds_of(self) -> tuple[_Kind, ...]:
        if self._kinds is None:
            self._kinds = tuple([_Kind.of(rows_of) for rows_of in self._found])
        return self._kinds


def _even(words: int) -> int:
    """Round up to a multiple of 16 bytes, the alignment that GPU kernels need."""
    return words + words % 2

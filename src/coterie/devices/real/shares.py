"""Rows of a step in shares, each with weights of its own: which instructions can take them, and how their rows say it.

    linear       weight                       ->   linear_each       each: address of a table | first | how many
    linear_add   weight, residual             ->   linear_add_each   as often as the step has weights

An instruction of all rows becomes one of shares and back again; what they have in common is in the same words.
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
ROWS = ("T", "R")  # what the rows of such an instruction are


@value
class Shares:
    """Rows [first[s], first[s + 1]) of a step have the weights of number of_S[s], of its tokens and of sampled rows."""

    first_T: I32
    of_T: I32
    first_R: I32
    of_R: I32

    @property
    def key(self) -> tuple[bytes, ...]:
        """Equal for equal shares."""
        return tuple([numbers.tobytes() for numbers in (self.first_T, self.of_T, self.first_R, self.of_R)])

    @property
    def counts(self) -> tuple[int, int]:
        """How many shares tokens have, and sampled rows."""
        return len(self.of_T), len(self.of_R)

    @staticmethod
    def of(of_B: npt.ArrayLike, sequence_T: I32, rows_R: I32) -> Shares:
        """The shares of a step whose sequences have these weights: rows of one number that follow one another."""
        number_T = np.asarray(of_B, np.int32)[sequence_T]
        return Shares(*_runs(number_T), *_runs(number_T[rows_R]))


def _runs(numbers: I32) -> tuple[I32, I32]:
    starts = np.flatnonzero(np.diff(numbers, prepend=np.int32(-1))).astype(np.int32)
    return np.append(starts, np.int32(len(numbers))), numbers[starts]


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """The instructions of one kind of rows: their places among all, the weight that each reads, and of each the number
    that it has and the one that it gets, and the words for a table of weights, for where shares begin and how many.
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
    """The instructions of a program that can take rows in shares."""

    def __init__(self, names: Sequence[str], instructions: Sequence[Operands]) -> None:
        found: dict[str, list[tuple[int, int, str]]] = {rows: [] for rows in ROWS}
        for at, (name, operands) in enumerate(zip(names, instructions, strict=True)):
            weight, rows = operands.get("weight"), operands.get("T")
            if name in EACH and isinstance(rows, Named) and isinstance(weight, Weight):
                found[rows.name].append((at, weight.index, name))
        self._found = tuple(found.values())
        self._kinds: tuple[_Kind, ...] | None = None

    def words(self, tokens: int, sampled: int) -> int:
        """The most words of tables in a step with up to so many shares of its tokens and of sampled rows."""
        each = zip(self._found, (tokens, sampled), strict=True)
        return sum([_even(1 + shares // 2) + len(found) * _even(shares) for found, shares in each])

    def put(
        self, rows: I64, addresses_GW: I64, is_shared_W: npt.NDArray[np.bool_], shares: Shares, tables: I64, at: int
    ) -> None:
        """Let instructions that read weights which are not shared take them from `addresses_GW`, by number of weights.

        What these rows point to is written into `tables`, which has `words` and which kernels find at the address `at`.
        """
        self.take_back(rows)  # those whose weights were not shared, and are now
        sides = (shares.first_T, shares.of_T), (shares.first_R, shares.of_R)
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
        """Let all instructions have one weight for all rows again."""
        for kind in self._kinds_of():
            rows[kind.at, kernels.OPCODE_WORD] = kind.plain

    def _kinds_of(self) -> tuple[_Kind, ...]:
        if self._kinds is None:
            self._kinds = tuple([_Kind.of(rows_of) for rows_of in self._found])
        return self._kinds


def _even(words: int) -> int:
    """So that what lies behind is at a multiple of 16 bytes, as all that a GPU reads."""
    return words + words % 2

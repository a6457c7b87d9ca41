"""A program's instruction rows, encoded once, and the positions of the words that vary from run to run.

    template.put_...(rows, addresses)     rewrites one kind of word in a single NumPy assignment, at any model depth

Knows nothing about which operand is which value (lower.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coterie.devices.real.operands import Named, Operand, Operands, Stored, Weight, Weights
from coterie.kernels import cpu as kernels
from coterie.kernels.cpu import I64

TABLE_WORDS = 2  # tables are padded to multiples of 16 bytes, the alignment that GPU kernels need


class Template:
    """The rows of a program with all constant words filled in, and the positions of the rest."""

    def __init__(self, names: Sequence[str], instructions: Sequence[Operands]) -> None:
        self._rows = np.zeros((len(names), kernels.ROW_WORDS), dtype=np.int64)
        symbolic: list[tuple[int, Operand]] = []
        for i, (name, operands) in enumerate(zip(names, instructions, strict=True)):
            literal = {key: value if isinstance(value, int | float) else 0 for key, value in operands.items()}
            self._rows[i] = kernels.encode(name, literal)
            words = kernels.OPCODES[name].words
            symbolic += [
                (i * kernels.ROW_WORDS + words[key], value)
                for key, value in operands.items()
                if not isinstance(value, int | float)
            ]
        weights = [(at, item.index) for at, item in symbolic if isinstance(item, Weight)]
        stored = [(at, item.name) for at, item in symbolic if isinstance(item, Stored)]
        named = [(at, item.name) for at, item in symbolic if isinstance(item, Named)]
        self.stored: tuple[str, ...] = tuple(dict.fromkeys(name for _, name in stored))
        self.named: tuple[str, ...] = tuple(dict.fromkeys(name for _, name in named))
        self._weights = _places(weights)
        self._stored = _places([(at, self.stored.index(name)) for at, name in stored])
        self._named = _places([(at, self.named.index(name)) for at, name in named])
        listed = [(at, item.indices) for at, item in symbolic if isinstance(item, Weights)]
        padded = [(*indices, *indices[: -len(indices) % TABLE_WORDS]) for _, indices in listed]
        starts = np.cumsum([0, *map(len, padded)], dtype=np.int64)
        self._tables = _places([(at, int(start)) for (at, _), start in zip(listed, starts, strict=False)])
        self._listed = np.array([index for indices in padded for index in indices], dtype=np.int64)

    def rows(self) -> I64:
        """A copy of the rows, to be completed by the `put_` methods."""
        return self._rows.copy()

    @property
    def table_words(self) -> int:
        """Words in all weight tables together."""
        return len(self._listed)

    def put_tables(self, rows: I64, address: int) -> None:
        """Write the tables' addresses into rows; the tables are contiguous from `address` on."""
        at, starts = self._tables
        rows.reshape(-1)[at] = address + rows.itemsize * starts

    def put_weights(self, rows: I64, addresses: I64, tables: I64) -> None:
        """Write weight addresses, given in the program's order, into rows and tables."""
        _put(rows, self._weights, addresses)
        tables[:] = addresses[self._listed]

    def put_stored(self, rows: I64, addresses: I64) -> None:
        """Write the addresses of stored values, given in the order of `stored`."""
        _put(rows, self._stored, addresses)

    def put_named(self, rows: I64, numbers: I64) -> None:
        """Write the numbers that vary per run, given in the order of `named`."""
        _put(rows, self._named, numbers)


def _put(rows: I64, places: tuple[I64, I64], values: I64) -> None:
    at, index = places
    rows.reshape(-1)[at] = values[index]


def _places(pairs: Sequence[tuple[int, int]]) -> tuple[I64, I64]:
    """Split (word, index of its value) pairs into two arrays."""
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0].copy(), table[:, 1].copy()

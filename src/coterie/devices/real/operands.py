"""Symbolic operands of instructions, which become numbers when a run binds them.

Knows nothing about which operand is which value (lower.py) or where it is in a row (template.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np


@dataclass(frozen=True, slots=True)
class Weight:
    """The address of a weight, given by its index in the program's order."""

    index: int


@dataclass(frozen=True, slots=True)
class Weights:
    """The address of a table of weight addresses, given by their indices in the program's order."""

    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """The address of a value in the workspace."""

    name: str


@dataclass(frozen=True, slots=True)
class Named:
    """A number that each run supplies: the address of a row input, a size (T, B, R), or one of PAGE_NAMES."""

    name: str


F32: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Operand: TypeAlias = int | float | Weight | Weights | Stored | Named
Operands: TypeAlias = dict[str, Operand]

PAGE_NAMES = ("kv", "block_bytes", "Z", "table_width")

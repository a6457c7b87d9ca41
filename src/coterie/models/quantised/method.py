"""The interface of a quantisation format: how its matrices are found among a file's tensors.

Knows nothing about any format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from coterie.checkpoint.safetensors import TensorInfo
from coterie.core.dtypes import DType
from coterie.models.quantised.matrix import Matrix


@dataclass(frozen=True, slots=True)
class Found:
    """A quantised matrix, and the names of the tensors that it consists of (some may not exist)."""

    matrix: Matrix
    used: tuple[str, ...]


Find: TypeAlias = Callable[[Mapping[str, TensorInfo], str, int], Found | None]


@dataclass(frozen=True, slots=True)
class Method:
    """How one checkpoint is quantised. `find(tensors, module name, columns)` returns the module's matrix, or None.

    `name`: as in config.json. `bits`: width of the packed types that may hold the codes unchanged, None for none;
    `exact_type`: the one type that holds all of them. `keeps_floats`: matrices are floats, which keep their type.
    `note`: what else the file quantises, empty for nothing. For a table of biases, `find` is given its full name. It
    raises CheckpointError and UnsupportedError.
    """

    name: str
    bits: int | None
    find: Find
    note: str = ""
    exact_type: DType | None = None
    keeps_floats: bool = False

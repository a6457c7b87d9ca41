"""What a format of quantised weights must say of itself: how its matrices are found among a file's tensors.

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
    """A quantised matrix, and the tensors that it is made of, or may be."""

    matrix: Matrix
    used: tuple[str, ...]


Find: TypeAlias = Callable[[Mapping[str, TensorInfo], str, int], Found | None]


@dataclass(frozen=True, slots=True)
class Method:
    """One checkpoint's way to quantise: `find` has the tensors, a module's name and its columns, and gives a matrix.

    `name`: as config.json has it. `bits`: of the packed types that may hold the codes as they are, None where none
    does; `holds`: the one that holds all. `keeps`: matrices are floats, which stay what they are. `beside`: what else
    the file quantises, in words, empty for nothing. `find` takes the whole name of a table of biases. It raises
    CheckpointError and UnsupportedError.
    """

    name: str
    bits: int | None
    find: Find
    beside: str = ""
    holds: DType | None = None
    keeps: bool = False

"""A decorator for values created in every step: frozen for the type checker, but cheap to construct.

Knows nothing about what they hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A slotted dataclass, compared and hashed by its fields, that type-checked code cannot modify.

    Not frozen at run time: that would make construction two to three times slower, a sixth of a simulated step.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)

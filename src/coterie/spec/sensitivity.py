"""Sensitivity to unpublished numbers: evaluates a question with each range of a machine at its low and high end.

Knows nothing about the question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coterie.spec.load import load_machine, with_setting
from coterie.spec.machine import MachineSpec, Unpublished


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The answer with one number at either end of its range, all others as assumed; `base`: with all as assumed."""

    number: Unpublished
    at_low: float
    base: float
    at_high: float

    @property
    def spread(self) -> float:
        """Difference between the ends, relative to the base."""
        return abs(self.at_high - self.at_low) / self.base if self.base else 0.0


def sensitivity(ref: str, ask: Callable[[MachineSpec], float]) -> tuple[Sensitivity, ...]:
    """The sensitivity of an answer to each unpublished number of a machine, largest spread first.

    Raises what `load_machine` raises.
    """
    spec = load_machine(ref)
    base = ask(spec)
    found = []
    for number in spec.unpublished:
        low, high = (ask(load_machine(with_setting(ref, number.key, end))) for end in ("low", "high"))
        found.append(Sensitivity(number, low, base, high))
    return tuple(sorted(found, key=lambda item: -item.spread))

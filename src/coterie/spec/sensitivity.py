"""How much what nobody published matters: a question asked of a machine with each range at its low and its high end.

Knows nothing about what is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coterie.spec.load import load_machine, with_setting
from coterie.spec.machine import MachineSpec, Unpublished


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """An answer with one number at the ends of its range, all others as taken; `base` with this one as taken too."""

    number: Unpublished
    at_low: float
    base: float
    at_high: float

    @property
    def spread(self) -> float:
        """The difference between the ends, as a share of the base."""
        return abs(self.at_high - self.at_low) / self.base if self.base else 0.0


def sensitivity(ref: str, ask: Callable[[MachineSpec], float]) -> tuple[Sensitivity, ...]:
    """The answer's sensitivity to each unpublished number of a machine, the most important first.

    Raises what `load_machine` raises.
    """
    spec = load_machine(ref)
    base = ask(spec)
    found = []
    for number in spec.unpublished:
        low, high = (ask(load_machine(with_setting(ref, number.key, end))) for end in ("low", "high"))
        found.append(Sensitivity(number, low, base, high))
    return tuple(sorted(found, key=lambda item: -item.spread))

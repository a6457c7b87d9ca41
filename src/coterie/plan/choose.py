"""Compares plans by total machines, power and price, and checks limits on these.

    one machine type for all parts      for each type that can serve them all
    cheapest, least power               the best type for each part separately

Knows nothing about how plans are made. Power and price are per machine; None if not given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coterie.core.errors import UsageError
from coterie.core.grouped import grouped
from coterie.spec.quantity import POWER

CHEAPEST, MIN_POWER = "cheapest", "least power"


@dataclass(frozen=True, slots=True)
class Option:
    """A number of machines of one type for a part, given by its number; `power_w` and `price` are totals."""

    part: int
    machine: str
    machines: int
    power_w: float | None
    price: float | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the total power and price; None: unlimited."""

    power_w: float | None = None
    price: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """An option for each part. `name`: the machine type, or the criterion it is best by."""

    name: str
    options: tuple[Option, ...]

    @property
    def machines(self) -> int:
        """Total number of machines."""
        return sum(option.machines for option in self.options)

    @property
    def power_w(self) -> float | None:
        """Total power in watts; None if that of any machine is unknown."""
        return _total([option.power_w for option in self.options])

    @property
    def price(self) -> float | None:
        """Total price; None if that of any machine was not given."""
        return _total([option.price for option in self.options])

    def exceeds(self, limits: Limits) -> str:
        """In words, which limits are exceeded or cannot be checked; empty if none."""
        said = []
        for what, value, limit, unit in (
            ("power", self.power_w, limits.power_w, " W"),
            ("price", self.price, limits.price, ""),
        ):
            if limit is not None and value is None:
                said.append(f"its {what} is not known")
            elif limit is not None and value is not None and value > limit:
                said.append(f"{value - limit:,.0f}{unit} above the {what} allowed")
        return "; ".join(said)


def choices(options: Sequence[Option]) -> tuple[Choice, ...]:
    """One choice per machine type that serves every part, then the best of each part, if these mix types."""
    parts = sorted({option.part for option in options})
    by_machine = grouped((option.machine, option) for option in options)
    found = [Choice(name, tuple(own)) for name, own in by_machine.items() if len(own) == len(parts)]
    bests: tuple[tuple[str, Callable[[Option], float | None]], ...] = (
        (CHEAPEST, lambda option: option.price), (MIN_POWER, lambda option: option.power_w),
    )  # fmt: skip
    for name, value in bests:
        best = [_best([o for o in options if o.part == part], value) for part in parts]
        chosen = tuple(option for option in best if option is not None)
        if len(chosen) == len(parts) and len({option.machine for option in chosen}) > 1:
            found.append(Choice(name, chosen))
    return tuple(found)


def parse_power(text: str, option: str) -> float:
    """Parse a power such as 20kW or 800W into watts. Raises UsageError."""
    for unit in sorted(POWER, key=len, reverse=True):
        number = text.strip().removesuffix(unit)
        if number != text.strip():
            try:
                value = float(number) * POWER[unit]
            except ValueError:
                break
            if 0 < value < float("inf"):
                return value
    raise UsageError(option, f"{text!r} is no power", "write 20kW or 800W")


def _best(options: Sequence[Option], value: Callable[[Option], float | None]) -> Option | None:
    known = [(found, option) for option in options if (found := value(option)) is not None]
    return min(known, key=lambda pair: pair[0])[1] if known else None


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None

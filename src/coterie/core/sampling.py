"""Sampling settings: their ranges and neutral values, and partial settings that are merged by precedence.

    a request's  over  a composition file's  over  the checkpoint's  over  neutral values

Knows nothing about requests, or how a token is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from coterie.core.errors import RequestError, shown

MIN_TEMPERATURE = 1e-6  # logits divided by much less overflow float32, and the softmax becomes NaN
MAX_TEMPERATURE = 100.0  # beyond this, sampling is practically uniform: presumably a mistake of units
MAX_PENALTY = 2.0  # magnitude of presence and frequency penalties
MAX_REPETITION = 100.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting's neutral value (no effect), a predicate for allowed values, and the same in words."""

    neutral: float
    fits: Callable[[float], bool]
    allowed: str


def _is_penalty(value: float) -> bool:
    return abs(value) <= MAX_PENALTY


_PENALTY = Setting(0.0, _is_penalty, f"{-MAX_PENALTY:g} to {MAX_PENALTY:g}")
SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "temperature": Setting(
            0.0,
            lambda value: value == 0 or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE,
            f"0 (greedy) or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
        ),
        "top_k": Setting(0, lambda value: 0 <= value < 2**31, "0 (no limit) or a positive number"),
        "top_p": Setting(1.0, lambda value: 0 < value <= 1, "above 0 and at most 1"),
        "min_p": Setting(0.0, lambda value: 0 <= value <= 1, "0 to 1"),
        "presence_penalty": _PENALTY,
        "frequency_penalty": _PENALTY,
        "repetition_penalty": Setting(
            1.0,
            lambda value: 1 / MAX_REPETITION <= value <= MAX_REPETITION,
            f"{1 / MAX_REPETITION:g} to {MAX_REPETITION:g} (1: none)",
        ),
    }
)


def check_within(field: str, value: float, fits: bool, allowed: str) -> None:
    """Raise RequestError naming the field and its range, unless the value `fits` and is a finite number."""
    if isinstance(value, bool) or not fits or not abs(value) <= sys.float_info.max:
        raise RequestError(field, f"{field} is {shown(value)}", f"allowed is {allowed}")


def check_setting(name: str, value: float) -> None:
    """Raise RequestError if the value is out of the setting's range."""
    check_within(name, value, SETTINGS[name].fits(value), SETTINGS[name].allowed)


@dataclass(frozen=True, slots=True)
class PartialSampling:
    """Sampling settings from one source; None: unset, so a source of lower precedence decides. Ranges: SETTINGS.

    An unset `seed` is 0. Raises RequestError naming the field and its range.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in SETTINGS:
            if (value := getattr(self, name)) is not None:
                check_setting(name, value)
        if self.seed is not None:
            check_seed(self.seed)

    def over(self, others: PartialSampling) -> PartialSampling:
        """Merge: these settings, with those that are unset taken from `others`."""
        return PartialSampling(**{**others.explicit, **self.explicit})

    @property
    def explicit(self) -> dict[str, Any]:
        """The settings that are set, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    def value(self, name: str) -> float:
        """A setting's value, neutral if unset."""
        found: float | None = getattr(self, name)
        return SETTINGS[name].neutral if found is None else found


UNSET = PartialSampling()


def check_seed(seed: int) -> None:
    """Raise RequestError unless the seed fits in 64 unsigned bits."""
    check_within("seed", seed, 0 <= seed < 2**64, "0 to 2^64 - 1")

"""Sampling settings: which there are, which values each may have, and settings of which some are left to others.

    a request's  over  a composition file's  over  the checkpoint's  ->  what is still left is neutral

Knows nothing about who asks, or how a token is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from coterie.core.errors import RequestError, shown

MIN_TEMPERATURE = 1e-6  # logits divided by much less overflow float32, and their softmax is no number
MAX_TEMPERATURE = 100.0  # logits divided by more are as good as uniform; beyond it is a mistake of units
MAX_PENALTY = 2.0  # of presence and frequency, either way
MAX_REPETITION = 100.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What has no effect, which values are allowed, and that in words."""

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
    """Raise RequestError for a value that the setting of that name cannot have."""
    check_within(name, value, SETTINGS[name].fits(value), SETTINGS[name].allowed)


@dataclass(frozen=True, slots=True)
class PartialSampling:
    """How tokens are drawn, as far as somebody says it: what is None is left to others. See SETTINGS for the ranges.

    `seed`: None is 0. Raises RequestError naming the field and its range.
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
        """These settings, and where they say nothing the others."""
        return PartialSampling(**{**others.said, **self.said})

    @property
    def said(self) -> dict[str, Any]:
        """What is not left to others, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    def value(self, name: str) -> float:
        """A setting, neutral where nothing is said."""
        found: float | None = getattr(self, name)
        return SETTINGS[name].neutral if found is None else found


NOTHING_SAID = PartialSampling()


def check_seed(seed: int) -> None:
    """Raise RequestError for what is no seed."""
    check_within("seed", seed, 0 <= seed < 2**64, "0 to 2^64 - 1")

"""Numbers in machine files: each must have a unit and a source, or the file is rejected.

    { value = 1.8, unit = "TB/s", source = "Table II", per_unit = true, achieved = 0.85, achieved_source = "..." }
    { low = 10, value = 20, high = 40, unit = "us", source = "not published; ..." }
    { unknown = true, source = "not published" }

`per_unit` multiplies by the machine's units, `per_host_link` by its host links; `achieved` is the share of the physical
value that software reaches. `assumed` marks a guess, `fitted` a number fitted to data, `low` and `high` the range of an
unpublished number; the machine lists all of these. Knows nothing about machines.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.core.errors import UsageError
from coterie.spec.machine import Unpublished

CAPACITY = {
    "B": 1.0,
    **{f"{prefix}iB": 1024.0 ** (i + 1) for i, prefix in enumerate("KMGT")},
    **{f"{prefix}B": 1000.0 ** (i + 1) for i, prefix in enumerate("kMGT")},
}
RATE = {"B/s": 1.0, **{f"{prefix}B/s": 1000.0 ** (i + 1) for i, prefix in enumerate("kMGT")}}
FLOPS = {"FLOP/s": 1.0, **{f"{prefix}FLOP/s": 1000.0 ** (i + 1) for i, prefix in enumerate("kMGTP")}}
TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
COUNT = {"count": 1.0}
CLOCK = {"GHz": 1e9, "MHz": 1e6}
PER_CYCLE = {"B/cycle": 1.0}
SHARE = {"share": 1.0}
POWER = {"W": 1.0, "kW": 1000.0}

_LIKE = {
    "flops": "TFLOP/s", "launch_host": "us", "launch_device": "us", "capacity": "GB", "bandwidth": "GB/s",
    "latency": "us",
}  # fmt: skip
_KEYS = {
    "value", "unit", "source", "per_unit", "per_host_link", "assumed", "fitted", "unknown", "low", "high",
    "achieved", "achieved_source",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number in base units (0 if unknown), its source, and the achievable share of it."""

    value: float
    source: str
    share: float = 1.0
    share_source: str = ""
    per_unit: bool = False


class Reader:
    """Reads and validates values of one file; errors name the file (`where`) and the key.

    `at`: selects the `low` or `high` end of ranges, by key. `marked` and `unpublished` collect such numbers on the way.
    """

    def __init__(self, where: str, at: Mapping[str, str]) -> None:
        self.where, self.at = where, at
        self.units = self.host_links = 1
        self.marked: list[str] = []
        self.unpublished: list[Unpublished] = []

    def quantity(self, raw: Any, key: str, units: Mapping[str, float]) -> Quantity:
        """Read a table as a number; only times may be zero. Raises UsageError naming the key."""
        self.typed(raw, key, dict, "a table { value, unit, source }")
        self.keys(raw, key, _KEYS, {"source"})
        source = self.text(raw, key, "source")
        if self.flag(raw, key, "unknown"):
            self.keys(raw, key, {"unknown", "source"}, set())
            return Quantity(0.0, f"unknown ({source})")
        self.keys(raw, key, _KEYS, {"value", "unit"})
        unit = raw["unit"]
        if not isinstance(unit, str) or unit not in units:
            raise self.wrong(f"{key}.unit", f"is {unit!r}", f"use one of {', '.join(units)}")
        per_unit = self.flag(raw, key, "per_unit")
        scale = units[unit] * (self.units if per_unit else 1)
        scale *= self.host_links if self.flag(raw, key, "per_host_link") else 1
        value = self._number(raw, key, "value", units)
        for mark in ("assumed", "fitted"):
            if self.flag(raw, key, mark):
                self.marked.append(f"{mark}: {key} = {value:g} {unit} ({source})")
        if "low" in raw or "high" in raw:
            value = self._range(raw, key, units, scale, source)
        share, share_source = 1.0, ""
        if "achieved" in raw or "achieved_source" in raw:
            self.keys(raw, key, _KEYS, {"achieved", "achieved_source"})
            share, share_source = self._number(raw, key, "achieved", SHARE), self.text(raw, key, "achieved_source")
        return Quantity(value * scale, source, share, share_source, per_unit)

    def _range(self, raw: Mapping[str, Any], key: str, units: Mapping[str, float], scale: float, source: str) -> float:
        """The value, or the end of the range that `at` selects."""
        self.keys(raw, key, _KEYS, {"low", "high"})
        low, value, high = (self._number(raw, key, name, units) for name in ("low", "value", "high"))
        if not low <= value <= high:
            raise self.wrong(key, f"has low {low:g}, value {value:g}, high {high:g}", "give them in rising order")
        self.unpublished.append(Unpublished(key, low * scale, value * scale, high * scale, source))
        return {"low": low, "high": high}.get(self.at.get(key, ""), value)

    def _number(self, raw: Mapping[str, Any], key: str, name: str, units: Mapping[str, float]) -> float:
        value = raw[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise self.wrong(f"{key}.{name}", f"is {value!r}", "give a finite number")
        if value < 0 or (value == 0 and units is not TIME):
            raise self.wrong(f"{key}.{name}", f"is {value}", "give a number above 0, or unknown = true in its place")
        if units is SHARE and value > 1:
            raise self.wrong(f"{key}.{name}", f"is {value}", "give a share, above 0 and at most 1")
        if units is COUNT and value != int(value):
            raise self.wrong(f"{key}.{name}", f"is {value}", "give a whole number")
        return float(value)

    def text(self, raw: Mapping[str, Any], key: str, name: str) -> str:
        """Read a string that must not be blank."""
        text = str(self.typed(raw[name], f"{key}.{name}", str, "a string")).strip()
        if not text:
            raise self.wrong(f"{key}.{name}", "is empty", "say where the number is from")
        return text

    def flag(self, raw: Mapping[str, Any], key: str, name: str) -> bool:
        """Read an optional boolean, by default False."""
        return bool(self.typed(raw.get(name, False), f"{key}.{name}", bool, "true or false"))

    def keys(self, raw: Mapping[str, Any], key: str, known: set[str], needed: set[str]) -> None:
        """Raise UsageError for unknown or missing keys."""
        prefix = f"{key}." if key else ""
        for extra in sorted(set(raw) - known):
            raise self.wrong(f"{prefix}{extra}", "is an unknown key", f"use {', '.join(sorted(known))}")
        for missing in sorted(needed - set(raw)):
            like = f'{{ value = 1, unit = "{_LIKE[missing]}", source = "..." }}' if missing in _LIKE else "..."
            raise self.wrong(f"{prefix}{missing}", "is missing", f"add {missing} = {like}")

    def typed(self, value: Any, key: str, kind: type, meaning: str) -> Any:
        """The value, if it has that type. Raises UsageError."""
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(key, f"is {value!r}", f"give {meaning}")
        return value

    def wrong(self, key: str, fact: str, remedy: str) -> UsageError:
        """Make an error about a key of this file."""
        return UsageError(f"{self.where}: {key}", fact, remedy)

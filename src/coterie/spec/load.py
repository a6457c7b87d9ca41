"""Machines from TOML files: each number carries its unit and its source, or the file is refused.

    bandwidth = { value = 1.8, unit = "TB/s", source = "arXiv 2405.07518, Table II", per_unit = true }
    bandwidth = { unknown = true, source = "not published" }

`per_unit` multiplies by the machine's `units` (sockets); `assumed` marks a guess, which the machine's notes then list.
Knows nothing about devices or about the machine it runs on.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from coterie.core.errors import NotFoundError, UsageError
from coterie.spec.machine import Link, MachineSpec, Tier

_CAPACITY = {
    "B": 1.0,
    **{f"{prefix}iB": 1024.0 ** (i + 1) for i, prefix in enumerate("KMGT")},
    **{f"{prefix}B": 1000.0 ** (i + 1) for i, prefix in enumerate("kMGT")},
}
_RATE = {"B/s": 1.0, **{f"{prefix}B/s": 1000.0 ** (i + 1) for i, prefix in enumerate("kMGT")}}
_FLOPS = {"FLOP/s": 1.0, **{f"{prefix}FLOP/s": 1000.0 ** (i + 1) for i, prefix in enumerate("kMGTP")}}
_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

_MACHINE_KEYS = {"name", "rule_set", "units", "notes", "flops", "launch_host", "launch_device", "tier", "link"}
_QUANTITY_KEYS = {"value", "unit", "source", "per_unit", "assumed", "unknown"}


def machine_names() -> tuple[str, ...]:
    """Names of the machines that ship with Coterie, sorted."""
    folder = files("coterie.spec") / "machines"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def load_machine(ref: str) -> MachineSpec:
    """Read a machine by the name of one that ships with Coterie, or from the path of a `.toml` file.

    Raises NotFoundError for an unknown name or file, UsageError naming file, key and what to change.
    """
    if ref.endswith(".toml"):
        path = Path(ref)
        if not path.is_file():
            raise NotFoundError(ref, "there is no such file", "give the path of a machine's .toml file")
        return parse_machine(path.read_text(encoding="utf-8"), path.name)
    if ref not in machine_names():
        raise NotFoundError(
            ref, "there is no such machine", f"use one of {', '.join(machine_names())}, or a .toml file"
        )
    text = (files("coterie.spec") / "machines" / f"{ref}.toml").read_text(encoding="utf-8")
    return parse_machine(text, f"{ref}.toml")


def parse_machine(text: str, where: str) -> MachineSpec:
    """Turn the text of a machine file into a spec; `where` names the file in errors. Raises UsageError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(where, f"is not TOML: {error}", "mend the file") from error
    return _Reader(where, raw).machine()


class _Reader:
    """Walks one file; `where` of every error is the file and the key."""

    def __init__(self, where: str, raw: Mapping[str, Any]) -> None:
        self.where, self.raw = where, raw
        self.units = 1
        self.assumed: list[str] = []

    def machine(self) -> MachineSpec:
        self.keys(self.raw, "", _MACHINE_KEYS, _MACHINE_KEYS - {"units", "notes"})
        self.units = self.typed(self.raw.get("units", 1), "units", int, "a whole number")
        if self.units < 1:
            raise self.wrong("units", f"is {self.units}", "give 1 or more")
        name = self.typed(self.raw["name"], "name", str, "a string")
        flops, flops_source = self.quantity(self.raw["flops"], "flops", _FLOPS)
        host_s, host_source = self.quantity(self.raw["launch_host"], "launch_host", _TIME)
        device_s, device_source = self.quantity(self.raw["launch_device"], "launch_device", _TIME)
        tiers = tuple(self.tier(raw, i) for i, raw in enumerate(self.tables("tier")))
        links = tuple(self.link(raw, i, tiers) for i, raw in enumerate(self.tables("link")))
        self.unique("tier", [tier.name for tier in tiers])
        self.unique("link", [f"{link.src}->{link.dst}" for link in links])
        notes = self.typed(self.raw.get("notes", []), "notes", list, "a list of strings")
        return MachineSpec(
            name=name,
            flops_per_s=flops,
            flops_source=flops_source,
            tiers=tiers,
            links=links,
            launch_host_s=host_s,
            launch_device_s=device_s,
            launch_source=f"host: {host_source}; device: {device_source}",
            rule_set=self.typed(self.raw["rule_set"], "rule_set", str, "a string"),
            units=self.units,
            notes=(*(str(note) for note in notes), *(f"assumed: {item}" for item in self.assumed)),
        )

    def tier(self, raw: Mapping[str, Any], index: int) -> Tier:
        self.keys(raw, f"tier[{index}]", {"name", "capacity", "bandwidth"}, {"name", "capacity", "bandwidth"})
        name = self.typed(raw["name"], f"tier[{index}].name", str, "a string")
        capacity, capacity_source = self.quantity(raw["capacity"], f"tier.{name}.capacity", _CAPACITY)
        rate, rate_source = self.quantity(raw["bandwidth"], f"tier.{name}.bandwidth", _RATE)
        return Tier(name, int(capacity), rate, f"capacity: {capacity_source}; bandwidth: {rate_source}")

    def link(self, raw: Mapping[str, Any], index: int, tiers: tuple[Tier, ...]) -> Link:
        keys = {"src", "dst", "bandwidth", "latency"}
        self.keys(raw, f"link[{index}]", keys, keys)
        src, dst = (self.typed(raw[end], f"link[{index}].{end}", str, "a string") for end in ("src", "dst"))
        names = [tier.name for tier in tiers]
        for end in (src, dst):
            if end not in names:
                raise self.wrong(f"link[{index}]", f"names the tier {end!r}", f"use one of {', '.join(names)}")
        rate, rate_source = self.quantity(raw["bandwidth"], f"link.{src}->{dst}.bandwidth", _RATE)
        latency, latency_source = self.quantity(raw["latency"], f"link.{src}->{dst}.latency", _TIME)
        return Link(src, dst, rate, latency, f"bandwidth: {rate_source}; latency: {latency_source}")

    def quantity(self, raw: Any, key: str, units: Mapping[str, float]) -> tuple[float, str]:
        """A number in base units and its source; 0 where unknown. Only times may be zero."""
        self.typed(raw, key, dict, "a table { value, unit, source }")
        self.keys(raw, key, _QUANTITY_KEYS, {"source"})
        source = self.typed(raw["source"], f"{key}.source", str, "a string").strip()
        if not source:
            raise self.wrong(f"{key}.source", "is empty", "say where the number is from")
        if self.flag(raw, key, "unknown"):
            self.keys(raw, key, {"unknown", "source"}, set())
            return 0.0, f"unknown ({source})"
        self.keys(raw, key, _QUANTITY_KEYS, {"value", "unit"})
        unit = raw["unit"]
        if unit not in units:
            raise self.wrong(f"{key}.unit", f"is {unit!r}", f"use one of {', '.join(units)}")
        value = raw["value"]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(f"{key}.value", f"is {value!r}", "give a finite number")
        if value < 0 or (value == 0 and units is not _TIME):
            raise self.wrong(f"{key}.value", f"is {value}", "give a number above 0, or unknown = true in its place")
        total = value * units[unit] * (self.units if self.flag(raw, key, "per_unit") else 1)
        if self.flag(raw, key, "assumed"):
            self.assumed.append(f"{key} = {value} {unit} ({source})")
        return total, source

    def flag(self, raw: Mapping[str, Any], key: str, name: str) -> bool:
        return bool(self.typed(raw.get(name, False), f"{key}.{name}", bool, "true or false"))

    def tables(self, key: str) -> list[dict[str, Any]]:
        found = self.typed(self.raw[key], key, list, f"tables [[{key}]]")
        if not found:
            raise self.wrong(key, "is empty", f"add a [[{key}]]")
        return [self.typed(item, key, dict, f"tables [[{key}]]") for item in found]

    def keys(self, raw: Mapping[str, Any], key: str, known: set[str], needed: set[str]) -> None:
        prefix = f"{key}." if key else ""
        for extra in sorted(set(raw) - known):
            raise self.wrong(f"{prefix}{extra}", "is an unknown key", f"use {', '.join(sorted(known))}")
        for missing in sorted(needed - set(raw)):
            raise self.wrong(f"{prefix}{missing}", "is missing", f"add {missing} = ...")

    def typed(self, value: Any, key: str, kind: type, meaning: str) -> Any:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(key, f"is {value!r}", f"give {meaning}")
        return value

    def unique(self, key: str, names: list[str]) -> None:
        for name in names:
            if names.count(name) > 1:
                raise self.wrong(key, f"names {name} {names.count(name)} times", "give each once")

    def wrong(self, key: str, fact: str, remedy: str) -> UsageError:
        return UsageError(f"{self.where}: {key}", fact, remedy)

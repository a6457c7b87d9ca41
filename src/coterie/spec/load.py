"""Loads machines from TOML files, by name or path, with optional settings after a colon.

    sn40l-node                                     one that ships with Coterie
    mine.toml                                      a file
    dgx-h100:host_links=8,stack=trtllm-2024        with more host links and another software stack
    sn40l-node:peers.bandwidth=low                 at the low end of an unpublished number's range
    dgx-a100:units=2                               two of its units
    dgx-b200:price=400000                          its price, in any currency; machine files have none
    dgx-h100:kernels=none                          priced like a machine without measured kernels
    epyc-9554:threads=32,channels=8                with fewer threads and memory channels

The format of numbers: quantity.py. Knows nothing about devices or about the machine it runs on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from math import inf, nan
from typing import Any

from coterie.core.errors import NotFoundError, UsageError
from coterie.core.parsed import parse_toml
from coterie.core.paths import shipped_names, user_path
from coterie.spec import quantity as q
from coterie.spec.carried import load_carried, on_machine
from coterie.spec.cores import SETTINGS, with_cores
from coterie.spec.machine import Carried, Link, MachineSpec, Peers, SpatialUnits, Tier
from coterie.spec.stack import read_text, with_stack

_TIMES = (  # optional times, 0 by default; the field of MachineSpec is the name plus `_s`
    *("program_host", "program_device", "step_host", "step_floor", "prompt_floor", "step_sequence"),
    *("run_start", "prompt_start"),
)
_NEEDED = {"name", "rule_set", "flops", "launch_host", "launch_device", "tier"}
_KNOWN = _NEEDED | {
    *_TIMES, "link", "units", "notes", "host_links", "kernels", "stack", "peers", "grid", "kernel_share",
    "multiprocessors", "gated_launch", "exchange_share", "large_step", "power", "carried", "cores", "flops_fp8",
}  # fmt: skip
_KERNELS = "kernels"
_PRICE = "price"  # a setting only, not a key of files: prices depend on the buyer
_GRID = {
    "tiles": q.COUNT, "pcus": q.COUNT, "pmus": q.COUNT, "pmu_capacity": q.CAPACITY, "lanes": q.COUNT,
    "stages": q.COUNT, "clock": q.CLOCK, "pmu_bandwidth": q.PER_CYCLE, "d2d_bandwidth": q.RATE,
    "pcu_share": q.SHARE,
}  # fmt: skip


def machine_names() -> tuple[str, ...]:
    """Names of the machines that ship with Coterie, sorted."""
    return shipped_names("coterie.spec", "machines", ".toml")


def load_machine(ref: str) -> MachineSpec:
    """Load a machine that ships with Coterie by name, or from the path of a `.toml` file.

    Raises NotFoundError for an unknown name or file, UsageError naming file, key and what to change.
    """
    name, settings = split_ref(ref)
    if name.endswith(".toml"):
        path = user_path(name)
        if not path.is_file():
            raise NotFoundError(name, "there is no such file", "give the path of a machine's .toml file")
        return parse_machine(read_text(path, path.name), path.name, settings)
    if name not in machine_names():
        if user_path(name).is_dir():
            raise NotFoundError(name, "is a folder, not a machine", "coterie check shows a folder of checkpoints")
        raise NotFoundError(
            name, "there is no such machine", f"use one of {', '.join(machine_names())}, or a .toml file"
        )
    text = (files("coterie.spec") / "machines" / f"{name}.toml").read_text(encoding="utf-8")
    return parse_machine(text, f"{name}.toml", settings)


def split_ref(ref: str) -> tuple[str, dict[str, str]]:
    """Split a reference into name and settings. Raises UsageError for a setting without value or given twice."""
    name, _, rest = ref.partition(":")
    settings: dict[str, str] = {}
    for setting in filter(None, rest.split(",")):
        key, equals, value = setting.partition("=")
        if not equals or not key or not value or key in settings:
            raise UsageError(ref, f"{setting!r} is not a setting", "write NAME:key=value,key=value, each key once")
        settings[key] = value
    return name, settings


def with_setting(ref: str, key: str, value: object) -> str:
    """The reference with a setting added or replaced."""
    name, settings = split_ref(ref)
    joined = ",".join(f"{k}={v}" for k, v in {**settings, key: value}.items())
    return f"{name}:{joined}"


def without_setting(ref: str, key: str) -> str:
    """The reference with a setting removed, for display."""
    name, settings = split_ref(ref)
    joined = ",".join(f"{k}={v}" for k, v in settings.items() if k != key)
    return f"{name}:{joined}" if joined else name


def parse_machine(text: str, where: str, settings: Mapping[str, str] | None = None) -> MachineSpec:
    """Parse a machine file; `where` names it in errors. Raises UsageError."""
    raw = parse_toml(text, where)
    return _Machine(where, raw, settings or {}).machine()


class _Machine(q.Reader):
    """Parses one machine file."""

    def __init__(self, where: str, raw: dict[str, Any], settings: Mapping[str, str]) -> None:
        counts = {key: settings[key] for key in ("units", "host_links", *SETTINGS) if key in settings}
        stack = settings.get("stack", raw.get("stack", ""))
        if stack:
            raw = with_stack(raw, str(stack), where)
        own = (*counts, "stack", _PRICE, _KERNELS)
        super().__init__(where, {k: v for k, v in settings.items() if k not in own})
        if settings.get(_KERNELS, "none") != "none":
            fact = f"is set to {settings[_KERNELS]}"
            raise self.wrong(_KERNELS, fact, "set it to none, which leaves measured kernels out, or leave it out")
        if _KERNELS in settings:
            raw = {key: value for key, value in raw.items() if key != _KERNELS}
        self.raw, self.counts, self.price = raw, counts, settings.get(_PRICE, "")

    def machine(self) -> MachineSpec:
        self.keys(self.raw, "", _KNOWN, _NEEDED)
        self.units = self.count("units")
        self.host_links = self.count("host_links", maximum=self.units)
        flops = self.quantity(self.raw["flops"], "flops", q.FLOPS)
        fp8 = self.quantity(self.raw["flops_fp8"], "flops_fp8", q.FLOPS) if "flops_fp8" in self.raw else flops
        fp8_times = fp8.value / flops.value if flops.value else 1.0
        host = self.quantity(self.raw["launch_host"], "launch_host", q.TIME)
        device = self.quantity(self.raw["launch_device"], "launch_device", q.TIME)
        tiers = tuple(self.tier(raw, i) for i, raw in enumerate(self.tables("tier")))
        if not tiers:
            raise self.wrong("tier", "is empty", "add a [[tier]]")
        self.unique("tier", [tier.name for tier in tiers])
        flops, tiers, cores = with_cores(self, self.raw, self.counts, flops, tiers)
        flops, tiers, carried = self.carried(flops, tiers)
        links = tuple(self.link(raw, i, tiers) for i, raw in enumerate(self.tables("link")))
        self.unique("link", [f"{link.src}->{link.dst}" for link in links])
        peers = self.peers()
        if self.units > 1 and not (peers or cores) and any(tier.per_unit for tier in tiers):
            fact = f"is missing, and {self.units} units, each with memory of its own, exchange in every layer"
            raise self.wrong("peers", fact, "add a table [peers] with bandwidth, one unit's each way, and latency")
        power = self.quantity(self.raw["power"], "power", q.POWER) if "power" in self.raw else q.Quantity(0.0, "")
        times = {f"{key}_s": self.time(key) for key in _TIMES}  # must precede the use of self.marked
        notes = self.typed(self.raw.get("notes", []), "notes", list, "a list of strings")
        spec = MachineSpec(
            name=self.string("name"),
            flops_per_s=flops.value,
            flops_source=flops.source,
            tiers=tiers,
            links=links,
            launch_host_s=host.value,
            launch_device_s=device.value + (cores.threads * cores.barrier_s if cores else 0.0),
            launch_source=f"host: {host.source}; device: {device.source}",
            rule_set=self.string("rule_set"),
            units=self.units,
            flops_share=flops.share,
            flops_share_source=flops.share_source,
            fp8_times=fp8_times,
            gated_launch=self.one_of("gated_launch", ("host", "device")),
            kernel_share=self.share("kernel_share"),
            exchange_share=self.share("exchange_share"),
            large_step=self.whole("large_step"),
            multiprocessors=self.whole("multiprocessors"),
            peers=peers,
            grid=self.grid(peers),
            host_links=self.host_links,
            kernels=self.string("kernels", ""),
            carried=carried,
            cores=cores,
            stack=self.string("stack", ""),
            power_w=power.value,
            power_source=power.source,
            price=self.cost(),
            notes=(*(str(note) for note in notes), *self.marked),
            unpublished=tuple(self.unpublished),
            **times,
        )
        self.check_ends(spec)
        self.check_links_up(spec)
        return spec

    def carried(
        self, flops: q.Quantity, tiers: tuple[Tier, ...]
    ) -> tuple[q.Quantity, tuple[Tier, ...], Carried | None]:
        """Apply the efficiencies carried over from other machines to arithmetic and run tier, if the file names a set.

        A share given in the file itself was measured on the machine, and takes precedence.
        """
        if "carried" not in self.raw:
            return flops, tiers, None
        at = next(i for i, tier in enumerate(tiers) if tier.name != "sram")
        near, name = tiers[at], self.string("carried")
        own = [rate.share if rate.share_source else None for rate in (flops, near)]
        found = on_machine(load_carried(name), *own)
        said = f"carried over, not measured on this machine: {found.source}"
        if "kernels" not in self.raw:
            kernel = f"a kernel takes {found.gemm.fixed_s * 1e6:.3g} us besides"
            self.marked.append(f"{said}; {kernel} (spec/carried/{name}.toml)")
        if own[0] is None:
            flops = replace(flops, share=found.gemm.flops_share, share_source=said)
        if own[1] is None:
            near = replace(near, share=found.gemm.bytes_share, share_source=said)
        return flops, (*tiers[:at], near, *tiers[at + 1 :]), found

    def count(self, key: str, maximum: int = 0) -> int:
        """`units` or `host_links`, from the settings or the file."""
        value = self.typed(self.raw.get(key, 1), key, int, "a whole number")
        if key in self.counts:
            text = self.counts[key]
            if key not in self.raw:
                raise self.wrong(key, f"is set to {text} but the machine has no such number", "leave it out")
            if not text.isdecimal():
                raise self.wrong(key, f"is {text!r}", "give a whole number")
            maximum = max(maximum, value) if key == "units" else maximum
            value = int(text)
        if value < 1 or (maximum and value > maximum):
            raise self.wrong(key, f"is {value}", f"give 1 to {maximum}" if maximum else "give 1 or more")
        return int(value)

    def cost(self) -> float:
        """The price from the settings, or 0."""
        if not self.price:
            return 0.0
        try:
            value = float(self.price)
        except ValueError:
            value = nan
        if not 0 < value < inf:
            raise self.wrong(_PRICE, f"is {self.price!r}", "give a number above 0, such as price=400000")
        return value

    def check_ends(self, spec: MachineSpec) -> None:
        """All remaining settings must select the `low` or `high` end of a range."""
        ranges = [item.key for item in spec.unpublished]
        for key, end in self.at.items():
            if key not in ranges:
                raise self.wrong(key, f"is set to {end} but is no range", f"set one of {', '.join(ranges) or 'none'}")
            if end not in ("low", "high"):
                raise self.wrong(key, f"is set to {end}", "set it to low or high")

    def check_links_up(self, spec: MachineSpec) -> None:
        """Require a link from each weight tier to the one above it."""
        there = {(link.src, link.dst) for link in spec.links}
        for near, far in pairwise(spec.weight_tiers):
            if (far, near) not in there:
                remedy = f'add a [[link]] with src = "{far}" and dst = "{near}"'
                raise self.wrong("link", f"has no way from {far} up to {near}", remedy)

    def string(self, key: str, default: str | None = None) -> str:
        return str(self.typed(self.raw[key] if default is None else self.raw.get(key, default), key, str, "a string"))

    def one_of(self, key: str, words: Sequence[str]) -> str:
        found = self.string(key, "")
        if key in self.raw and found not in words:
            raise self.wrong(key, f"is {found!r}", f"give {' or '.join(words)}, or leave it out")
        return found

    def time(self, key: str) -> float:
        return self.quantity(self.raw[key], key, q.TIME).value if key in self.raw else 0.0

    def whole(self, key: str) -> int:
        return int(self.quantity(self.raw[key], key, q.COUNT).value) if key in self.raw else 0

    def share(self, key: str) -> float:
        """A share; 1 if it is not given or unknown."""
        return (self.quantity(self.raw[key], key, q.SHARE).value or 1.0) if key in self.raw else 1.0

    def tier(self, raw: Mapping[str, Any], index: int) -> Tier:
        self.keys(raw, f"tier[{index}]", {"name", "capacity", "bandwidth"}, {"name", "capacity", "bandwidth"})
        name = self.typed(raw["name"], f"tier[{index}].name", str, "a string")
        capacity = self.quantity(raw["capacity"], f"tier.{name}.capacity", q.CAPACITY)
        if capacity.value < 1:
            fact = "is less than a byte" if capacity.value else "is unknown"
            raise self.wrong(f"tier.{name}.capacity", fact, "give a value, assumed = true where it is a guess")
        rate = self.quantity(raw["bandwidth"], f"tier.{name}.bandwidth", q.RATE)
        source = f"capacity: {capacity.source}; bandwidth: {rate.source}"
        return Tier(name, int(capacity.value), rate.value, source, rate.share, rate.share_source, rate.per_unit)

    def link(self, raw: Mapping[str, Any], index: int, tiers: tuple[Tier, ...]) -> Link:
        keys = {"src", "dst", "bandwidth", "latency"}
        self.keys(raw, f"link[{index}]", keys, keys)
        src, dst = (self.typed(raw[end], f"link[{index}].{end}", str, "a string") for end in ("src", "dst"))
        names = [tier.name for tier in tiers]
        for end in (src, dst):
            if end not in names:
                raise self.wrong(f"link[{index}]", f"names the tier {end!r}", f"use one of {', '.join(names)}")
        if src == dst:
            raise self.wrong(f"link[{index}]", f"goes from {src} to itself", "name two tiers")
        rate = self.quantity(raw["bandwidth"], f"link.{src}->{dst}.bandwidth", q.RATE)
        latency = self.quantity(raw["latency"], f"link.{src}->{dst}.latency", q.TIME)
        source = f"bandwidth: {rate.source}; latency: {latency.source}"
        return Link(src, dst, rate.value, latency.value, source, rate.share, rate.share_source)

    def peers(self) -> Peers | None:
        if "peers" not in self.raw:
            return None
        raw = self.typed(self.raw["peers"], "peers", dict, "a table [peers]")
        self.keys(raw, "peers", {"bandwidth", "latency", "library"}, {"bandwidth", "latency"})
        rate = self.quantity(raw["bandwidth"], "peers.bandwidth", q.RATE)
        if rate.per_unit:
            raise self.wrong("peers.bandwidth.per_unit", "is true", "leave it out: it is one unit's already")
        latency = self.quantity(raw["latency"], "peers.latency", q.TIME)
        library = self.typed(raw.get("library", ""), "peers.library", str, "a string")
        source = f"bandwidth: {rate.source}; latency: {latency.source}"
        return Peers(rate.value, latency.value, source, rate.share, rate.share_source, library)

    def grid(self, peers: Peers | None) -> SpatialUnits | None:
        if "grid" not in self.raw:
            return None
        raw = self.typed(self.raw["grid"], "grid", dict, "a table [grid]")
        self.keys(raw, "grid", set(_GRID), set(_GRID))
        found = {key: self.quantity(raw[key], f"grid.{key}", units) for key, units in _GRID.items()}
        value = {key: item.value for key, item in found.items()}
        return SpatialUnits(
            tiles=int(value["tiles"]),
            pcus=int(value["pcus"]),
            pmus=int(value["pmus"]),
            pmu_bytes=int(value["pmu_capacity"]),
            lanes=int(value["lanes"]),
            stages=int(value["stages"]),
            clock_hz=value["clock"],
            pmu_bytes_per_cycle=value["pmu_bandwidth"],
            d2d_bytes_per_s=value["d2d_bandwidth"],
            p2p_bytes_per_s=peers.achieved_bytes_per_s if peers else 0.0,
            pcu_share=value["pcu_share"],
            source="; ".join(f"{key}: {item.source}" for key, item in found.items()),
        )

    def tables(self, key: str) -> list[dict[str, Any]]:
        found = self.typed(self.raw.get(key, []), key, list, f"tables [[{key}]]")
        return [self.typed(item, key, dict, f"tables [[{key}]]") for item in found]

    def unique(self, key: str, names: list[str]) -> None:
        for name in names:
            if names.count(name) > 1:
                raise self.wrong(key, f"names {name} {names.count(name)} times", "give each once")

"""What all benches share: machine, commit and workload; interleaved sampling and comparison; a table, then a JSON line.

    round 1:  A B C     each way once per round, so that a slow minute of the machine affects all of them;
    round 2:  A B C     compared by the median of the ratios within rounds, not by the ratio of medians

Knows nothing about what is measured.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coterie import __version__
from coterie.core.units import format_bytes, parse_bytes
from coterie.kernels import cpu as kernels
from coterie.spec.this_machine import allowed_cpus, allowed_memory

MEASURING_ERROR = 1.02  # a share above this means that the limit's loop was too short: no machine exceeds its limit
SHORT_LIMIT = f"a share above {MEASURING_ERROR} is a measuring error: the loop that measures the limit is too short"
MAX_ROUNDS = 200  # so that a step of microseconds is not sampled forever
_HERE = Path(__file__).resolve()


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to sample: at least `rounds` rounds, and more until `seconds` have passed."""

    rounds: int = 5
    seconds: float = 1.0


def interleave(ways: Mapping[str, Callable[[], float]], effort: Effort) -> dict[str, list[float]]:
    """Run the ways in turn, A B A B ...: what each returned in each round. The first round warms up and is dropped."""
    for way in ways.values():
        way()
    samples: dict[str, list[float]] = {name: [] for name in ways}
    start = perf_counter()
    for done in range(1, MAX_ROUNDS + 1):
        for name, way in ways.items():
            samples[name].append(way())
        if done >= effort.rounds and perf_counter() - start >= effort.seconds:
            break
    return samples


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of samples, and the lower and upper quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: Iterable[float]) -> Spread:
        """Of one sample or more. Raises StatisticsError if there is none."""
        values = list(samples)
        low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return Spread(middle, low, high)

    @staticmethod
    def read(row: Mapping[str, Any], name: str) -> Spread:
        """Read what `plain` wrote under this name."""
        return Spread(row[name], *row[f"{name}_quartiles"])

    def plain(self, name: str) -> dict[str, Any]:
        """For JSON: the median under this name, and the quartiles."""
        return {name: self.median, f"{name}_quartiles": [self.low, self.high]}

    def scaled(self, factor: float) -> Spread:
        """All three values multiplied by a factor."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def paired_ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The spread of over[i] / under[i]. Raises ValueError if they were not sampled in the same rounds."""
    return Spread.of(a / b for a, b in zip(over, under, strict=True))


@dataclass(frozen=True, slots=True)
class Report:
    """A bench's outcome. `results` are JSON-compatible values; `tables` and `notes` present them to people."""

    bench: str
    workload: Mapping[str, Any]
    results: Mapping[str, Any]
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Workload and results, for JSON."""
        return {"bench": self.bench, "workload": dict(self.workload), **self.results, "notes": list(self.notes)}

    def show(self, console: Console) -> None:
        """Print the tables and the notes."""
        workload = ", ".join(f"{key} {value}" for key, value in self.workload.items())
        console.print(f"{self.bench}: {workload}", markup=False)
        for table in self.tables:
            console.print(table)
        for note in self.notes:
            console.print(f"  {note}", markup=False)


def show_frame(console: Console) -> None:
    """Print machine and commit."""
    here = machine()
    memory = format_bytes(here["memory_bytes"])
    line = f"{here['cpu_model']}, {here['cpus']} CPUs, {memory} free for us, {here['isa']}; commit {commit()}"
    console.print(f"{escape(line)}; load {here['load_1m']:.1f}, {busy(here['load_1m'], here['cpus'])}")


def busy(load_1m: float, cpus: int) -> str:
    """What the load by other processes means for the results. `load_1m`: 1-minute average of runnable processes."""
    if load_1m < 0.5:
        return "the machine is quiet"
    share = "more processes want to run than there are CPUs" if load_1m > cpus else "others are running"
    return f"{share}: expect noise, and trust ratios more than times"


def machine() -> dict[str, Any]:
    """What this process may use: CPU model, CPUs, memory in bytes, instruction set; and the machine's load."""
    cpus, cpus_source = allowed_cpus()
    memory_bytes, memory_source = allowed_memory()
    return {
        "cpu_model": _cpu_model(),
        "cpus": cpus,
        "cpus_source": cpus_source,
        "memory_bytes": memory_bytes,
        "memory_source": memory_source,
        "isa": kernels.ISAS[-1],
        "last_level_cache_bytes": last_level_cache_bytes(),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def last_level_cache_bytes() -> int | None:
    """Bytes of the largest cache of the first CPU; None if unknown. Source: sysfs, cpu/cache."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        sizes.append(parse_bytes(text.replace("K", "KiB").replace("M", "MiB")))
    return max(sizes, default=None)


def commit() -> str:
    """The git commit of this source tree, with `-dirty` if it was changed; the package's version if there is none."""
    try:
        # An installed package may lie inside another repository: only one that tracks this file is ours.
        _git("ls-files", "--error-unmatch", _HERE.name)
        return _git("describe", "--always", "--dirty", "--exclude", "*")
    except (OSError, subprocess.CalledProcessError):
        return f"unknown, coterie {__version__}"


def _git(*args: str) -> str:
    return subprocess.run(
        ["git", "-C", str(_HERE.parent), *args], capture_output=True, text=True, check=True
    ).stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux: fall back to the architecture's name
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def json_line(value: Mapping[str, Any]) -> str:
    """One line of ASCII-only JSON: machine and commit, then the results."""
    return json.dumps({"machine": machine(), "commit": commit(), **value})

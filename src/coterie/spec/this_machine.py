"""The machine this process runs on: the memory and CPUs that it may use, and the disk.

    memory = min(MemAvailable, cgroup limit - usage excluding page cache, free memory of the allowed NUMA nodes)
    CPUs   = min(affinity, cgroup quota rounded down, at least 1)
    cores  = physical cores in the affinity (hyperthreads count once) without slow cores; at most CPUs

Knows nothing about kernels or benchmarks: every speed is 0, unknown.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from coterie.core.units import format_count
from coterie.spec.machine import Link, MachineSpec, Tier

_ROOT = Path("/")
_NOT_MEASURED = "not measured"
# Measured CPU time of steps of 1, 2, 4, 8 and 16 rows relative to one row, two cores with AVX-512: 1, 1.05, 1.4, 2.7,
# 4.9 for 1.5B parameters of 4 to 8 bits, and 1, 1, 1.1, 1.9, 3.5 for 0.5B. Without AVX-512, every row costs the same.
_WIDE, _WIDE_FLOPS_PER_BYTE, _WIDE_FEW_FLOPS_PER_BYTE = "avx512vl", 6.0, 12.0
# Relative to the fastest core. Work is shared dynamically, so a moderately slower core helps; but a much slower one
# delays the end of each region, of which a token has some 150. Not measured: no such machine was available.
_SLOW_CORE = 0.5


def this_machine(root: Path = _ROOT) -> MachineSpec:
    """Describe this machine: tiers `dram` and `disk`, rule set `cache`; `units` is the number of usable cores.

    `root`: parent of /proc and /sys. Source: proc(5); the kernel's cgroup-v1 and cgroup-v2 documents.
    """
    memory_bytes, memory_source = allowed_memory(root)
    cores, cores_source = allowed_cores(root)
    here, wide = Path.cwd(), _WIDE in (_text(root / "proc/cpuinfo") or "").split()
    return MachineSpec(
        name="cpu",
        flops_per_s=0.0,
        flops_source=_NOT_MEASURED,
        tiers=(
            Tier("dram", memory_bytes, 0.0, f"capacity: {memory_source}; bandwidth: {_NOT_MEASURED}"),
            Tier(
                "disk", shutil.disk_usage(here).total, 0.0, f"capacity: statvfs of {here}; bandwidth: {_NOT_MEASURED}"
            ),
        ),
        links=(Link("disk", "dram", 0.0, 0.0, _NOT_MEASURED),),
        launch_host_s=0.0,
        launch_device_s=0.0,
        launch_source=_NOT_MEASURED,
        rule_set="cache",
        units=cores,
        notes=(f"{cores} compute threads: {cores_source}",),
        flops_per_byte=_WIDE_FLOPS_PER_BYTE * wide,
        few_flops_per_byte=_WIDE_FEW_FLOPS_PER_BYTE * wide,
    )


def allowed_memory(root: Path = _ROOT) -> tuple[int, str]:
    """Bytes that this process may still allocate, and what limits them."""
    bounds = [_available(root), *_available_of_nodes(root)]
    for folder in _groups(root, "memory"):
        bounds += [bound for names in _LIMITS if (bound := _limit(folder, *names)) is not None]
    return min(bounds)


def allowed_cpus(root: Path = _ROOT) -> tuple[int, str]:
    """Number of CPUs that this process may use, and what limits it."""
    return _within_quota(root, len(_affinity()), "affinity" if hasattr(os, "sched_getaffinity") else "the machine")


def allowed_cores(root: Path = _ROOT, cpus: Collection[int] | None = None) -> tuple[int, str]:
    """Number of cores worth a compute thread, and an explanation.

    `cpus`: overrides the process's affinity. Hyperthreads of a core count once, since they share its vector units and
    memory path. Cores much slower than the fastest do not count.
    Source: the kernel's documents, ABI/stable/sysfs-devices-system-cpu (thread_siblings_list),
    ABI/testing/sysfs-devices-system-cpu (cpu_capacity), admin-guide/pm/cpufreq (cpuinfo_max_freq).
    """
    cores: dict[frozenset[int], Path] = {}
    given = sorted(_affinity() if cpus is None else cpus)
    for cpu in given:
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        siblings = _listed(folder / "topology/thread_siblings_list")
        cores.setdefault(siblings if cpu in siblings else frozenset({cpu}), folder)
    slow = _slow(cores.values())
    shared = f"{len(given)} CPUs share {format_count(len(cores), 'core')}"
    why = [shared if len(cores) < len(given) else "one for each CPU"]
    if slow:
        why.append(f"without {slow} less than half as fast as the fastest")
    return _within_quota(root, len(cores) - slow, ", ".join(why))


def allowed_nodes(root: Path = _ROOT, cpus: Collection[int] | None = None) -> tuple[int, ...]:
    """The NUMA nodes whose CPUs this process may use; empty if unknown. `cpus`: as for allowed_cores.

    Source: the kernel's ABI document sysfs-devices-node (cpulist).
    """
    given = set(_affinity() if cpus is None else cpus)
    folders = (root / "sys/devices/system/node").glob("node[0-9]*")
    return tuple(sorted([int(one.name[4:]) for one in folders if given & _listed(one / "cpulist")]))


def _affinity() -> Collection[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def _slow(folders: Collection[Path]) -> int:
    """How many of these CPUs are slow relative to the fastest, by capacity or else maximal clock, if all report it."""
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speeds = [_number(folder / name) or 0 for folder in folders]
        if all(speeds):
            return sum([speed < _SLOW_CORE * max(speeds) for speed in speeds])
    return 0


def _listed(path: Path) -> frozenset[int]:
    """Parse a file with a list such as `0-3,8`; empty if there is no such file."""
    return _numbers(_text(path) or "")


def _numbers(text: str) -> frozenset[int]:
    spans = [span.partition("-") for span in text.strip().split(",") if span]
    return frozenset([number for first, _, last in spans for number in range(int(first), int(last or first) + 1)])


def _within_quota(root: Path, count: int, source: str) -> tuple[int, str]:
    bounds = [(count, source)]
    for folder in _groups(root, "cpu"):
        quota = _quota(folder)
        if quota is not None:
            bounds.append((max(1, int(quota)), "cgroup quota"))
    return min(bounds, key=lambda bound: bound[0])


def _available(root: Path) -> tuple[int, str]:
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        key, _, rest = line.partition(":")
        if key == "MemAvailable":
            return int(rest.split()[0]) * 1024, "MemAvailable of /proc/meminfo"
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "physical memory by sysconf"


def _available_of_nodes(root: Path) -> Iterator[tuple[int, str]]:
    """Free memory and page cache of the NUMA nodes this process may use, if it is restricted to some of them.

    Source: proc(5), Mems_allowed_list of /proc/self/status; the kernel's ABI document sysfs-devices-node (meminfo).
    """
    nodes = root / "sys/devices/system/node"
    there = _listed(nodes / "has_memory") or _listed(nodes / "online")
    lines = (_text(root / "proc/self/status") or "").splitlines()
    text = next((line.partition(":")[2] for line in lines if line.startswith("Mems_allowed_list:")), "")
    given = _numbers(text) & there
    if given and given != there:
        found = [_node_bytes(nodes / f"node{node}" / "meminfo") for node in given]
        named = ", ".join(map(str, sorted(given)))
        yield sum(found), f"free memory of NUMA nodes {named}, which cpuset.mems allows"


def _node_bytes(path: Path) -> int:
    """Free bytes of a node, including its page cache."""
    words = [line.split() for line in (_text(path) or "").splitlines()]
    taken = ("MemFree:", "Active(file):", "Inactive(file):")
    return sum([int(line[3]) * 1024 for line in words if len(line) > 3 and line[2] in taken])


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's cgroup and all its ancestors; a limit of any of them applies."""
    mounts = root / "sys/fs/cgroup"
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            bases = [mounts, mounts / "unified"]
        elif controller in controllers.split(","):
            bases = [mounts / controller, mounts / controllers]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for base in bases:
            for depth in range(len(parts), -1, -1):
                folder = base.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder


# Per cgroup version: files of the limit and the usage, and the entries of memory.stat for page cache (which includes
# shared memory) and shared memory.
_LIMITS = (
    ("cgroup v2 memory.max", "memory.max", "memory.current", "file", "shmem"),
    ("cgroup v1 limit", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem"),
)


def _limit(
    folder: Path, what: str, limit_file: str, used_file: str, cached: str, shared: str
) -> tuple[int, str] | None:
    limit, used = _number(folder / limit_file), _number(folder / used_file)
    if limit is None:
        return None
    cache = _stat(folder, cached) - _stat(folder, shared)
    return max(0, limit - max(0, (used or 0) - cache)), f"{what} of {limit} bytes, less what is used"


def _quota(folder: Path) -> float | None:
    words = (_text(folder / "cpu.max") or "").split()
    if len(words) == 2 and words[0] != "max":
        return int(words[0]) / int(words[1])
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and period and quota > 0 else None


def _stat(folder: Path, key: str) -> int:
    for line in (_text(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no such file, or it says `max`."""
    text = (_text(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # a missing or unreadable file means no limit
        return None

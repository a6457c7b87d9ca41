"""The spec of the machine that the CUDA device runs on: hbm, the host's dram and the disk.

Knows nothing about kernels or benchmarks: every speed is 0, meaning unknown.
"""

from __future__ import annotations

from dataclasses import replace

from coterie.core.units import format_bytes
from coterie.devices.cuda.driver import Driver
from coterie.spec.machine import Link, MachineSpec, Tier
from coterie.spec.this_machine import this_machine

# Share of the memory that is free when the device is opened. The rest is for what is not reserved: kernel code,
# scratch, rows of programs, stored values of a step. An estimate: none of it was measured.
HBM_SHARE = 0.92
POOL_SHARE = 0.6  # share of the memory that this process may use: pinned memory is lost to everything else

_NOT_MEASURED = "not measured"


def gpu_machine(driver: Driver) -> MachineSpec:
    """The spec of a GPU and its host, with tiers `hbm`, `dram` (the pinned pool) and `disk`, and rule set `cache`."""
    facts, host = driver.facts, this_machine()
    free, memory = driver.free_bytes(), host.tier("dram")
    hbm = f"{HBM_SHARE:.0%} of the {format_bytes(free)} that are free of {format_bytes(facts.total_bytes)}"
    dram = f"{POOL_SHARE:.0%} of what this process may take ({memory.source.split(';')[0]})"
    links = [("dram", "hbm"), ("hbm", "dram"), ("disk", "dram")]
    major, minor = facts.capability
    return MachineSpec(
        name=facts.name,
        flops_per_s=0.0,
        flops_source=_NOT_MEASURED,
        tiers=(
            Tier("hbm", int(free * HBM_SHARE), 0.0, f"capacity: {hbm}; bandwidth: {_NOT_MEASURED}"),
            replace(memory, capacity_bytes=int(memory.capacity_bytes * POOL_SHARE), source=f"capacity: {dram}"),
            host.tier("disk"),
        ),
        links=tuple(Link(src, dst, 0.0, 0.0, _NOT_MEASURED) for src, dst in links),
        launch_host_s=0.0,
        launch_device_s=0.0,
        launch_source=_NOT_MEASURED,
        rule_set="cache",
        notes=(f"{facts.multiprocessors} multiprocessors of capability {major}.{minor}; {facts.software}", *host.notes),
    )

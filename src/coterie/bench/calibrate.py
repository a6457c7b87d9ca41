"""Measures this machine and writes a machine file, so that it can be modelled.

    dram, flops     the fastest read loop over an expert's weights; multiply-adds in registers
    achieved        the shares of these limits that prefill (flops) and a decode step (bytes) reach
    launches        a step of a tiny model, all in cache, divided by its regions: by the team, or from Python
    disk            the expert's file, read with direct I/O the fastest way

Knows nothing about how a machine file is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

from coterie.api.assemble import rounded_for
from coterie.bench.disk import DiskLimit
from coterie.bench.experts import random_experts
from coterie.bench.limits import multiplied, multiply_adds, read_loops
from coterie.bench.report import Effort, commit, interleave, machine
from coterie.bench.shapes import shape_config, with_context
from coterie.bench.step import on_cpu
from coterie.core.errors import UsageError
from coterie.devices.cpu.device import Orchestration
from coterie.models.model import AUTO, Model
from coterie.spec.this_machine import this_machine

SHAPE = "135m"  # its weights are larger than a CPU's caches
TINY = "demo"
PROMPT_TOKENS, CONTEXT, STEPS = 64, 32, 8


@dataclass(frozen=True, slots=True)
class Calibration:
    """The measurements, in SI units; shares are of the limits."""

    name: str
    cpus: int
    dram_bytes: int
    disk_bytes: int
    read_bytes_per_s: float
    flops_per_s: float
    flops_share: float
    read_share: float
    launch_host_s: float
    launch_device_s: float
    disk_bytes_per_s: float
    source: str

    def to_toml(self) -> str:
        """A machine file that `load_machine` reads."""
        rate = f"measured: {self.source}"
        team = f"{rate}; a step of the {TINY} shape, all in cache, over its regions"
        flops = (self.flops_per_s / 1e9, "GFLOP/s", f"{rate}; multiply-adds in registers", self.flops_share)
        dram = (self.read_bytes_per_s / 1e9, "GB/s", f"{rate}; the fastest read loop", self.read_share)
        return f"""# This machine, as coterie info --calibrate measured it.
name = "{self.name}"
rule_set = "cache"
units = {self.cpus}
flops = {number(*flops, f"{rate}; prefill of {PROMPT_TOKENS} tokens")}
launch_host = {number(self.launch_host_s * 1e6, "us", f"{team}, each from Python")}
launch_device = {number(self.launch_device_s * 1e6, "us", f"{team}, by the thread team")}

[[tier]]
name = "dram"
capacity = {number(self.dram_bytes, "B", "memory that this process may use")}
bandwidth = {number(*dram, f"{rate}; decode, without its launches")}
{disk_tables(self.disk_bytes, self.disk_bytes_per_s, rate)}"""


def number(value: float, unit: str, source: str, share: float | None = None, share_source: str = "") -> str:
    """A number in a machine file: integers exactly, others to six digits."""
    digits = str(value) if isinstance(value, int) else f"{value:.6g}"
    achieved = "" if share is None else f', achieved = {share:.4g}, achieved_source = "{quotable(share_source)}"'
    return f'{{ value = {digits}, unit = "{unit}", source = "{quotable(source)}"{achieved} }}'


def quotable(text: str) -> str:
    """The text with the characters replaced that would need escaping in a TOML string."""
    return text.replace("\\", "/").replace('"', "'")


def disk_tables(capacity_bytes: int, bytes_per_s: float, measured: str) -> str:
    """The TOML tables of a machine's disk and of its link to memory."""
    rate = number(bytes_per_s / 1e9, "GB/s", f"{measured}; a file read from end to end")
    return f"""
[[tier]]
name = "disk"
capacity = {number(capacity_bytes, "B", "the file system of the working folder")}
bandwidth = {rate}

[[link]]
src = "disk"
dst = "dram"
bandwidth = {rate}
latency = {{ value = 100, unit = "us", assumed = true, source = "a typical read" }}
"""


def disk_bytes_per_s(model: Model, effort: Effort) -> float:
    """The rate at which a model's file is read with direct I/O, the fastest way."""
    disk, file = DiskLimit(), Path(model.layout.ranges[0].source.path)
    disk.search(file)
    return median(disk.read(file) for _ in range(effort.rounds))


def calibrate(name: str, threads: int | None, effort: Effort, shape: str = SHAPE) -> Calibration:
    """Measure this machine, which takes some seconds. Raises UsageError for a bad name, CapacityError."""
    check_name(name)
    device_s, host_s = (_launch_s(order, threads, effort) for order in ("device", "host"))
    config = with_context(shape_config(shape), PROMPT_TOKENS + STEPS)
    with random_experts(config, 1) as (stored,):
        model = rounded_for(stored, AUTO, "cpu")  # as it would be served here
        disk, rates = disk_bytes_per_s(model, effort), _large(model, threads, effort, device_s)
    spec = this_machine()
    here = machine()
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    cpus = threads or spec.units
    products = multiplied(model.activations)
    how = f"{cpus} threads of {here['cpu_model']}, {here['isa']}, products {products}, load {here['load_1m']}"
    source = f"{how}, {shape} shape, coterie {commit()}, {when}"
    dram, drive = spec.tier(spec.run_tier), spec.tier(spec.home_tier)
    return Calibration(
        name=name,
        cpus=cpus,
        dram_bytes=dram.capacity_bytes,
        disk_bytes=max(drive.capacity_bytes, dram.capacity_bytes + 1),
        launch_host_s=host_s,
        launch_device_s=device_s,
        disk_bytes_per_s=disk,
        source=source,
        **rates,
    )


def check_name(name: str) -> None:
    """Raise UsageError for an invalid machine name."""
    if not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError("--out", f"{name!r} cannot name a machine", "use letters, digits, - and _")


def _large(model: Model, threads: int | None, effort: Effort, launch_s: float) -> dict[str, float]:
    """The limits, and the shares of them that steps of a model reach that fits no cache."""
    with on_cpu(model, "device", threads, PROMPT_TOKENS + STEPS) as loaded:
        prompt = loaded.step("cache", 0, PROMPT_TOKENS)
        token = loaded.step("cache", CONTEXT, 1, steps=STEPS)
        loops = read_loops(loaded.device.memory(loaded.weights), loaded.device.threads)
        peak = partial(multiply_adds, loaded.device.threads, model.activations)
        samples = interleave({"prompt": prompt.seconds, "token": token.seconds, "peak": peak, **loops}, effort)
    regions = launch_s * len(token.exe.program.regions)
    read = model.layout.size_bytes / min(median(samples[name]) for name in loops)
    flops = median(samples["peak"])
    prompt_s, token_s = (max(median(samples[way]) - regions, 1e-9) for way in ("prompt", "token"))
    return {
        "read_bytes_per_s": read,
        "flops_per_s": flops,
        "flops_share": min(1.0, prompt.cost().flops / prompt_s / flops),
        "read_share": min(1.0, token.cost().total_bytes / token_s / read),
    }


def _launch_s(orchestration: Orchestration, threads: int | None, effort: Effort) -> float:
    """The overhead of launching a region: seconds per region of a tiny model."""
    with (
        random_experts(with_context(shape_config(TINY), CONTEXT + STEPS), 1) as (model,),
        on_cpu(model, orchestration, threads, CONTEXT + STEPS) as loaded,
    ):
        step = loaded.step("cache", CONTEXT - 1, 1, steps=STEPS)
        samples = interleave({"step": step.seconds}, effort)
    return median(samples["step"]) / len(step.exe.program.regions)

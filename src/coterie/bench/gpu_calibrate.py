"""Measures a GPU and its host and writes a machine file, so that they can be modelled.

    hbm, flops      the fastest read loop over its memory; a product of square bfloat16 matrices
    achieved        the shares of these that one more decode step and a longer prompt reach, without launch overhead
    launches        one more step of a tiny model, divided by its regions: as captured graphs, or kernel by kernel
    starts          what a run of one step, and a short prompt, take beyond all of the above
    links           one copy of pinned memory, and one of a block; a file read with direct I/O

Knows nothing about how a machine file is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from coterie.bench.calibrate import (
    CONTEXT,
    STEPS,
    TINY,
    check_name,
    disk_bytes_per_s,
    disk_tables,
    number,
    quotable,
)
from coterie.bench.experts import random_experts
from coterie.bench.gpu import WARM_ROUNDS
from coterie.bench.limits import read_loops
from coterie.bench.report import Effort, commit, interleave
from coterie.bench.shapes import shape_config, with_context
from coterie.bench.step import Loaded
from coterie.core.shapes import Sizes
from coterie.core.units import format_bytes
from coterie.devices.cpu.device import Orchestration
from coterie.devices.cuda.gpu import Gpu
from coterie.devices.modelled.price import step_time
from coterie.devices.real.host_memory import Slab
from coterie.graph.compile import compile_graph
from coterie.plan.validate.gpu_own import calibrated_on
from coterie.spec.load import parse_machine
from coterie.spec.machine import MachineSpec
from coterie.spec.this_machine import allowed_cpus

if TYPE_CHECKING:
    from coterie.devices.cuda.device import CudaDevice

SHAPE = "1b"  # its weights are far larger than a GPU's caches, and its prompt keeps all multiprocessors busy
PROMPT_TOKENS = 2048
SHORT_PROMPT = 8  # times shorter: still bound by flops, but short enough for the fixed cost of a prompt to show
BLOCK_BYTES = 4096  # small enough that copying it takes only the link's latency


@dataclass(frozen=True, slots=True)
class GpuCalibration:
    """The measurements, in SI units; shares are of the limits; `capped`: notes on shares that came out above 1."""

    name: str
    gpu: str
    shape: str
    hbm_bytes: int
    hbm_source: str
    dram_bytes: int
    dram_source: str
    disk_bytes: int
    read_bytes_per_s: float
    read_share: float
    product_flops_per_s: float
    flops_share: float
    copy_bytes_per_s: float
    copy_latency_s: float
    host_bytes_per_s: float
    disk_bytes_per_s: float
    launch_host_s: float
    launch_device_s: float
    run_start_s: float
    prompt_start_s: float
    source: str
    capped: tuple[str, ...]

    def to_toml(self) -> str:
        """A machine file that `load_machine` reads."""
        measured = f"measured: {self.source}"
        step = f"{measured}; one more step of the {TINY} shape over its regions"
        flops = number(
            self.product_flops_per_s / 1e12, "TFLOP/s", f"{measured}; a product of square bfloat16 matrices",
            self.flops_share, f"{measured}; what prefill of {PROMPT_TOKENS} tokens takes more than of {_short()}",
        )  # fmt: skip
        hbm = number(
            self.read_bytes_per_s / 1e9, "GB/s", f"{measured}; the fastest read loop",
            self.read_share, f"{measured}; one more decode step, without its launches",
        )  # fmt: skip
        starts = f"{measured}; a run of one step, less one more step and a launch"
        prompts = f"{measured}; prefill of {_short()} tokens, less all else that is known"
        notes = ", ".join(
            f'"{quotable(note)}"' for note in (calibrated_on(self.shape), f"GPU: {self.gpu}", *self.capped)
        )
        return f"""# A GPU and its host, as coterie info --calibrate --device cuda measured them.
name = "{self.name}"
rule_set = "cache"
notes = [{notes}]
flops = {flops}
launch_host = {number(self.launch_host_s * 1e6, "us", f"{step}, each kernel by a call")}
launch_device = {number(self.launch_device_s * 1e6, "us", f"{step}, as captured graphs")}
run_start = {number(self.run_start_s * 1e6, "us", starts)}
prompt_start = {number(self.prompt_start_s * 1e6, "us", prompts)}
gated_launch = "host"

[[tier]]
name = "hbm"
capacity = {number(self.hbm_bytes, "B", self.hbm_source)}
bandwidth = {hbm}

[[tier]]
name = "dram"
capacity = {number(self.dram_bytes, "B", self.dram_source)}
bandwidth = {number(self.host_bytes_per_s / 1e9, "GB/s", f"{measured}; the fastest read loop of the CPUs")}
{disk_tables(self.disk_bytes, self.disk_bytes_per_s, measured)}
[[link]]
src = "dram"
dst = "hbm"
bandwidth = {number(self.copy_bytes_per_s / 1e9, "GB/s", f"{measured}; one copy of pinned memory")}
latency = {number(self.copy_latency_s * 1e6, "us", f"{measured}; a copy of {format_bytes(BLOCK_BYTES)}")}
"""


def calibrate_gpu(name: str, gpu: Gpu, effort: Effort, shape: str = SHAPE) -> GpuCalibration:
    """Measure a GPU, in a minute or less. Raises UsageError for a bad name, CapacityError."""
    check_name(name)
    spec = gpu.spec()
    orders: tuple[Orchestration, ...] = ("host", "device")
    launches: dict[str, float] = {how: _launch_s(gpu, how, effort) for how in orders}
    room = max(PROMPT_TOKENS, CONTEXT) + STEPS
    config = with_context(shape_config(shape), room)
    with random_experts(config, 1) as (model,):
        disk = disk_bytes_per_s(model, effort)
        with Loaded(model, gpu.make(), room) as loaded:
            rates = _rates(loaded, gpu, effort, launches)
        program = compile_graph(model.graph, "cache")
    short_s = rates.pop("short_s")
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    found = GpuCalibration(
        name=name,
        gpu=gpu.name,
        shape=Path(shape).stem,
        disk_bytes_per_s=disk,
        launch_host_s=launches["host"],
        launch_device_s=launches["device"],
        prompt_start_s=0.0,
        source=f"{gpu.name}, {Path(shape).stem} shape, coterie {commit()}, {when}",
        **_capacities(spec),
        **rates,
    )
    known_s = step_time(parse_machine(found.to_toml(), name), program, Sizes.prefill(1, _short())).seconds
    return replace(found, prompt_start_s=max(0.0, short_s - known_s))


def _short() -> int:
    return max(2, PROMPT_TOKENS // SHORT_PROMPT)


def _capacities(spec: MachineSpec) -> dict[str, Any]:
    hbm, dram, disk = spec.tiers
    return {
        "hbm_bytes": hbm.capacity_bytes,
        "hbm_source": _what_bounds(hbm.source),
        "dram_bytes": dram.capacity_bytes,
        "dram_source": _what_bounds(dram.source),
        "disk_bytes": max(disk.capacity_bytes, dram.capacity_bytes + 1),
    }


def _what_bounds(source: str) -> str:
    return source.partition(";")[0].removeprefix("capacity: ")


def _rates(loaded: Loaded[CudaDevice], gpu: Gpu, effort: Effort, launches: Mapping[str, float]) -> dict[str, Any]:
    """The limits, and the shares of them that steps of a model reach that fits no cache."""
    prompt = loaded.step("cache", 0, PROMPT_TOKENS)
    short = loaded.step("cache", 0, _short())
    token, one = (loaded.step("cache", CONTEXT, 1, steps=steps) for steps in (STEPS, 1))
    limits, block = gpu.limits(), gpu.limits(BLOCK_BYTES)
    loops, host = limits.read_loops(), read_loops(Slab(limits.size_bytes).bytes, allowed_cpus()[0])
    steps = {"prompt": prompt, "short": short, "token": token, "one": one}
    ways: dict[str, Callable[[], float]] = {name: step.seconds for name, step in steps.items()}
    ways |= {"product": limits.multiply_seconds, "copy": limits.copy_seconds, "block": block.copy_seconds}
    for _ in range(WARM_ROUNDS):
        for step in steps.values():
            step.seconds()
    found = {name: median(times) for name, times in interleave({**ways, **loops, **host}, effort).items()}
    regions = len(token.exe.program.regions)
    read = limits.size_bytes / min(found[name] for name in loops)
    peak = limits.product_flops / found["product"]
    launches_s = launches["device"] * regions  # a prompt is captured as a graph, like a decode step
    step_s, start_s = _step_and_start(found["one"], found["token"])
    read_share = token.cost().total_bytes / max(step_s - launches_s, 1e-9) / read
    flops, more_s = prompt.cost().flops - short.cost().flops, found["prompt"] - found["short"]
    if more_s <= 0:  # noise: use the long prompt alone, minus its start and launches
        flops, more_s = prompt.cost().flops, max(found["prompt"] - start_s - launches_s, 1e-9)
    flops_share = flops / more_s / peak
    return {
        "read_bytes_per_s": read,
        "read_share": min(1.0, read_share),
        "product_flops_per_s": peak,
        "flops_share": min(1.0, flops_share),
        "capped": (*_capped("decode reads", "read loop", read_share), *_capped("prefill", "product", flops_share)),
        "copy_bytes_per_s": limits.size_bytes / found["copy"],
        "copy_latency_s": found["block"],
        "host_bytes_per_s": limits.size_bytes / min(found[name] for name in host),
        "run_start_s": max(0.0, start_s - launches["host"]),
        "short_s": found["short"],
    }


def _step_and_start(one_s: float, several_s: float) -> tuple[float, float]:
    """Seconds of one more step of a run, and the fixed cost of a run besides its steps.

    From the seconds per step of a run of one step and of a run of STEPS; both include the fixed cost once.
    """
    step_s = (STEPS * several_s - one_s) / (STEPS - 1)
    if step_s <= 0:  # noise: the longer run's time per step is an upper bound
        step_s = several_s
    return step_s, max(0.0, one_s - step_s)


def _capped(what: str, limit: str, share: float) -> tuple[str, ...]:
    """A note on a share above 1: either overlapped launches were subtracted, or the limit's loop was too short."""
    return (f"{what}: {share:.3g} of the {limit}'s rate without launches, taken as 1",) if share > 1 else ()


def _launch_s(gpu: Gpu, orchestration: Orchestration, effort: Effort) -> float:
    """The overhead of launching a region: seconds per region of a tiny model.

    The fixed cost of a run, which dominates a short one, is excluded.
    """
    with (
        random_experts(with_context(shape_config(TINY), CONTEXT + STEPS), 1) as (model,),
        Loaded(model, gpu.make(orchestration), CONTEXT + STEPS) as loaded,
    ):
        runs = {steps: loaded.step("cache", CONTEXT - 1, 1, steps=steps) for steps in (1, STEPS)}
        for _ in range(WARM_ROUNDS):
            for run in runs.values():
                run.seconds()
        samples = interleave({str(steps): run.seconds for steps, run in runs.items()}, effort)
    step_s, _ = _step_and_start(median(samples["1"]), median(samples[str(STEPS)]))
    return step_s / len(runs[1].exe.program.regions)

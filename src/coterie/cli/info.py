"""`coterie info`: describes this machine or a modelled one, and calibrates a machine file.

Knows nothing about compositions.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from coterie import __version__
from coterie.bench.calibrate import SHAPE
from coterie.bench.calibrate import calibrate as measure
from coterie.bench.gpu_calibrate import SHAPE as GPU_SHAPE
from coterie.bench.gpu_calibrate import calibrate_gpu
from coterie.bench.report import Effort
from coterie.bench.subject import measured_gpu
from coterie.cli.options import JsonOpt, ThreadsOpt, err, out, picked, print_json, report_errors, write_text
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.core.units import format_bytes, format_rate, format_seconds
from coterie.devices.cuda.gpu import describe_gpu
from coterie.devices.modelled.price import step_time
from coterie.devices.modelled.shard import rank_program
from coterie.graph.compile import compile_graph
from coterie.kernels import cpu as kernels
from coterie.models.zoo import zoo_graph
from coterie.spec.load import load_machine, machine_names, with_setting
from coterie.spec.machine import MachineSpec
from coterie.spec.sensitivity import Sensitivity, sensitivity
from coterie.spec.stack import stack_names
from coterie.spec.this_machine import allowed_cores, allowed_cpus, allowed_nodes, this_machine

OutOpt = Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write with --calibrate.")]
SensitivityOpt = Annotated[
    str,
    typer.Option(
        "--sensitivity",
        metavar="MODEL",
        help="Show how a zoo model's step times depend on each unpublished number.",
    ),
]


@report_errors
def info(
    machine: Annotated[
        str, typer.Argument(help="A modelled machine, or a TOML file, with NAME:key=value settings; none: this one.")
    ] = "",
    host_links: Annotated[int | None, typer.Option(help="How many of a DGX's host links copy at once.")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure this machine and write its file.")] = False,
    out_file: OutOpt = Path("this-machine.toml"),
    shape: Annotated[str, typer.Option(help=f"The model to calibrate with; {SHAPE}, on a GPU {GPU_SHAPE}.")] = "",
    device: Annotated[str, typer.Option("--device", help="To calibrate: cpu, or cuda (a GPU and its host).")] = "cpu",
    threads: ThreadsOpt = None,
    model: SensitivityOpt = "",
    json_: JsonOpt = False,
) -> None:
    """Show a machine: its tiers and links, with the source of each number, and which numbers are unpublished."""
    if device != "cpu" and not calibrate:
        raise UsageError("--device", "says what to calibrate", "add --calibrate, or leave it out: a GPU is named here")
    if threads is not None and not calibrate:
        raise UsageError("--threads", "says with how many to calibrate", "add --calibrate, or leave it out")
    if model and not machine:
        raise UsageError("--sensitivity", "asks about a modelled machine", "name one, such as sn40l-node")
    if calibrate:
        if machine or host_links is not None:
            raise UsageError("--calibrate", "measures this machine and no other", "leave the machine's name out")
        spec = _calibrated(out_file, shape, threads, device)
    elif machine:
        spec = load_machine(machine if host_links is None else with_setting(machine, "host_links", host_links))
    elif host_links is not None:
        raise UsageError("--host-links", "this machine has none", "name a machine, such as dgx-h100")
    else:
        spec = this_machine()
    cpus, cpus_source = allowed_cpus()
    cores, cores_source = allowed_cores()
    here: dict[str, Any] = {
        "coterie": __version__,
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": cpus,
        "cpus_source": cpus_source,
        "compute_threads": cores,
        "compute_threads_source": cores_source,
        "memory_nodes": len(allowed_nodes()),
        "instruction_sets": list(kernels.ISAS),
        "instruction_set": kernels.ISAS[-1],
        "gpu": describe_gpu(),
    }
    asked = _sensitivities(machine, model) if model else {}
    if json_:
        more = {"sensitivity": {step: [_sensitive(item) for item in items] for step, items in asked.items()}}
        shown = {**here, "machine": _plain(spec), "modelled_machines": list(machine_names())}
        print_json(shown | more if model else shown)
        return
    out.print(f"coterie {__version__}, Python {here['python']}, {here['system']}, {cpus} CPUs ({escape(cpus_source)})")
    kinds = f"kernels: {here['instruction_set']} (this CPU runs {', '.join(here['instruction_sets'])})"
    out.print(f"{kinds}, {cores} compute threads ({escape(cores_source)})")
    if (nodes := here["memory_nodes"]) > 1:
        out.print(f"memory: of {nodes} NUMA nodes, across which slabs are laid where the system allows it")
    out.print(f"gpu: {here['gpu']}", markup=False)
    out.print(_table(spec))
    if spec.unpublished:
        out.print(_ranges(spec))
    for step, items in asked.items():
        out.print(_sensitivity_table(f"{model}: {step}", items))
    for note in (*([f"times by {spec.provenance}"] if machine else []), *spec.notes):
        out.print(f"note: {note}", markup=False)
    if machine and spec.flops_share == spec.tier(spec.run_tier).share == 1.0:
        said = "no achieved share of its rates is given, so all is taken: right if they were measured, not of peaks"
        out.print(f"note: {said}", markup=False)
    out.print(f"software stacks: {', '.join(stack_names())} (NAME:stack=...)")
    out.print(f"modelled machines: {', '.join(machine_names())}")


def _calibrated(file: Path, shape: str, threads: int | None, device: str) -> MachineSpec:
    """Measure this machine, write its file, and load that. Raises UsageError if it cannot be written."""
    gpu = measured_gpu(device)
    if gpu is None:
        text = measure(file.stem, threads, Effort(), shape or SHAPE).to_toml()
    else:
        text = calibrate_gpu(file.stem, gpu, Effort(), shape or GPU_SHAPE).to_toml()
    write_text(file, text, "--out")
    err.print(f"written: {file}; use it as synthetic:{file}", markup=False)
    return load_machine(str(file))


def _plain(spec: MachineSpec) -> dict[str, Any]:
    rates, ends = ("bytes_per_s", "achieved_bytes_per_s"), ("src", "dst")
    return {
        **picked(spec, "name", "flops_per_s", "flops_source", "achieved_flops_per_s", "units", "host_links", "stack"),
        "unpublished": [picked(number, "key", "low", "value", "high", "source") for number in spec.unpublished],
        "known_by": spec.provenance,
        "power_w": spec.power_w or None,
        "power_source": spec.power_source,
        "tiers": [picked(tier, "name", "capacity_bytes", *rates, "source") for tier in spec.tiers],
        "links": [picked(link, *ends, *rates, "latency_s", "source") for link in spec.links],
        "rule_set": spec.rule_set,
        "notes": list(spec.notes),
    }


def _table(spec: MachineSpec) -> Table:
    units = f", {spec.units} units" if spec.units > 1 else ""
    table = Table(
        "what", "capacity", "physical", "achieved", "source", title=f"{spec.name}{units}", title_justify="left"
    )
    flops = [
        f"{rate / 1e12:.4g} TFLOP/s" if rate else "unknown" for rate in (spec.flops_per_s, spec.achieved_flops_per_s)
    ]
    table.add_row("arithmetic", "", *flops, escape(_sources(spec.flops_source, spec.flops_share_source)))
    for tier in spec.tiers:
        rates = _rate(tier.bytes_per_s), _rate(tier.achieved_bytes_per_s)
        sources = escape(_sources(tier.source, tier.share_source))
        table.add_row(tier.name, format_bytes(tier.capacity_bytes), *rates, sources)
    for link in spec.links:
        rates = _rate(link.bytes_per_s), _rate(link.achieved_bytes_per_s)
        table.add_row(f"{link.src} to {link.dst}", "", *rates, escape(_sources(link.source, link.share_source)))
    if spec.peers is not None:
        rates = _rate(spec.peers.bytes_per_s), _rate(spec.peers.achieved_bytes_per_s)
        table.add_row("unit to unit", "", *rates, escape(_sources(spec.peers.source, spec.peers.share_source)))
    if spec.cores is not None:
        said = f"of {spec.cores.threads} threads, each waited for {format_seconds(spec.cores.barrier_s)} in a region"
        table.add_row("a core", "", "", _rate(spec.cores.bytes_per_s), said)
    if spec.power_w:
        table.add_row("power", "", f"{spec.power_w:g} W", "", escape(spec.power_source))
    return table


def _ranges(spec: MachineSpec) -> Table:
    table = Table("not published", "low", "taken", "high", "why", title="set with NAME:KEY=low or high")
    for item in spec.unpublished:
        table.add_row(item.key, f"{item.low:.3g}", f"{item.value:.3g}", f"{item.high:.3g}", escape(item.source))
    return table


def _sensitivities(machine: str, model: str) -> dict[str, tuple[Sensitivity, ...]]:
    """How the times of a decode step and of a prefill of the model depend on each unpublished number."""
    spec = load_machine(machine)
    program = rank_program(spec, compile_graph(zoo_graph(model), spec.rule_set))
    steps = {"decode, context 4096": Sizes.decode(1, 4096), "prefill, 1024 tokens": Sizes.prefill(1, 1024)}

    def asks(sizes: Sizes) -> Callable[[MachineSpec], float]:
        return lambda changed: step_time(changed, program, sizes).seconds

    return {name: sensitivity(machine, asks(sizes)) for name, sizes in steps.items()}


def _sensitive(item: Sensitivity) -> dict[str, Any]:
    return {"key": item.number.key, "low_s": item.at_low, "taken_s": item.base, "high_s": item.at_high}


def _sensitivity_table(title: str, items: tuple[Sensitivity, ...]) -> Table:
    table = Table("not published", "at low", "as taken", "at high", "spread", title=title, title_justify="left")
    for item in items:
        times = [format_seconds(seconds) for seconds in (item.at_low, item.base, item.at_high)]
        table.add_row(item.number.key, *times, f"{item.spread:.0%}")
    return table


def _sources(physical: str, achieved: str) -> str:
    return f"{physical}; achieved: {achieved}" if achieved else physical


def _rate(bytes_per_s: float) -> str:
    return format_rate(bytes_per_s) if bytes_per_s else "unknown"

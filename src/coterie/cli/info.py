"""`coterie info`: what Coterie found on this machine, and the machines it can model.

Knows nothing about compositions.
"""

from __future__ import annotations

import platform
import sys
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from coterie import __version__
from coterie.cli.options import JsonOpt, out, print_json, sentences
from coterie.core.units import format_bytes, format_rate
from coterie.kernels import cpu as kernels
from coterie.spec.load import load_machine, machine_names
from coterie.spec.machine import MachineSpec
from coterie.spec.this_machine import allowed_cpus, this_machine


@sentences
def info(
    machine: Annotated[str, typer.Argument(help="A modelled machine, or a TOML file; none shows this one.")] = "",
    json_: JsonOpt = False,
) -> None:
    """Show a machine: its tiers and links, with the source of each number."""
    spec = load_machine(machine) if machine else this_machine()
    cpus, cpus_source = allowed_cpus()
    here: dict[str, Any] = {
        "coterie": __version__,
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": cpus,
        "cpus_source": cpus_source,
        "instruction_sets": list(kernels.ISAS),
        "instruction_set": kernels.ISAS[-1],
    }
    if json_:
        print_json({**here, "machine": _plain(spec), "modelled_machines": list(machine_names())})
        return
    out.print(f"coterie {__version__}, Python {here['python']}, {here['system']}, {cpus} CPUs ({escape(cpus_source)})")
    out.print(f"kernels: {here['instruction_set']} (built: {', '.join(here['instruction_sets'])})")
    out.print(_table(spec))
    out.print(f"modelled machines: {', '.join(machine_names())}")


def _plain(spec: MachineSpec) -> dict[str, Any]:
    tiers = [
        {"name": t.name, "capacity_bytes": t.capacity_bytes, "bytes_per_s": t.bytes_per_s, "source": t.source}
        for t in spec.tiers
    ]
    links = [
        {"src": k.src, "dst": k.dst, "bytes_per_s": k.bytes_per_s, "latency_s": k.latency_s, "source": k.source}
        for k in spec.links
    ]
    head = {"name": spec.name, "flops_per_s": spec.flops_per_s, "flops_source": spec.flops_source}
    return {**head, "tiers": tiers, "links": links, "rule_set": spec.rule_set, "notes": list(spec.notes)}


def _table(spec: MachineSpec) -> Table:
    table = Table("tier or link", "capacity", "bandwidth", "source", title=spec.name, title_justify="left")
    for tier in spec.tiers:
        table.add_row(tier.name, format_bytes(tier.capacity_bytes), _rate(tier.bytes_per_s), escape(tier.source))
    for link in spec.links:
        table.add_row(f"{link.src} to {link.dst}", "", _rate(link.bytes_per_s), escape(link.source))
    return table


def _rate(bytes_per_s: float) -> str:
    return format_rate(bytes_per_s) if bytes_per_s else "unknown"

"""`coterie map`: maps a model onto a dataflow machine: its sections, and one of them unit by unit.

Knows nothing about how sections are chosen or mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.checkpoint.files import read_object
from coterie.cli.options import JsonOpt, out, print_json, report_errors, save_trace
from coterie.core.errors import NotFoundError, UsageError
from coterie.core.paths import user_path
from coterie.core.shapes import Sizes
from coterie.core.units import format_bytes, format_seconds
from coterie.dataflow.chip import chip_of
from coterie.dataflow.draw import picture
from coterie.dataflow.lifetime import Symbol, live_bytes, symbols_of
from coterie.dataflow.mapping import Mapped
from coterie.dataflow.place import place
from coterie.dataflow.report import (
    SECTION_HEAD,
    plain_layout,
    plain_memory,
    plain_sections,
    section_rows,
    shallow_fifos,
    tile_trace,
)
from coterie.dataflow.sections import Sections, sections_of
from coterie.dataflow.shapes import write_picture
from coterie.dataflow.spill import MemoryPlan, plan_memory
from coterie.graph.backward.build import training_graph
from coterie.graph.images import check_image_fits
from coterie.graph.ir import Graph
from coterie.graph.shard import shard
from coterie.models.model import declared_dtype, open_model, synthetic_model
from coterie.models.zoo import DECODE, PREFILL, zoo_graph, zoo_names
from coterie.spec.load import load_machine
from coterie.spec.machine import MachineSpec

MAX_BOUNDARIES = 12


class Phase(StrEnum):
    """The kind of step to map."""

    prefill = "prefill"
    decode = "decode"
    train = "train"


@report_errors
def map_(
    model: Annotated[
        str, typer.Argument(help="A model of the zoo (llama-2-7b, ...), a checkpoint folder or a config.json.")
    ],
    machine: Annotated[str, typer.Option(help="A machine with a grid of units, or a .toml file.")] = "sn40l-node",
    phase: Annotated[Phase, typer.Option(help="The step to map.")] = Phase.prefill,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of the step.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Prompt tokens (prefill) or context (decode) of each.")] = 4096,
    how: Annotated[
        str,
        typer.Option(
            help="How to cut sections: best, stage, unfused, or a fusion rule set: none, cache, epilogue, served, "
            "section or o0."
        ),
    ] = "best",
    tp: Annotated[int, typer.Option(min=1, help="Sockets that share the model (tensor parallel).")] = 1,
    section: Annotated[str, typer.Option(help="The section to draw; by default the one that takes longest.")] = "",
    orchestration: Annotated[str, typer.Option(help="Who starts kernels: device or host.")] = "device",
    memory: Annotated[str, typer.Option(metavar="HOW", help="Also plan memory: greedy, paper or optimal.")] = "",
    draw: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the section: .svg, or .png (extra plan).")
    ] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write its tile timeline for Perfetto.")] = None,
    json_: JsonOpt = False,
) -> None:
    """Map a model onto a dataflow machine: sections, units, times; draw a section or write its tile timeline."""
    if orchestration not in ("device", "host"):
        raise UsageError("--orchestration", f"{orchestration!r} is unknown", "use device or host")
    graph = _graph(model, phase)
    if phase is not Phase.decode:
        check_image_fits(graph, tokens, "--tokens")
    sizes = Sizes.decode(batch, tokens) if phase is Phase.decode else Sizes.prefill(batch, tokens)
    if phase is Phase.train:
        graph, sizes = training_graph(graph, tp), replace(sizes, R=sizes.T)  # every token has a target
    else:
        graph = shard(graph, tp)
    spec = load_machine(machine)
    chip = chip_of(spec, orchestration)
    if tp > chip.sockets:
        fact = f"{tp} sockets cannot share the model: {spec.name} has {chip.sockets}"
        raise UsageError("--tp", fact, f"use at most {chip.sockets}, or a machine with more sockets")
    plan = sections_of(graph, sizes, chip, how, tp)
    symbols = _symbols(graph, plan, sizes)
    lies = plan_of_memory(symbols, spec, memory) if memory else None
    name, chosen = _chosen(plan, section)
    placed = place(chosen)
    if draw is not None:
        where = "one socket" if tp == 1 else f"each of {tp} sockets"
        step = f"{phase.value} of {batch} x {tokens} tokens"
        title = f"{graph.name} on {where} of {chosen.chip.name}: {name}, {step}"
        write_picture(picture(chosen, placed, title), draw)
    if trace is not None:
        save_trace(trace, tile_trace(chosen, placed))
    if json_:
        more = {"memory": plain_memory(lies)} if lies else {}
        print_json({**plain_sections(plan), "layout": {"name": name, **plain_layout(chosen, placed)}, **more})
        return
    _print(plan)
    if lies:
        _print_memory(lies)
    else:
        _print_excess(symbols, spec)


def plan_of_memory(symbols: Sequence[Symbol], spec: MachineSpec, how: str) -> MemoryPlan:
    """Place one socket's symbols in its run tier and the tier below. Raises UsageError if there is no tier below."""
    if len(spec.weight_tiers) < 2:
        raise UsageError("--memory", f"{spec.name} has no memory below {spec.run_tier}", "leave it out")
    far = spec.tier(spec.weight_tiers[1])
    sockets = spec.units if spec.tier(spec.run_tier).per_unit else 1
    room = far.capacity_bytes // sockets, far.achieved_bytes_per_s / sockets
    return plan_memory(symbols, _near_bytes(spec), *room, how)


def _near_bytes(spec: MachineSpec) -> int:
    """One socket's share of the run tier."""
    near = spec.tier(spec.run_tier)
    return near.capacity_bytes // (spec.units if near.per_unit else 1)


def _symbols(graph: Graph, plan: Sections, sizes: Sizes) -> tuple[Symbol, ...]:
    """The symbols of one socket, with their lifetimes in sections."""
    at, steps = 0, []
    for which in plan.index:
        count = len(plan.mapped[which].ops)
        steps.append(graph.ops[at : at + count])
        at += count
    return symbols_of(graph, steps, sizes)


def _print_excess(symbols: Sequence[Symbol], spec: MachineSpec) -> None:
    """Warn if the run tier is too small, since the times assume that everything fits in it."""
    last = max((symbol.last for symbol in symbols), default=0)
    needed, room = max(live_bytes(symbols, last + 1)), _near_bytes(spec)
    if needed > room:
        more = f"{format_bytes(needed - room)} more than {spec.run_tier} has"
        remedy = f"the times take all from {spec.run_tier}: share it by --tp, or see --memory greedy"
        out.print(f"a socket needs {format_bytes(needed)} at once, {more}; {remedy}")


def _print_memory(plan: MemoryPlan) -> None:
    table = Table("symbol", "kind", "bytes", "from", "to", "moved", title=f"memory of a socket ({plan.how})")
    for symbol in plan.top:
        life = str(symbol.first), str(symbol.last), format_bytes(symbol.moved_bytes)
        table.add_row(escape(symbol.name), symbol.kind, format_bytes(symbol.size_bytes), *life)
    out.print(table)
    packed = plan.packed
    shared = (
        f"peak {format_bytes(packed.peak_bytes)} with shared addresses, {format_bytes(plan.unshared_bytes)} without"
    )
    spilled = f"{len(plan.far)} spilled, {format_bytes(plan.spilled_bytes)} moved far: {format_seconds(plan.spilled_s)}"
    out.print(f"{len(plan.near) + len(plan.far)} symbols: {shared}; {spilled if plan.far else 'nothing spilled'}")


def _graph(model: str, phase: Phase) -> Graph:
    if model in zoo_names():
        return zoo_graph(model, DECODE if phase is Phase.decode else PREFILL)
    path = user_path(model, "MODEL")
    if path.is_dir():
        return open_model(path).graph
    if path.is_file():
        raw = read_object(path)
        return synthetic_model(raw, path.stem, declared_dtype(raw, str(path))).graph
    fact = "is neither a model of the zoo nor a folder or file"
    raise NotFoundError(model, fact, f"use one of {', '.join(zoo_names())}, a checkpoint folder or a config.json")


def _chosen(plan: Sections, section: str) -> tuple[str, Mapped]:
    if section and section not in plan.names:
        known = dict.fromkeys(plan.names[plan.index.index(which)] for which in range(len(plan.mapped)))
        raise UsageError("--section", f"there is no section {section}", f"use one of {', '.join(known)}")
    at = plan.names.index(section) if section else None
    if at is None:
        totals = [plan.index.count(which) * mapped.l1_s for which, mapped in enumerate(plan.mapped)]
        at = plan.index.index(totals.index(max(totals)))
    return plan.names[at], plan.mapped[plan.index[at]]


def _print(plan: Sections) -> None:
    table = Table(*(Column(head, overflow="fold") for head in SECTION_HEAD), padding=0)  # eleven in 80 columns
    for cells in section_rows(plan):
        table.add_row(*map(escape, cells))
    out.print(table)
    inner = [b for b in plan.boundaries if b.kind != "layer"]
    layers = len(plan.boundaries) - len(inner)
    if layers:
        out.print(f"{layers} boundaries between layers: one program serves every equal layer")
    for boundary in inner[:MAX_BOUNDARIES]:
        out.print(f"{boundary.before} | {boundary.after}: {boundary.kind}: {escape(boundary.reason)}")
    if len(inner) > MAX_BOUNDARIES:
        out.print(f"and {len(inner) - MAX_BOUNDARIES} more (--json lists all)")
    found = shallow_fifos(plan)
    for name, said in found:
        out.print(f"{name} may deadlock: {said}", markup=False)
    if not found:
        out.print("no section can deadlock: every FIFO holds what one way to a join puts in before another has a token")
    looped = f"{format_seconds(plan.seconds(looping=True))} in {len(plan.calls)} calls with equal layers looped"
    out.print(f"a step, by L1: {format_seconds(plan.seconds())} in {plan.launches} launches; {looped}")

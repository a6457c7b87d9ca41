"""`coterie check`: whether a composition opens and fits, and where the memory goes. No weights are loaded.

Knows nothing about running experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.api import Options, Serving
from coterie.api.opened import open_all, planned
from coterie.api.sampling import defaults_of
from coterie.cli.opening import say_left_out, with_options
from coterie.cli.options import (
    CompositionArg,
    JsonOpt,
    LeaveOutOpt,
    out,
    picked,
    print_json,
    report_errors,
    short_base,
)
from coterie.composition.composition import Composition, load_composition
from coterie.composition.routers.llm import ROUTER
from coterie.composition.routing import make_router
from coterie.core.grouped import grouped
from coterie.core.text import first_few
from coterie.core.units import format_bytes, format_count
from coterie.engine.assembly import Plan
from coterie.graph.ops import BF16
from coterie.graph.program import KvShape
from coterie.memory.slab import round_up
from coterie.models.model import Model
from coterie.server.response_store import DEFAULT_BYTES


@report_errors
@with_options("near", "kv", "kv_type", "draft", "device")
def check(composition: CompositionArg, json_: JsonOpt = False, leave_out: LeaveOutOpt = False, *, how: Options) -> None:
    """Check a composition and print where the bytes go.

    Experts that are left out, of a folder or with --leave-out, are reported on stderr, and the exit status is then 2.
    """
    named = load_composition(composition, leave_out)
    make_router(named)
    opened, made = planned(open_all(named, how), how)
    found, models = opened.composition, opened.models
    if json_:
        print_json(_report(found, models, made))
    else:
        _print(found, models, made)
    say_left_out(found)
    if found.left_out:
        raise typer.Exit(2)


def _print(found: Composition, models: dict[str, Model], made: Plan) -> None:
    words = ("family", "weights", "context", "architecture", "KV per token", *(["base"] if made.base_of else []))
    table = Table(Column("expert", overflow="fold"), *words)
    for names in _rows(models):
        name, model = names[0], models[names[0]]
        row = (_family(model), format_bytes(model.layout.size_bytes), str(model.max_context), model.key[:8])
        base = [escape(short_base(made.base_of.get(name, "")))] if made.base_of else []
        label = name if len(names) == 1 else f"{name} to {names[-1]}, {len(names)}"
        table.add_row(escape(label), *row, _kept(model.kv), *base)
    out.print(table)
    shared = Counter(model.key for model in models.values())
    total = format_bytes(made.total_bytes + made.bases_bytes)
    out.print(
        f"{format_count(len(found.experts), 'expert')}, {total} in all; architectures (one program each): {len(shared)}"
    )
    for name, size in made.base_bytes.items():
        count = sum(base == name for base in made.base_of.values())
        out.print(
            f"base {name}: {format_bytes(size)}, always in {made.spec.run_tier}, of {format_count(count, 'expert')}",
            markup=False,
        )
    out.print(plan_line(made))
    out.print(stored_line(DEFAULT_BYTES))
    for line in (*draft_lines(models, made), *sampling_lines(models), *activation_lines(models)):
        out.print(line, markup=False)
    for expert in found.experts:
        if expert.aliases:
            out.print(f"aliases of {expert.name}: {', '.join(expert.aliases)}", markup=False)
    if parts := [name for name, model in models.items() if model.part_of]:
        out.print(f"note: of {', '.join(parts)} the text model is run; images are not read", markup=False)


def sampling_lines(models: Mapping[str, Model]) -> list[str]:
    """The experts' default sampling, a line for each distinct one; none if all are greedy.

    Then notes on ignored settings in their files.
    """
    drawn = {name: _drawn(model) for name, model in models.items() if name != ROUTER}  # the router's is always greedy
    alike = grouped((words, name) for name, words in drawn.items())
    is_said = set(alike) != {"greedy"}
    lines = [f"sampling of {first_few(names)}: {words}" for words, names in alike.items()] if is_said else []
    notes = grouped((note, name) for name, model in models.items() for note in model.advised.notes)
    return lines + [f"note: {first_few(names)}: {note}" for note, names in notes.items()]


def _drawn(model: Model) -> str:
    words = ", ".join(f"{setting} {value:g}" for setting, value in defaults_of(model).items())
    return "greedy" if words == "temperature 0" else words


def activation_lines(models: Mapping[str, Model]) -> list[str]:
    """A line naming the experts whose activations are rounded to bfloat16, if any."""
    names = [name for name, model in models.items() if model.activations == BF16]
    return [f"activations of {first_few(names)}: bfloat16 for bfloat16 weights (--activations)"] if names else []


def draft_lines(models: Mapping[str, Model], made: Plan) -> list[str]:
    """A line for each draft expert and those it drafts for, then notes where there is too little memory for both."""
    drafts = grouped((model.draft, name) for name, model in models.items() if model.draft)
    lines = [f"draft {small}: drafts for {first_few(names)}" for small, names in drafts.items()]
    size = {name: round_up(size_bytes) for name, size_bytes in made.expert_bytes.items()}
    room, all_bytes = made.near_bytes, sum(size.values())
    for small, names in drafts.items():
        both = {name: size.get(name, 0) + size.get(small, 0) for name in names}
        wide = [name for name, together in both.items() if together > room]
        if wide:
            need = max(both.values())
            fact = f"{small} drafts nothing for {first_few(wide)}: together they need {format_bytes(need)}"
            fact += f" and experts have {format_bytes(room)}; set --near to at least {need + made.bases_bytes} B"
        elif room < all_bytes:
            free = format_bytes(size.get(small, 0))
            fact = f"{small} drafts only while {free} of the memory for experts are free, as no expert is evicted"
            fact += f" for it; pin it, or set --near to at least {all_bytes + made.bases_bytes} B"
        else:
            continue
        lines.append(f"note: {fact}")
    return lines


def _rows(models: dict[str, Model]) -> list[list[str]]:
    """The names in each row: one expert, or consecutive experts without weights that differ only in their names."""

    def alike(name: str) -> object:
        model = models[name]
        return name if model.path is not None or name == ROUTER else (model.key, model.max_context, model.advised)

    return [list(names) for _, names in groupby(models, key=alike)]


def _kept(kv: KvShape) -> str:
    """KV cache bytes per token, and recurrent state bytes per sequence, if any."""
    state = f" + {format_bytes(kv.state_bytes)} a sequence" if kv.recurrent else ""
    return format_bytes(kv.bytes_per_token) + state


def _family(model: Model) -> str:
    """The family; in brackets, a larger model that it is part of, and its output if that is not tokens."""
    part = f" (of {model.part_of})" if model.part_of else ""
    return model.config.family + part + ("" if model.gives == "tokens" else f" ({model.gives})")


def _report(found: Composition, models: dict[str, Model], made: Plan) -> dict[str, Any]:
    aliases = {expert.name: expert.aliases for expert in found.experts}
    return {
        "composition": found.name,
        "left_out": {name: str(error) for name, error in found.left_out.items()},
        "machine": made.spec.name,
        **picked(made, "near_bytes", "router_bytes", "kv_bytes", "work_bytes", "total_bytes"),
        "base_bytes": dict(made.base_bytes),
        "kv_block_bytes": made.block_bytes,
        "experts": {
            name: {
                "family": model.config.family,
                "part_of": model.part_of,
                "weight_bytes": model.layout.size_bytes,
                "context": model.max_context,
                "architecture_key": model.key,
                "kv_bytes_per_token": model.kv.bytes_per_token,
                "state_bytes_per_sequence": model.kv.state_bytes,
                "base": made.base_of.get(name, ""),
                "draft": model.draft,
                "aliases": list(aliases.get(name, ())),
                "sampling": defaults_of(model),
                "activations": model.activations,
                "notes": list(model.advised.notes),
            }
            for name, model in models.items()
        },
    }


def plan_line(made: Plan) -> str:
    """One line: the memory for experts and KV cache, and how much of the composition fits at once."""
    tier = made.spec.run_tier
    share = min(1.0, made.near_bytes / made.total_bytes) if made.total_bytes else 1.0
    held = "all experts fit" if share == 1 else f"{share:.0%} of the experts' bytes fit"
    capacity = format_bytes(made.spec.tier(tier).capacity_bytes)
    near, kv, work = (format_bytes(size) for size in (made.near_bytes, made.kv_bytes, made.work_bytes))
    router = f"{format_bytes(made.router_bytes)} for the router's model, " if made.router_bytes else ""
    router += f"{format_bytes(made.bases_bytes)} for bases, " if made.base_bytes else ""
    return f"{tier}: {near} for experts ({held}), {router}{kv} for KV, {work} for the values of a step, of {capacity}"


def stored_line(size_bytes: int) -> str:
    """One line on the memory for stored responses, which is separate from the slabs."""
    return f"stored responses, while it serves: at most {format_bytes(size_bytes)} besides (--response-store)"


def budget_line(coterie: Serving) -> str:
    """`plan_line` of a running composition and its device's remarks since the plan was made; for each device."""
    lines = []
    for name, one in zip(coterie.names, coterie.members, strict=True):
        remarks = [note for note in one.parts.device.spec.notes if note not in one.plan.spec.notes]
        of = f"{name}: " if len(coterie.members) > 1 else ""
        lines += [f"{of}{plan_line(one.plan)}", *[f"note: {of}{remark}" for remark in remarks]]
    return "\n".join(lines)

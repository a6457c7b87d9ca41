"""`coterie plan`: how many of each machine, and which experts where, for a load and a promise.

Knows nothing about how it is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.cli.opening import opened_to_price
from coterie.cli.options import CompositionArg, JsonOpt, err, out, print_json, sentences
from coterie.cli.simulate import PROMPT, TOKENS, MachinesOpt, MixOpt, PromptOpt, SeedOpt, TokensOpt, write_page
from coterie.composition.composition import Composition
from coterie.core.errors import CapacityError, UsageError
from coterie.core.units import format_bytes, format_seconds
from coterie.models.model import Model
from coterie.plan.check import Check, check
from coterie.plan.follow import follow
from coterie.plan.mix import mix_named
from coterie.plan.paper.html import STYLE
from coterie.plan.paper.plots import check_plots, draw
from coterie.plan.paper.row import Chart, Series
from coterie.plan.place import place
from coterie.plan.prices import Demand
from coterie.plan.setups import OURS
from coterie.plan.simulate import Case, instruction_tokens, question_tokens
from coterie.plan.size import Answer, Wish, fewest, room_for, size, work
from coterie.plan.slo import Slo, parse_slo
from coterie.plan.workload import Load, lengths_named, make_workload
from coterie.spec.load import load_machine


@sentences
def planning(
    composition: CompositionArg,
    machine: MachinesOpt,
    rate: Annotated[float, typer.Option(metavar="PER_S", help="Requests per second, all machines together.")],
    slo: Annotated[str, typer.Option(metavar="LIMITS", help="ttft=1s,tpot=50ms,e2e=10s,share=0.95")],
    mix: MixOpt = "uniform",
    prompt: PromptOpt = PROMPT,
    tokens: TokensOpt = TOKENS,
    resident: Annotated[
        bool, typer.Option("--resident", help="Every expert in its machine's run tier, as in the paper's Figure 13.")
    ] = False,
    checked: Annotated[bool, typer.Option("--check", help="Let the simulation find the answer.")] = False,
    requests: Annotated[int, typer.Option(help="Requests of the check.")] = 1000,
    seed: SeedOpt = 7,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the curve of machines over experts.")] = None,
    json_: JsonOpt = False,
) -> None:
    """Find the smallest number of each machine that keeps a promise under a load, and where the experts go."""
    if html is not None:
        check_plots("--html")
    promised = parse_slo(slo)
    found, models = opened_to_price(composition)
    lengths = lengths_named(prompt, "--prompt"), lengths_named(tokens, "--tokens")
    load = Load(requests, mix_named(mix, found.names), *lengths, rate=rate, seed=seed)
    question_tokens(found, models, round(load.prompt.mean))  # refuses what no router could read
    wish = _wish(found, load, promised, resident)
    rows: list[dict[str, Any]] = []
    for name in machine:
        begun = perf_counter()
        try:
            answer = size(load_machine(name), found, models, wish)
        except (CapacityError, UsageError) as error:
            if len(machine) == 1:
                raise
            rows.append({"machine": name, "machines": None, "infeasible": str(error)})
            continue
        wall_s, said = perf_counter() - begun, None
        if checked:
            said = _checked(name, found, models, load, wish, answer)
            answer = follow(answer, said, found, models, wish)
        rows.append(_row(name, found, answer, wall_s) | _said(said))
    if html is not None:
        write_page(html, _page(found.name, rows))
    if json_:
        print_json({"composition": found.name, "rate_per_s": rate, "mix": mix, "slo": str(promised), "rows": rows})
        return
    _print(found, wish, mix, rows, checked)


def _wish(found: Composition, load: Load, promised: Slo, resident: bool) -> Wish:
    router = found.router.max_tokens if found.router is not None and found.router.model is not None else 0
    demand = Demand(load.prompt.mean, load.new.mean, router, OURS.policy, instruction_tokens(found))
    shares = load.mix.shares(len(found.names), load.seed)
    return Wish(shares, load.rate or 0.0, promised, demand, resident)


def _checked(
    name: str, found: Composition, models: Mapping[str, Model], load: Load, wish: Wish, answer: Answer
) -> Check:
    machine = answer.machine
    err.print(f"simulating {name}: {load.requests} requests", style="dim", markup=False)
    sizes, load_of, room = machine.sizes, work(machine, wish), room_for(machine, wish)
    return check(
        Case(found, models, machine.spec, OURS),
        make_workload(load, found.names),
        wish.slo,
        answer.estimate,
        fewest(sizes, load_of, room),
        lambda count: answer.placement if count == answer.estimate else place(sizes, load_of, count, room),
    )


def _said(said: Check | None) -> dict[str, Any]:
    if said is None:
        return {}
    kept = {str(count): judged.kept for count, judged in sorted(said.judged.items())}
    return {"check": {"machines": said.machines, "agrees": said.agrees, "kept": kept}}


def _row(name: str, found: Composition, answer: Answer, wall_s: float) -> dict[str, Any]:
    placement, worst = answer.placement, answer.worst
    return {
        "machine": name,
        "machines": placement.machines,
        "estimate": answer.estimate,
        "bound": answer.bound,
        "helps": [{"what": what, "load_factor": factor} for what, factor in answer.helps],
        "ttft_s": worst.ttft_s,
        "tpot_s": worst.tpot_s,
        "e2e_s": worst.e2e_s,
        "steps_share": worst.steps,
        "link_share": worst.link,
        "hit_rate": worst.hit_rate,
        "near_bytes": answer.machine.near_bytes,
        "bases_bytes": answer.machine.bases_bytes,
        "switch_s": float(answer.machine.switch_s.max()),
        "placement": [[found.names[number] for number in held] for held in placement.held],
        "replicated": [found.names[number] for number in placement.replicated],
        "method": placement.method,
        "method_why": placement.why,
        "curve": [{"experts": experts, "machines": count} for experts, count in answer.curve],
        "curve_load_factor": answer.curve_load,
        "wall_s": wall_s,
    }


def _print(found: Composition, wish: Wish, mix: str, rows: list[dict[str, Any]], checked: bool) -> None:
    out.print(
        f"{escape(found.name)}: {len(found.names)} experts, {wish.rate:g} requests/s, mix {escape(mix)}, {wish.slo}"
    )
    estimates = ["estimate"] if checked else []
    heads = "machine", "machines", *estimates, "TTFT", "TPOT", "steps", "link", "hits"
    table = Table(*(Column(head, overflow="fold") for head in heads))
    for row in rows:
        if row["machines"] is None:
            table.add_row(row["machine"], "none", *["-"] * (5 + checked))
            continue
        times = (format_seconds(row["ttft_s"]), format_seconds(row["tpot_s"]) if row["tpot_s"] else "-")
        shares = (f"{row['steps_share']:.0%}", f"{row['link_share']:.0%}", f"{row['hit_rate']:.0%}")
        counts = [str(row[name]) for name in ("machines", *estimates)]
        table.add_row(row["machine"], *counts, *times, *shares)
    out.print(table)
    for row in rows:
        _print_row(row)


def _print_row(row: Mapping[str, Any]) -> None:
    def say(text: str) -> None:
        out.print(f"  {row['machine']}: {text}", markup=False)

    if row["machines"] is None:
        say(row["infeasible"])
        return
    say(f"bound by {row['bound']}")
    best = ", ".join(f"{item['what']} {item['load_factor']:.2f}" for item in row["helps"][:3])
    say(f"load that the same machines could take, were one part 1.5 times as good: {best}")
    room, switch = format_bytes(row["near_bytes"]), format_seconds(row["switch_s"])
    beside = f" beside {format_bytes(row['bases_bytes'])} of bases" if row["bases_bytes"] else ""
    say(f"room for {room} of experts in the run tier{beside}; a switch of the largest takes {switch}")
    why = f": {row['method_why']}" if row["method_why"] else ""
    copied = f", {len(row['replicated'])} experts on several machines" if row["replicated"] else ""
    held = [len(names) for names in row["placement"]]
    each = f"{held[0]}" if min(held) == max(held) else f"{min(held)} to {max(held)}"
    say(f"placement by {row['method']}, {each} experts each{copied}{why}; planned in {format_seconds(row['wall_s'])}")
    load = row["curve_load_factor"]
    scaled = "" if load == 1 else f", estimated at {load:.2f} of the load"
    if load == 1 and row["estimate"] != row["machines"]:
        scaled = ", estimated but for the number asked about"
    counts = ", ".join(f"{p['experts']}: {p['machines'] or 'none'}" for p in row["curve"])
    say(f"experts: machines  {counts}{scaled}")
    if "check" in row:
        kept = ", ".join(
            f"{n} machine{'' if n == '1' else 's'} keep{'s' if n == '1' else ''} it for {share:.1%}"
            for n, share in row["check"]["kept"].items()
        )
        verdict = "as estimated" if row["check"]["agrees"] else f"the estimate was {row['estimate']}"
        say(f"simulated: {kept}; {verdict}")


def _page(title: str, rows: list[dict[str, Any]]) -> str:
    series = tuple(
        Series(
            row["machine"],
            tuple(p["experts"] for p in row["curve"]),
            tuple(p["machines"] or None for p in row["curve"]),
        )
        for row in rows
        if row["machines"] is not None
    )
    chart = Chart("Machines over experts", "lines", "experts", "machines", series)
    picture = draw(chart).decode()
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    body = f"<body><h1>{escape(title)}</h1>{picture[picture.index('<svg') :]}</body>"
    return f"{head}<style>{STYLE}</style></head>{body}</html>\n"

"""`coterie plan`: how many machines of each kind meet an SLO under a load, and which experts go where.

Knows nothing about how that is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer

from coterie.cli.opening import open_text_models
from coterie.cli.options import CompositionArg, JsonOpt, KvTypeOpt, err, out, picked, print_json, report_errors
from coterie.cli.plan_print import plan_page, print_plan
from coterie.cli.simulate import PROMPT, TOKENS, MachinesOpt, MixOpt, PromptOpt, SeedOpt, TokensOpt, write_page
from coterie.composition.composition import Composition
from coterie.core.errors import CapacityError, UsageError
from coterie.models.model import AUTO
from coterie.plan.candidates import Goal, load_of_experts, room_for
from coterie.plan.check import Check, check, follow
from coterie.plan.choose import Choice, Limits, Option, choices, parse_power
from coterie.plan.known import provenance
from coterie.plan.mix import mix_named
from coterie.plan.offered_load import OfferedLoad, from_file, from_options
from coterie.plan.paper.plots import check_plots
from coterie.plan.partition import Part, by_model, whole
from coterie.plan.prices import Demand
from coterie.plan.setups import OURS
from coterie.plan.simulate import Case, instruction_tokens, question_tokens
from coterie.plan.size import Answer, fewest, placed, size
from coterie.plan.slo import Slo, parse_slo
from coterie.plan.workload import Load, lengths_named
from coterie.plan.workload_file import read_workload
from coterie.spec.load import load_machine, without_setting
from coterie.spec.machine import MachineSpec

RateOpt = Annotated[
    float | None,
    typer.Option(metavar="PER_S", help="Requests per second, for all machines together; a --workload has its own."),
]
WorkloadOpt = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A .csv or .jsonl of requests, like public LLM traces: gives lengths, experts and the busiest minute.",
    ),
]
ReusedOpt = Annotated[
    float, typer.Option(min=0, metavar="TOKENS", help="Tokens of a prompt that prefix caching finds computed.")
]
BusyOpt = Annotated[
    float, typer.Option(metavar="SHARE", help="Highest utilisation of compute and of each link: 0.8 leaves headroom.")
]
MaxPriceOpt = Annotated[
    float | None,
    typer.Option(metavar="MONEY", help="Budget for all machines, by the price of each (--machine NAME:price=...)."),
]
ResidentOpt = Annotated[
    bool,
    typer.Option(
        "--resident", help="Keep every expert resident in its machine's run tier, as in the paper's Figure 13."
    ),
]


@report_errors
def planning(
    composition: CompositionArg,
    machine: MachinesOpt,
    slo: Annotated[str, typer.Option(metavar="LIMITS", help="ttft=1s,tpot=50ms,e2e=10s,share=0.95")],
    rate: RateOpt = None,
    mix: MixOpt = "uniform",
    prompt: PromptOpt = PROMPT,
    tokens: TokensOpt = TOKENS,
    workload: WorkloadOpt = None,
    each: Annotated[bool, typer.Option("--apart", help="Separate machines for the experts of each model.")] = False,
    reused: ReusedOpt = 0.0,
    busy: BusyOpt = 1.0,
    max_power: Annotated[str, typer.Option(metavar="POWER", help="Power budget for all machines, e.g. 20kW.")] = "",
    max_price: MaxPriceOpt = None,
    resident: ResidentOpt = False,
    kv_type: KvTypeOpt = AUTO,
    checked: Annotated[bool, typer.Option("--check", help="Check the answer by simulation.")] = False,
    requests: Annotated[int, typer.Option(help="Requests to simulate with --check; of a file, its first ones.")] = 1000,
    seed: SeedOpt = 7,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with the number of machines over the number of experts."),
    ] = None,
    json_: JsonOpt = False,
) -> None:
    """Find the smallest number of each machine that meets an SLO under a load, and where the experts go."""
    if html is not None:
        check_plots("--html")
    promised = _slo_of(slo, busy)
    limits = Limits(parse_power(max_power, "--max-power") if max_power else None, max_price)
    found, models = open_text_models(composition, kv_type)
    mixed = mix_named(mix, found.names)
    if workload is not None:
        read = read_workload(workload, found.names, mixed, seed, None)
        asked = from_file(read.within(min(model.max_context for model in models.values()), clip=False), rate)
    elif rate is not None:
        lengths = lengths_named(prompt, "--prompt"), lengths_named(tokens, "--tokens")
        asked = from_options(Load(requests, mixed, *lengths, rate=rate, seed=seed), found.names)
    else:
        raise UsageError("--rate", "is missing", "give the requests per second, or --workload FILE")
    _check_reused(reused, asked, checked)
    question_tokens(found, models, round(asked.prompt_tokens))  # raises if prompts are too long for the router
    parts = by_model(found, models, asked.shares) if each else (whole(found, models, asked.shares),)
    goals = [_goal(part, asked, promised, resident, reused) for part in parts]
    rows = _planned_rows(machine, parts, goals, asked if checked else None, requests)
    in_all = _totals(rows, len(parts))
    if html is not None:
        write_page(html, plan_page(found.name, rows))
    if json_:
        print_json(_report(found, asked, mix, promised, rows, in_all, limits))
        return
    head = f"{found.name}: {len(found.names)} experts, {asked.description}, {promised}"
    print_plan(head, rows, checked, in_all, limits)
    if asked.assumes:
        out.print(asked.assumes, style="dim")
    _say_idle(found, parts)


def _slo_of(slo: str, busy: float) -> Slo:
    if not 0 < busy <= 1:
        raise UsageError("--busy", f"is {busy:g}", "give a share of the time, above 0 and up to 1")
    return replace(parse_slo(slo), busy=busy)


def _planned_rows(
    machines: Sequence[str], parts: Sequence[Part], goals: Sequence[Goal], to_check: OfferedLoad | None, requests: int
) -> list[dict[str, Any]]:
    """A row for each machine and part. If there is only one machine and no number of it suffices, raises its error."""
    specs, rows = {without_setting(ref, "price"): load_machine(ref) for ref in machines}, []
    for number, (part, goal) in enumerate(zip(parts, goals, strict=True)):
        for name, spec in specs.items():
            row = _planned(name, spec, part, goal, to_check, requests)
            error = row.pop("error", None)
            if error is not None and len(specs) == len(parts) == 1:
                raise error
            rows.append({"part": number, "experts": part.label, "rate_per_s": goal.rate} | row)
    return rows


def _totals(rows: Sequence[Mapping[str, Any]], parts: int) -> tuple[Choice, ...]:
    """Total costs of the machines for all parts; empty if no machine suffices for some part."""
    options = [
        Option(row["part"], row["machine"], row["machines"], row["power_w"], row["price"])
        for row in rows
        if row["machines"] is not None
    ]
    return choices(options) if len({option.part for option in options}) == parts else ()


def _say_idle(found: Composition, parts: Sequence[Part]) -> None:
    planned = {number for part in parts for number in part.numbers}
    if idle := [name for number, name in enumerate(found.names) if number not in planned]:
        some = f"{', '.join(idle[:5])}{' ...' if len(idle) > 5 else ''}"
        err.print(f"left out, as nobody asks for them: {some} ({len(idle)})", markup=False)


def _check_reused(reused: float, asked: OfferedLoad, checked: bool) -> None:
    if reused >= asked.prompt_tokens:
        fact = f"is {reused:g} of {asked.prompt_tokens:g} tokens of a prompt"
        raise UsageError("--reused", fact, "give fewer: at least the last token is computed")
    if reused and checked:
        raise UsageError("--reused", "has no meaning in a simulation, whose prompts share nothing", "leave --check out")


def _goal(part: Part, asked: OfferedLoad, promised: Slo, resident: bool, reused: float) -> Goal:
    found = part.composition
    router = found.router.max_tokens if found.router is not None and found.router.model is not None else 0
    instruction = instruction_tokens(found)
    demand = Demand(asked.prompt_tokens, asked.new_tokens, router, OURS.policy, instruction, reused)
    return Goal(part.shares, asked.rate * part.of_all, promised, demand, resident)


def _planned(
    name: str, spec: MachineSpec, part: Part, goal: Goal, to_check: OfferedLoad | None, requests: int
) -> dict[str, Any]:
    """One row; if no number of these machines suffices, with the reason."""
    start_s = perf_counter()
    try:
        answer = size(spec, part.composition, part.models, goal)
    except (CapacityError, UsageError) as error:
        return {"machine": name, "machines": None, "infeasible": str(error), "error": error}
    wall_s, verdict = perf_counter() - start_s, None
    if to_check is not None:
        verdict = _checked(name, part, to_check, requests, goal, answer)
        answer = follow(answer, verdict, part.composition, part.models, goal)
    return _row(name, part, answer, wall_s) | _check_fields(verdict)


def _checked(name: str, part: Part, asked: OfferedLoad, requests: int, goal: Goal, answer: Answer) -> Check:
    machine = answer.machine
    load = asked.of(part.numbers, part.composition.names, requests)
    err.print(f"simulating {name}: {len(load)} requests", style="dim", markup=False)
    least = fewest(machine.sizes, load_of_experts(machine, goal), room_for(machine, goal))
    return check(
        Case(part.composition, part.models, machine.spec, OURS),
        load,
        goal.slo,
        answer.estimate,
        least,
        lambda count: answer.placement if count == answer.estimate else placed(machine, goal, count),
    )


def _check_fields(verdict: Check | None) -> dict[str, Any]:
    if verdict is None:
        return {}
    kept = {str(count): judged.attained for count, judged in sorted(verdict.judged.items())}
    return {"check": {"machines": verdict.machines, "agrees": verdict.agrees, "kept": kept}}


def _row(name: str, part: Part, answer: Answer, wall_s: float) -> dict[str, Any]:
    placement, worst, spec, found = answer.placement, answer.worst, answer.machine.spec, part.composition
    return {
        "machine": name,
        "machines": placement.machines,
        "estimate": answer.estimate,
        "bound": answer.bound,
        "helps": [{"what": what, "load_factor": factor} for what, factor in answer.helps],
        **picked(worst, "ttft_s", "tpot_s", "e2e_s", "hit_rate", "switches_per_s"),
        "steps_share": worst.steps,
        "link_share": worst.link,
        "known_by": provenance(spec, part.models.values()),
        "power_w": placement.machines * spec.power_w or None,
        "price": placement.machines * spec.price or None,
        **picked(answer.machine, "near_bytes", "bases_bytes"),
        "switch_s": float(answer.machine.switch_s.max()),
        "placement": [[found.names[number] for number in held] for held in placement.held],
        "replicated": [found.names[number] for number in placement.replicated],
        "method": placement.method,
        "method_why": placement.why,
        "curve": [{"experts": experts, "machines": count} for experts, count in answer.curve],
        "curve_load_factor": answer.curve_load,
        "wall_s": wall_s,
    }


def _report(
    found: Composition,
    asked: OfferedLoad,
    mix: str,
    promised: Slo,
    rows: list[dict[str, Any]],
    in_all: tuple[Choice, ...],
    limits: Limits,
) -> dict[str, Any]:
    totals = [
        {
            **picked(choice, "name", "machines", "power_w", "price"),
            "each": [picked(option, "part", "machine", "machines") for option in choice.options],
            "exceeds": choice.exceeds(limits),
        }
        for choice in in_all
    ]
    head = {"composition": found.name, "rate_per_s": asked.rate, "mix": mix, "slo": str(promised)}
    note = "; ".join(filter(None, ("modelled; routes given, tokens synthetic", asked.assumes)))
    return head | {"rows": rows, "in_all": totals, "note": note}

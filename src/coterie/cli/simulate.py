"""`coterie simulate`: simulates a composition under a load on modelled machines.

Knows nothing about how it is simulated.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from coterie.cli.in_parallel import in_parallel
from coterie.cli.opening import open_text_models
from coterie.cli.options import (
    CompositionArg,
    JsonOpt,
    KvOpt,
    KvTypeOpt,
    LowPriorityOpt,
    NearOpt,
    err,
    out,
    print_json,
    report_errors,
    save_trace,
    write_text,
)
from coterie.cli.progress import counted
from coterie.composition.composition import Composition
from coterie.core.errors import UsageError
from coterie.core.trace import Trace
from coterie.core.units import format_bytes, format_count, format_seconds
from coterie.engine.bases import bases_of
from coterie.engine.recording import MAX_WORKS
from coterie.models.model import AUTO, Model
from coterie.plan.known import provenance
from coterie.plan.mix import F64, MIXES, mix_named
from coterie.plan.outcome import SYNTHETIC, outcome
from coterie.plan.paper.plots import check_plots
from coterie.plan.setups import OURS, SETUPS, setup_named
from coterie.plan.simulate import Case, simulate
from coterie.plan.simulate_page import LITTLE, page
from coterie.plan.slo import parse_slo
from coterie.plan.workload import ARRIVALS, POISSON, Load, Workload, lengths_named, make_workload
from coterie.plan.workload_file import read_workload
from coterie.spec.load import load_machine

MachinesOpt = Annotated[
    list[str],
    typer.Option(
        "--machine",
        metavar="MACHINE",
        help="A machine's name, with settings if need be, as in dgx-h100:host_links=8; repeatable.",
    ),
]
RequestsOpt = Annotated[int | None, typer.Option(help="Number of requests; of a file, its first ones.")]
RateOpt = Annotated[float | None, typer.Option(metavar="PER_S", help="Requests per second (open loop).")]
InFlightOpt = Annotated[int | None, typer.Option(help="Concurrent requests (closed loop).")]
ArrivalsOpt = Annotated[str, typer.Option(help=", ".join(ARRIVALS))]
MixOpt = Annotated[str, typer.Option(help=f"{', '.join(MIXES)}, zipf:1.2, or a .csv or .json of measured counts.")]
PromptOpt = Annotated[
    str, typer.Option("--prompt", metavar="TOKENS", help="Tokens of a prompt: 128, uniform:64:256, lognormal:128:0.8.")
]
TokensOpt = Annotated[
    str, typer.Option("--tokens", metavar="TOKENS", help="Tokens of an answer: 20, geometric:20 and so on.")
]
SloOpt = Annotated[str, typer.Option(metavar="LIMITS", help="ttft=1s,tpot=50ms,e2e=10s,share=0.95")]
PROMPT, TOKENS = "128", "20"
LONG = 50_000  # requests from which a simulation takes minutes; compiling the code first takes one
COMPILER = Path(__file__).parents[3] / "benchmarks" / "compiled.py"  # exists in a source tree, not in a compiled copy
SeedOpt = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn at random.")]


@report_errors
def simulation(
    composition: CompositionArg,
    machine: MachinesOpt,
    policy: Annotated[list[str] | None, typer.Option(help=f"{', '.join(SETUPS)}; repeatable.")] = None,
    requests: RequestsOpt = None,
    rate: RateOpt = None,
    in_flight: InFlightOpt = None,
    arrivals: ArrivalsOpt = POISSON,
    mix: MixOpt = "uniform",
    prompt: PromptOpt = PROMPT,
    tokens: TokensOpt = TOKENS,
    workload: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .csv or .jsonl of requests, like public LLM traces.")
    ] = None,
    clip: Annotated[bool, typer.Option("--clip", help="Cut requests that are longer than the context.")] = False,
    low_priority_share: LowPriorityOpt = 0.0,
    seed: SeedOpt = 7,
    slo: SloOpt = "",
    steps: Annotated[int, typer.Option(min=1, help="Maximum decode steps per run: larger values simulate faster.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Processes: each simulates one machine and policy.")] = 1,
    near: NearOpt = None,
    kv: KvOpt = None,
    kv_type: KvTypeOpt = AUTO,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Timelines for Perfetto, a file per run.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one page with distributions.")] = None,
    json_: JsonOpt = False,
) -> None:
    """Simulate a workload in modelled time with the engine that serves for real; compares machines and policies."""
    if html is not None:
        check_plots("--html")
    _check_once("--machine", machine)
    _check_once("--policy", policy or [])
    promised = parse_slo(slo) if slo else None
    found, models = open_text_models(composition, kv_type)
    chosen = mix_named(mix, found.names)
    if workload is not None:
        _check_left_out(rate, in_flight, arrivals, prompt, tokens, low_priority_share)
        load = read_workload(workload, found.names, chosen, seed, requests)
    else:
        lengths = lengths_named(prompt, "--prompt"), lengths_named(tokens, "--tokens")
        count = 1000 if requests is None else requests
        drawn = Load(count, chosen, *lengths, rate, in_flight, arrivals, seed, low_priority_share)
        load = make_workload(drawn, found.names)
    load = load.within(min(model.max_context for model in models.values()), clip)
    cases = [
        (name, Case(found, models, load_machine(name), setup_named(how), near, kv, MAX_WORKS if trace else 0, steps))
        for name, how in product(machine, policy or [OURS.name])
    ]
    _suggest_compiled_copy(len(load) * len(cases))

    def one(number: int) -> tuple[dict[str, Any], tuple[F64, F64], Trace | None]:
        name, case = cases[number]
        start_s = perf_counter()
        with counted(f"{name}, {case.setup.name}", len(load), shown=min(jobs, len(cases)) == 1) as tell:
            served = simulate(case, load, tell)
        row = outcome(name, case.setup.name, load, served, promised, perf_counter() - start_s)
        return row, (served.first_s, served.last_s), served.trace

    rows, curves = [], {}
    for (name, case), (row, curve, recorded) in zip(cases, in_parallel(one, len(cases), jobs), strict=True):
        rows.append(row)
        curves[f"{name}, {case.setup.name}"] = curve
        if trace is not None and recorded is not None:
            save_trace(_of_run(trace, name, case, len(cases)), recorded)
    if html is not None:
        write_page(html, page(f"{found.name}: {_workload_line(load)}", rows, curves))
    if json_:
        print_json({"composition": found.name, "workload": dict(load.facts or {}), "rows": rows, "note": SYNTHETIC})
        return
    _print(found, models, load, rows, [case for _, case in cases])


def _check_left_out(
    rate: float | None, in_flight: int | None, arrivals: str, prompt: str, tokens: str, low_priority_share: float
) -> None:
    if (
        rate is not None
        or in_flight is not None
        or (arrivals, prompt, tokens, low_priority_share) != (POISSON, PROMPT, TOKENS, 0)
    ):
        remedy = "leave --rate, --in-flight, --arrivals, --prompt, --tokens and --behind out"
        raise UsageError("--workload", "a file has its own arrivals, lengths and priorities", remedy)


def _suggest_compiled_copy(requests: int) -> None:
    if requests >= LONG and COMPILER.is_file():
        command = f'make simulate WORDS="{shlex.join(sys.argv[2:])}"'
        err.print(f"in about half of the time, by a compiled copy (made once, in a minute): {command}", markup=False)


def _check_once(option: str, names: Sequence[str]) -> None:
    """Refuse repeated names: the second run would give the same result, and overwrite the first in files and pages."""
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise UsageError(
            option, f"{twice} is named {names.count(twice)} times", "name it once: it would do the same again"
        )


def _of_run(path: Path, name: str, case: Case, runs: int) -> Path:
    safe = name.replace(":", "-").replace("/", "-")
    return path if runs == 1 else path.with_name(f"{path.stem}-{safe}-{case.setup.name}{path.suffix}")


def write_page(path: Path, text: str) -> None:
    """Write a page and report it on stderr. Raises UsageError."""
    write_text(path, text, "--html")
    err.print(f"report: {path}", markup=False)


def _workload_line(load: Workload) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in (load.facts or {}).items())


def _print(
    found: Composition,
    models: Mapping[str, Model],
    load: Workload,
    rows: Sequence[Mapping[str, Any]],
    cases: Sequence[Case],
) -> None:
    whole = {name: model for name, model in models.items() if name in found.names} | bases_of(models)
    total = sum(model.layout.size_bytes for model in whole.values())
    what = f"{format_count(len(found.experts), 'expert')}, {format_bytes(total)}"
    out.print(f"{escape(found.name)}: {what}; {_workload_line(load)}")
    table = Table(
        Column("", overflow="fold"), *(Column(f"{row['machine']}\n{row['policy']}", overflow="fold") for row in rows)
    )
    for label, show in _LINES.items():
        table.add_row(label, *(escape(show(row)) for row in rows))
    for priority in rows[0].get("priorities", ()):
        of = [row["priorities"][priority] for row in rows]
        table.add_row(f"priority {priority}, requests", *(str(its["requests"]) for its in of))
        table.add_row("  time to first token p50, p95, p99", *map(_times("ttft"), of))
        table.add_row("  to the last token p50, p95, p99", *map(_times("e2e"), of))
    if "slo" in rows[0]:
        table.add_row("SLO kept", *(f"{row['slo_kept']:.1%}{'' if row['slo_met'] else ' (not met)'}" for row in rows))
    out.print(table)
    for row in rows:
        out.print(f"  {row['machine']}, {row['policy']}: bound by {row['bound']}", markup=False)
    for case in {case.spec.name: case for case in cases}.values():
        out.print(
            f"  {case.spec.name}: times by {provenance(case.spec, case.models.values())}", markup=False, style="dim"
        )
    for note in dict.fromkeys(note for case in cases for note in case.spec.notes):
        out.print(f"  {note}", markup=False, style="dim")
    if "slo" in rows[0]:
        out.print(f"  SLO: {rows[0]['slo']}", markup=False)
    out.print(f"  modelled time; {SYNTHETIC}", markup=False)


def _times(name: str) -> Any:
    return lambda row: ", ".join(_time(row[f"{name}_p{p}_s"]) for p in (50, 95, 99))


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else format_seconds(seconds)


def _shares(row: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} {share:.1%}" for name, share in row["utilisation"].items() if share >= LITTLE)


def _memory(row: Mapping[str, Any]) -> str:
    made = row["footprint"]
    parts = [f"{format_bytes(made['near_bytes'])} experts ({made['near_share']:.0%} of all)"]
    parts += [f"{format_bytes(made['kv_bytes'])} KV"]
    parts += [f"{format_bytes(made['router_bytes'])} router"] if made["router_bytes"] else []
    parts += [f"{format_bytes(made['bases_bytes'])} bases"] if made["bases_bytes"] else []
    return "\n".join([f"{made['run_tier']} of {format_bytes(made['run_tier_bytes'])}:", *parts])


_LINES: Mapping[str, Any] = {
    "time to first token p50, p95, p99": _times("ttft"),
    "of it, routed after p50, p95, p99": _times("routed"),
    "time per output token p50, p95, p99": _times("tpot"),
    "to the last token p50, p95, p99": _times("e2e"),
    "requests/s": lambda row: f"{row['requests_per_s']:.4g}",
    "tokens/s": lambda row: f"{row['tokens_per_s']:.4g}",
    "switches, per request": lambda row: f"{row['switches']}, {row['switches_per_request']:.3f}",
    "switch, mean": lambda row: _time(row["switch_mean_s"]),
    "resident when asked": lambda row: f"{row['hit_rate']:.1%}",
    "used": _shares,
    "memory": _memory,
    "loading who is asked for, before": lambda row: format_seconds(row["warm_up_s"]),
    "simulated in": lambda row: f"{format_seconds(row['wall_s'])}, {row['requests'] / row['wall_s']:.0f} requests/s",
}

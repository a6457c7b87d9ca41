"""Compares several servers of the same models on the same requests, in turns.

    round 1:  ours, llama-server      while one is measured, the others are idle
    round 2:  ours, llama-server

Failed requests count no tokens and have no time to first token, but the round lasts until its last request has ended,
in whatever way.
Knows nothing about how servers are started (serve_started.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from coterie.bench.coe_run import priority_notes
from coterie.bench.http_stream import Origin
from coterie.bench.report import Report, Spread, paired_ratio
from coterie.bench.serve_processes import watched
from coterie.bench.serve_requests import RoundRequests, Way, draw_round, own_seeds
from coterie.bench.serve_rounds import Cell, counting, measured, over_http, workload_of
from coterie.bench.serve_rows import Round, cells_of, errors_of, row_of
from coterie.bench.serve_started import Server, by_command, models_at, ours, words_of
from coterie.core.errors import UsageError
from coterie.core.units import format_bytes
from coterie.plan.workload import Load


@dataclass(frozen=True, slots=True)
class Against:
    """What is compared: our server on a composition (empty: none) with `options`, running servers, and command lines.

    `cold`: folders whose files are kept out of the page cache while any server is measured.
    """

    composition: str
    options: tuple[str, ...]
    origins: tuple[Origin, ...]
    commands: tuple[str, ...]
    cold: tuple[str, ...] = ()


@contextmanager
def servers_of(against: Against, say: Callable[[str], None]) -> Iterator[tuple[Server, ...]]:
    """All servers, running, with distinct names. Raises UsageError, and DeviceError for one that does not start."""
    for command in against.commands:
        words_of(command)  # report mistakes before anything is started
    with ExitStack() as stack:
        found = []
        if against.composition:
            say("starting coterie serve")
            found.append(stack.enter_context(ours(against.composition, against.options)))
        found += [Server(f"{origin.host}:{origin.port}", origin) for origin in against.origins]
        for command in against.commands:
            say(f"starting {command}")
            found.append(stack.enter_context(by_command(command)))
        names = [server.name for server in found]
        yield tuple(
            replace(server, name=f"{server.name} {number + 1}") if names.count(server.name) > 1 else server
            for number, server in enumerate(found)
        )


def common_models(servers: Sequence[Server]) -> list[str]:
    """The models that all servers list, in the first one's order. Raises UsageError if there are none."""
    found = {server.name: models_at(server.origin) for server in servers}
    common = [name for name in found[servers[0].name] if all(name in names for names in found.values())]
    if not common:
        said = "; ".join(f"{name} has {', '.join(names[:4])}" for name, names in found.items())
        raise UsageError(
            "--against", f"no model has the same name at all servers: {said}", "name files and folders alike"
        )
    return common


def serve_against(
    servers: Sequence[Server],
    models: Sequence[str],
    loads: Sequence[Load],
    rounds: int,
    way: Way,
    against: Against,
    say: Callable[[str], None],
) -> Report:
    """Measure all servers with each load. Raises UsageError if one answers no request."""
    files = _files(against.cold)
    count = dict.fromkeys(models, counting(servers[0].origin, way, models[0]))
    loads = own_seeds(loads, rounds)
    ways = {server.name: partial(_round, server, way, files) for server in servers}
    runs = []
    for load in loads:
        draw = partial(draw_round, load, models, count=count)
        runs.append(_run(measured(load, draw, ways, rounds, say)))
    own = [" ".join(["coterie", "serve", against.composition, *against.options])] if against.composition else []
    workload = {
        "servers": {server.name: server.origin.url for server in servers},
        "commands": [*own, *against.commands],
        "models": len(models),
        "cold": list(against.cold),
        **workload_of(loads, rounds, way),
    }
    return Report("serve-against", workload, {"runs": runs}, (_table(runs),), _notes(runs))


def _files(folders: Sequence[str]) -> list[Path]:
    found = []
    for folder in folders:
        inside = [file for file in Path(folder).rglob("*") if file.is_file()]
        if not inside:
            raise UsageError("--cold", f"there are no files in {folder!r}", "name the folder of the models' files")
        found += inside
    return found


def _round(server: Server, way: Way, files: Sequence[Path], drawn: RoundRequests) -> Round:
    before_s = None if server.processes is None else server.processes.cpu_s()
    with watched(server.processes, files) as watch:
        driven = over_http(server.origin, way, drawn)
    after_s = None if server.processes is None else server.processes.cpu_s()
    took_s = None if before_s is None or after_s is None else after_s - before_s
    return Round(driven.answers, driven.elapsed_s, took_s, None, driven.client_cpu_s, watch.peak_bytes)


def _run(cell: Cell) -> dict[str, Any]:
    """A row for each server, and the first one's ratios to each other: tokens per second, and per second of CPU."""
    first, *others = cell.rounds
    over = {name: _beside(cell.rounds[first], cell.rounds[name]) for name in others}
    return {**cell.head, "servers": {name: row_of(rounds) for name, rounds in cell.rounds.items()}, "over": over}


def _beside(own: Sequence[Round], other: Sequence[Round]) -> dict[str, Any]:
    rates = paired_ratio([one.tokens_per_s for one in own], [one.tokens_per_s for one in other])
    known = [one.cpu_s_per_token for one in own], [one.cpu_s_per_token for one in other]
    cpu = None
    if all(value for values in known for value in values):
        cpu = asdict(paired_ratio([value or 0 for value in known[1]], [value or 0 for value in known[0]]))
    return {"tokens_per_s": asdict(rates), "tokens_per_cpu_s": cpu}


def _table(runs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("requests", "server", "requests/s", "tokens/s", "TTFT p50, p90, p99", "TPOT p50, p99")
    for head in ("CPU s a 1000 tokens", "memory, at most", "errors"):
        table.add_column(head)
    for run in runs:
        for name, row in run["servers"].items():
            held = row["peak_bytes"]
            memory = "-" if held is None else format_bytes(held)
            table.add_row(run["loop"], name, *cells_of(row), memory, errors_of(row))
    return table


def _notes(runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    notes = [
        "TTFT: from when a request is due to the first text; TPOT: from there to the last text, a token",
        "memory: of all processes of a server, mapped files included, seen every half second",
    ]
    for run in runs:
        first = next(iter(run["servers"]))
        for name, beside in run["over"].items():
            line = f"{run['loop']}: {first}: {Spread(**beside['tokens_per_s'])} x the tokens/s of {name}"
            cpu = beside["tokens_per_cpu_s"]
            notes.append(line if cpu is None else f"{line}, {Spread(**cpu)} x its tokens a second of CPU")
        for name, row in run["servers"].items():
            notes += [f"{run['loop']}, {name}: {kind}: {words}" for kind, words in row["said"].items()]
            notes += priority_notes(f"{run['loop']}, {name}", row)
    return tuple(notes)

"""What a client of the HTTP endpoint gets, and of our own server what HTTP costs beside the same engine in process.

    round 1:  over HTTP, in process      the same requests, each round new ones
    round 2:  over HTTP, in process

The client is in another process than the server, on the same machine, and its CPU time is told beside the server's.
Knows nothing about how requests are sent (serve_drive.py) or a server is started (serve_own.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coterie.api import Coterie, Options
from coterie.api.assemble import make_spec
from coterie.api.opened import open_all
from coterie.bench.experts import experts_in_turn
from coterie.bench.http_stream import Origin, origin_of
from coterie.bench.report import Effort, Report, interleave, paired_ratio
from coterie.bench.serve_asked import Asked, Way, draw_round, encoded, round_of
from coterie.bench.serve_drive import drive
from coterie.bench.serve_own import OwnServer, in_process, own_server
from coterie.bench.serve_rows import Round, notes_of, row_of, table_of
from coterie.bench.words import WORDS, said, write_tokenizer
from coterie.composition.composition import COMPOSITION_FILE, load_composition
from coterie.composition.toml import to_toml
from coterie.core.errors import UsageError
from coterie.engine.bases import bases_of, size_of
from coterie.memory.slab import round_up
from coterie.plan.workload import Load
from coterie.spec.this_machine import this_machine

HTTP, IN_PROCESS = "http", "in_process"
PROBES = (1, 65)  # words of two texts by which it is seen how many tokens a server makes of them
NEAR_SHARE = 0.25  # of memory, for the experts of each of the two engines, where nobody says how much


@dataclass(frozen=True, slots=True)
class Own:
    """Our own server: on a composition, or where that is empty on random experts of these shapes in turn."""

    composition: str
    names: tuple[str, ...]
    shapes: tuple[Mapping[str, Any], ...] = ()
    near_bytes: int | None = None
    kv_bytes: int | None = None
    threads: int | None = None


@dataclass(slots=True)
class _Cell:
    """One loop of the grid: its rounds, by the way they went."""

    load: Load
    rounds: dict[str, list[Round]] = field(default_factory=dict)

    def warm(self) -> None:
        """Forget the first rounds: they warmed up."""
        for found in self.rounds.values():
            del found[:1]


def random_names(count: int) -> tuple[str, ...]:
    """The names of so many random experts."""
    return tuple(f"expert-{number:03d}" for number in range(count))


def serve_own(own: Own, loads: Sequence[Load], rounds: int, way: Way, say: Callable[[str], None]) -> Report:
    """Measure our server with each load, beside its engine in process.

    Raises UsageError, CapacityError, and DeviceError where the server does not start.
    """
    with _composition(own, say) as ref, Coterie.open(ref, _options(ref, own)) as coterie:
        names = own.names
        _check_context(min(coterie.models[name].max_context for name in names), loads, rounds, names)
        count = {name: partial(_tokens, coterie, way, name) for name in names}
        made = coterie.plan
        sizes = ("--near", f"{made.near_bytes + made.bases_bytes} B", "--kv", f"{made.kv_bytes} B")
        threads = ("--threads", str(own.threads)) if own.threads else ()
        say("starting a server")
        with own_server(ref, (*sizes, *threads)) as server:
            origin = origin_of(server.url, {})
            cells = []
            for load in loads:
                cells.append(_Cell(load))
                asked = partial(draw_round, load, names, count=count)
                ways = {
                    HTTP: _each_round(cells[-1], HTTP, asked, partial(_over_http, origin, way, server)),
                    IN_PROCESS: _each_round(cells[-1], IN_PROCESS, asked, partial(_in_process, coterie, way)),
                }
                _measure(cells[-1], ways, rounds, say)
        workload = {
            "composition": own.composition or "random",
            "experts": len(names),
            "expert_bytes": [min(made.expert_bytes.values()), max(made.expert_bytes.values())],
            "near_bytes": made.near_bytes,
            "kv_bytes": made.kv_bytes,
            "threads": own.threads or this_machine().units,
        }
    return _report(cells, {**workload, **_asked_for(loads, rounds, way)})


def serve_url(
    origin: Origin, models: Sequence[str], loads: Sequence[Load], rounds: int, way: Way, say: Callable[[str], None]
) -> Report:
    """Measure a server that runs, ours or another, as far as can be seen from outside.

    Raises UsageError where it answers nothing.
    """
    cells = []
    count = dict.fromkeys(models, _counting(origin, way, models[0]))
    for load in loads:
        cells.append(_Cell(load))
        asked = partial(draw_round, load, models, count=count)
        ways = {HTTP: _each_round(cells[-1], HTTP, asked, partial(_over_http, origin, way, None))}
        _measure(cells[-1], ways, rounds, say)
    return _report(cells, {"url": origin.url, "models": list(models), **_asked_for(loads, rounds, way)})


@contextmanager
def _composition(own: Own, say: Callable[[str], None]) -> Iterator[str]:
    """What is served: what was given, or random experts that are gone afterwards."""
    if own.composition:
        yield own.composition
        return
    with (
        experts_in_turn(own.shapes, len(own.names), say) as models,
        TemporaryDirectory(prefix="coterie-bench-") as folder,
    ):
        for model in models:
            write_tokenizer(model.checkpoint.path, model.config.vocab_size)
        experts = [
            {"name": name, "checkpoint": str(model.checkpoint.path)}
            for name, model in zip(own.names, models, strict=True)
        ]
        file = Path(folder) / COMPOSITION_FILE
        file.write_text(to_toml({"name": "random", "expert": experts}), encoding="utf-8")
        yield str(file)


def _options(ref: str, own: Own) -> Options:
    """Of both engines, which are in memory at once."""
    options = Options(near_bytes=own.near_bytes, kv_bytes=own.kv_bytes, threads=own.threads)
    if own.near_bytes is not None:
        return options
    spec = make_spec(options)
    models = open_all(load_composition(ref), options.device).models
    bases = bases_of(models)
    sizes = [round_up(model.layout.size_bytes) for name, model in models.items() if name not in bases]
    room, shared = int(spec.tier(spec.run_tier).capacity_bytes * NEAR_SHARE), size_of(bases)
    near = shared + max(min(sum(sizes), room - shared), *sizes)
    return Options(near_bytes=near, kv_bytes=own.kv_bytes, threads=own.threads)


def _check_context(context: int, loads: Sequence[Load], rounds: int, names: Sequence[str]) -> None:
    drawn = (round_of(load, number, names) for load in loads for number in range(rounds + 1))
    longest = max(one.longest for one in drawn)
    if longest > context:
        fact = f"a request has {longest} tokens of prompt and answer, but the context holds {context}"
        raise UsageError("--prompt and --max-tokens", fact, "ask for fewer")


def _tokens(coterie: Coterie, way: Way, name: str, text: str) -> int:
    return len(encoded(coterie.texts[name], way.query(name, text)))


def _counting(origin: Origin, way: Way, model: str) -> Callable[[str], int]:
    """About how many tokens a text is to a server, by its own count of one word and of many; else a token a word."""
    few, many = (said(WORDS[:words]) for words in PROBES)
    answers = drive(origin, way.path, [way.body(model, text, 1) for text in (few, many)], 1).answers
    found = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
    words = PROBES if len(found) < len(PROBES) else found
    return lambda text: round(
        words[0] + (words[1] - words[0]) / (PROBES[1] - PROBES[0]) * (text.count(" ") - PROBES[0])
    )


def _each_round(
    cell: _Cell, name: str, asked: Callable[[int], Asked], run: Callable[[Asked], Round]
) -> Callable[[], float]:
    """What measures one way once: its next round, kept with the cell."""
    numbers = count()

    def one() -> float:
        found = run(asked(next(numbers)))
        cell.rounds.setdefault(name, []).append(found)
        return found.elapsed_s

    return one


def _over_http(origin: Origin, way: Way, server: OwnServer | None, asked: Asked) -> Round:
    bodies = asked.bodies(way)
    before = None if server is None else server.cpu_time()
    driven = drive(origin, way.path, bodies, asked.in_flight, asked.at_s)
    cpu = None if server is None or before is None else server.cpu_time().since(before)
    if all(answer.error for answer in driven.answers):
        first = driven.answers[0]
        words = f": {first.said}" if first.said else ""
        remedy = "look at the server; --ends for one that takes no ignore_eos"
        raise UsageError(origin.url, f"none of {len(bodies)} requests was answered, {first.error}{words}", remedy)
    known = {} if cpu is None else {"cpu_s": cpu.all_s, "main_cpu_s": cpu.main_s}
    return Round(driven.answers, driven.elapsed_s, client_cpu_s=driven.client_cpu_s, **known)


def _in_process(coterie: Coterie, way: Way, asked: Asked) -> Round:
    requests = asked.requests(way, coterie.texts)
    answers, elapsed_s, cpu_s = in_process(coterie, requests, asked.in_flight, asked.at_s)
    return Round(answers, elapsed_s, cpu_s=cpu_s)


def _measure(cell: _Cell, ways: Mapping[str, Callable[[], float]], rounds: int, say: Callable[[str], None]) -> None:
    interleave(ways, Effort(rounds, 0.0))
    cell.warm()
    for name, found in cell.rounds.items():
        row = row_of(found)
        say(f"{loop_of(cell.load)}, {name.replace('_', ' ')}: {row['tokens_per_s']:.0f} tokens/s")


def loop_of(load: Load) -> str:
    """How requests come, in words."""
    return f"{load.in_flight} in flight" if load.in_flight else f"{load.rate:g} a second, {load.arrivals}"


def _asked_for(loads: Sequence[Load], rounds: int, way: Way) -> dict[str, Any]:
    first = loads[0]
    return {
        "requests": first.requests,
        "mix": first.mix.text,
        "prompt_tokens": first.prompt.text,
        "new_tokens": first.new.text,
        "seed": first.seed,
        "rounds": rounds,
        "api": "completions" if way.raw else "chat completions",
    }


def _report(cells: Sequence[_Cell], workload: Mapping[str, Any]) -> Report:
    runs = []
    for cell in cells:
        run: dict[str, Any] = {
            "loop": loop_of(cell.load),
            "in_flight": cell.load.in_flight,
            "rate_per_s": cell.load.rate,
            **{name: row_of(rounds) for name, rounds in cell.rounds.items()},
        }
        if IN_PROCESS in cell.rounds:
            rates = {name: [one.tokens_per_s for one in rounds] for name, rounds in cell.rounds.items()}
            ratio = paired_ratio(rates[HTTP], rates[IN_PROCESS])
            run["tokens_per_s_ratio"] = {"median": ratio.median, "low": ratio.low, "high": ratio.high}
        runs.append(run)
    return Report("serve", workload, {"runs": runs}, (table_of(runs),), notes_of(runs))

"""What a client gets over HTTP and, for our own server, the cost of HTTP compared with the same engine in process.

    round 1:  over HTTP, in process      the same requests both ways, new ones each round
    round 2:  over HTTP, in process

The client runs on the same machine as the server, in another process; its CPU time is reported too.
Knows nothing about how requests are sent (serve_drive.py) or a server is started (serve_own.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coterie.api import Coterie, Options
from coterie.api.assemble import make_spec, policy_for
from coterie.api.opened import open_all
from coterie.api.sampling import GREEDY
from coterie.bench.experts import experts_in_turn
from coterie.bench.http_stream import Origin, origin_of
from coterie.bench.report import Report, paired_ratio
from coterie.bench.serve_own import OwnServer, in_process, own_server
from coterie.bench.serve_requests import RoundRequests, Way, draw_round, encoded, own_seeds, round_of
from coterie.bench.serve_rounds import Cell, counting, measured, over_http, workload_of
from coterie.bench.serve_rows import Round, notes_of, row_of, table_of
from coterie.bench.words import write_tokenizer
from coterie.composition.composition import COMPOSITION_FILE, load_composition
from coterie.composition.toml import to_toml
from coterie.core.errors import UsageError
from coterie.engine.bases import bases_of, size_of
from coterie.memory.slab import round_up
from coterie.plan.workload import Load
from coterie.spec.this_machine import this_machine

HTTP, IN_PROCESS = "http", "in_process"
NEAR_SHARE = 0.25  # default share of memory for the experts of each of the two engines


@dataclass(frozen=True, slots=True)
class Own:
    """Our own server, on a composition, or if that is empty on random experts, cycling through `shapes`."""

    composition: str
    names: tuple[str, ...]
    shapes: tuple[Mapping[str, Any], ...] = ()
    near_bytes: int | None = None
    kv_bytes: int | None = None
    threads: int | None = None
    max_batch: int | None = None


def random_names(count: int) -> tuple[str, ...]:
    """The names of `count` random experts."""
    return tuple(f"expert-{number:03d}" for number in range(count))


def serve_own(own: Own, loads: Sequence[Load], rounds: int, way: Way, say: Callable[[str], None]) -> Report:
    """Measure our server with each load, compared with its engine in process.

    Raises UsageError, CapacityError, and DeviceError if the server does not start.
    """
    loads = own_seeds(loads, rounds)
    with _composition(own, say) as ref, Coterie.open(ref, _options(ref, own)) as coterie:
        names = own.names
        _check_context(min(coterie.models[name].max_context for name in names), loads, rounds, names)

        def tokens(name: str, text: str) -> int:
            return len(encoded(coterie.texts[name], way.query(name, text)))

        count = {name: partial(tokens, name) for name in names}
        made = coterie.plan
        sizes = ("--near", f"{made.near_bytes + made.bases_bytes} B", "--kv", f"{made.kv_bytes} B")
        threads = ("--threads", str(own.threads)) if own.threads else ()
        batch = ("--max-batch", str(own.max_batch)) if own.max_batch else ()
        say("starting a server")
        with own_server(ref, (*sizes, *threads, *batch)) as server:
            origin = origin_of(server.url, {})
            cells = []
            ways = {HTTP: partial(_http, origin, way, server), IN_PROCESS: partial(_in_process, coterie, way)}
            for load in loads:
                draw = partial(draw_round, load, names, count=count)
                cells.append(measured(load, draw, ways, rounds, say))
        workload = {
            "composition": own.composition or "random",
            "experts": len(names),
            "expert_bytes": [min(made.expert_bytes.values()), max(made.expert_bytes.values())],
            "near_bytes": made.near_bytes,
            "kv_bytes": made.kv_bytes,
            "max_batch": coterie.parts.engine.policy.max_batch,
            "threads": own.threads or this_machine().units,
            "activations": sorted({coterie.models[name].activations for name in names}),
        }
    return _report(cells, {**workload, **workload_of(loads, rounds, way)})


def serve_url(
    origin: Origin, models: Sequence[str], loads: Sequence[Load], rounds: int, way: Way, say: Callable[[str], None]
) -> Report:
    """Measure a running server, ours or another, from outside.

    Raises UsageError if it answers no request.
    """
    loads = own_seeds(loads, rounds)
    count = dict.fromkeys(models, counting(origin, way, models[0]))
    ways = {HTTP: partial(_http, origin, way, None)}
    cells = [measured(load, partial(draw_round, load, models, count=count), ways, rounds, say) for load in loads]
    return _report(cells, {"url": origin.url, "models": list(models), **workload_of(loads, rounds, way)})


@contextmanager
def _composition(own: Own, say: Callable[[str], None]) -> Iterator[str]:
    """The composition to serve: the given one, or a temporary one of random experts."""
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
    """Options for both engines, which are in memory at the same time."""
    options = Options(near_bytes=own.near_bytes, kv_bytes=own.kv_bytes, threads=own.threads, sampling=GREEDY)
    options = replace(options, policy=policy_for(options.device, own.max_batch))
    if own.near_bytes is not None:
        return options
    spec = make_spec(options)
    models = open_all(load_composition(ref), options).models
    bases = bases_of(models)
    sizes = [round_up(model.layout.size_bytes) for name, model in models.items() if name not in bases]
    room, shared = int(spec.tier(spec.run_tier).capacity_bytes * NEAR_SHARE), size_of(bases)
    near = shared + max(min(sum(sizes), room - shared), *sizes)
    return replace(options, near_bytes=near)


def _check_context(context: int, loads: Sequence[Load], rounds: int, names: Sequence[str]) -> None:
    drawn = (round_of(load, number, names) for load in loads for number in range(rounds + 1))
    longest = max(one.longest for one in drawn)
    if longest > context:
        fact = f"a request has {longest} tokens of prompt and answer, but the context holds {context}"
        raise UsageError("--prompt and --max-tokens", fact, "ask for fewer")


def _http(origin: Origin, way: Way, server: OwnServer | None, drawn: RoundRequests) -> Round:
    before = (None, None) if server is None else server.cpu_s()
    driven = over_http(origin, way, drawn)
    after = (None, None) if server is None else server.cpu_s()
    whole, main = (None if s is None or e is None else e - s for s, e in zip(before, after, strict=True))
    return Round(driven.answers, driven.elapsed_s, whole, main, driven.client_cpu_s)


def _in_process(coterie: Coterie, way: Way, drawn: RoundRequests) -> Round:
    requests = drawn.requests(way, coterie.texts)
    answers, elapsed_s, cpu_s = in_process(coterie, requests, drawn.in_flight, drawn.at_s)
    return Round(answers, elapsed_s, cpu_s=cpu_s)


def _report(cells: Sequence[Cell], workload: Mapping[str, Any]) -> Report:
    runs = []
    for cell in cells:
        run: dict[str, Any] = {**cell.head, **{name: row_of(rounds) for name, rounds in cell.rounds.items()}}
        if IN_PROCESS in cell.rounds:
            rates = {name: [one.tokens_per_s for one in rounds] for name, rounds in cell.rounds.items()}
            run["tokens_per_s_ratio"] = asdict(paired_ratio(rates[HTTP], rates[IN_PROCESS]))
        runs.append(run)
    return Report("serve", workload, {"runs": runs}, (table_of(runs),), notes_of(runs))

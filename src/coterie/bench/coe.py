"""A hundred and fifty experts on one machine: mixes of requests under several policies, in one memory budget.

    fcfs      first come first served, LRU eviction, no overlap: the paper's runtime
    coterie   groups requests by expert, prefetches the next expert, keeps the experts of queued requests
    belady    the fewest switches for the order of experts that `coterie` chose, by Belady's rule; counted, not run

Knows nothing about how one run is served (coe_run.py) or how a mix is drawn (plan/mix.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from rich.table import Table

from coterie.api.assemble import Options, make_device, make_spec, rounded_for
from coterie.bench.coe_peer import converted, serve_peer
from coterie.bench.coe_run import Outcome, Workload, fewest_switches, priority_notes, serve
from coterie.bench.disk import DiskLimit
from coterie.bench.experts import experts_in_turn, random_adapters, random_experts
from coterie.bench.gpu_peers import check_peers
from coterie.bench.peers.best import peers_named
from coterie.bench.peers.peer import Peer
from coterie.bench.peers.transformers import Transformers
from coterie.bench.report import Report
from coterie.bench.shapes import COMMON
from coterie.core.errors import UsageError
from coterie.core.trace import Trace
from coterie.core.units import format_bytes, format_rate, format_seconds
from coterie.devices.cuda.gpu import Gpu, gpu_number
from coterie.devices.real.host_memory import CHUNK_BYTES
from coterie.models.model import AUTO, Model, synthetic_model
from coterie.plan.mix import draw
from coterie.plan.setups import APART, EQUAL, FCFS, OURS, SETUPS
from coterie.plan.workload import draw_priorities
from coterie.spec.machine import MachineSpec
from coterie.spec.this_machine import this_machine

BELADY = "belady"
POLICIES = (FCFS.name, OURS.name, BELADY)  # by default; for adapters, `apart` shows the gain of shared steps
KNOWN = (*POLICIES, APART.name, EQUAL.name)
LIMIT_FILES = 5
SEED = 7  # the seed on which the settings of `coterie` were tuned


def _shape(family: str, model_type: str, hidden: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    more = {"num_key_value_heads": kv_heads, "head_dim": 64, "intermediate_size": hidden * 11 // 4 // 64 * 64}
    kind = {"architectures": [family], "model_type": model_type, "vocab_size": 16384, "torch_dtype": "bfloat16"}
    return {**kind, **COMMON, **sizes, **more}


# Three architectures of about 50, 75 and 100 MB in bf16, in turn.
_SIZES = ((512, 6, 8, 2), (576, 8, 9, 3), (640, 9, 10, 2))
_FAMILIES = (("LlamaForCausalLM", "llama"), ("Qwen2ForCausalLM", "qwen2"), ("Qwen3ForCausalLM", "qwen3"))
SHAPES = tuple(_shape(*family, *sizes) for family, sizes in zip(_FAMILIES, _SIZES, strict=True))
PEER_SHAPES = tuple(_shape(*_FAMILIES[0], *sizes) for sizes in _SIZES)  # Llamas only, which peers can convert


@dataclass(frozen=True, slots=True)
class Grid:
    """What to run: each mix with each number of requests in flight under each policy.

    `why`: how the sizes were chosen, for the notes. `spec`: the machine they were chosen for; queried again, a GPU
    would have less free memory, and they would no longer fit. `low_priority_share`: of requests with priority 1.
    `adapter_rank`: experts are LoRA adapters of this rank on one base of the first shape; 0: whole models.
    """

    experts: int
    requests: int
    mixes: tuple[str, ...]
    in_flight: tuple[int, ...]
    policies: tuple[str, ...]
    near_bytes: int
    prompt_tokens: int
    new_tokens: int
    device: str = "cpu"
    threads: int | None = None
    shapes: tuple[Mapping[str, Any], ...] = SHAPES
    peers: tuple[str, ...] = ()
    seed: int = SEED
    why: str = ""
    spec: MachineSpec | None = None
    adapter_rank: int = 0
    low_priority_share: float = 0.0


def coe(grid: Grid, say: Callable[[str], None]) -> tuple[Report, Trace | None]:
    """Run the grid; `say` receives progress messages. The trace is of the last run of `coterie`.

    Raises UsageError, and CapacityError if the temporary folder or memory is too small.
    """
    _check(grid)
    peers = _peers(grid)
    start_s = perf_counter()
    with _experts(grid, sum(peer.converts for peer in peers), say) as made:
        models = {name: rounded_for(model, AUTO, grid.device) for name, model in made.items()}
        rate = _link_rate(grid, models)
        runs, trace = _runs(grid, models, rate, say)
        peer_settings = _peer_runs(grid, models, peers, runs, say)
    results = {
        "runs": runs,
        "switches_over_fcfs": _ratios(runs, "switches"),
        "tokens_per_s_over_fcfs": _ratios(runs, "tokens_per_s"),
        "tokens_per_s_over_peer": {peer.name: _ratios(runs, "tokens_per_s", peer.name) for peer in peers},
        "peer_settings": peer_settings,
        "age_bound": OURS.policy.age_bound,
        "link_bytes_per_s": rate,
        "wall_s": perf_counter() - start_s,
    }
    return Report("coe", _workload(grid, models), results, (_table(runs),), _notes(grid, models, results)), trace


def _check(grid: Grid) -> None:
    unknown = [name for name in grid.policies if name not in KNOWN]
    if unknown:
        raise UsageError("--policy", f"{unknown[0]!r} is not a policy", f"use one of {', '.join(KNOWN)}")
    if grid.adapter_rank and (grid.peers or grid.device.startswith("synthetic")):
        raise UsageError(
            "--adapters", "are files beside a base, served by this engine", "use --device cpu and no --peer"
        )
    if grid.peers and grid.device != "cpu" and gpu_number(grid.device) is None:
        raise UsageError("--peer", f"a peer cannot run on {grid.device}", "compare on --device cpu or cuda")
    if BELADY in grid.policies and OURS.name not in grid.policies:
        raise UsageError("--policy", f"{BELADY} needs the turns that {OURS.name} took", f"add --policy {OURS.name}")
    for mix in grid.mixes:
        draw(mix, grid.experts, 1, grid.seed)


def _peers(grid: Grid) -> tuple[Peer, ...]:
    """The engines to compare with, on the grid's device. Raises UsageError."""
    gpu = gpu_number(grid.device)
    if gpu is None:
        return peers_named(grid.peers)
    # Eager only: torch.compile compiles for one model, which does not pay off when switching between many.
    return (Transformers(Gpu(gpu).torch_device),) if check_peers(grid.peers) else ()


@contextmanager
def _experts(grid: Grid, copies: int, say: Callable[[str], None]) -> Iterator[dict[str, Model]]:
    """Random experts, cycling through the shapes and named by number; without weights on a synthetic device.

    `copies`: how many peers will write converted copies of all of them.
    """
    with ExitStack() as stack:
        if grid.device.startswith("synthetic"):
            kinds = [synthetic_model(shape) for shape in grid.shapes]
            turns = [kinds[number % len(kinds)] for number in range(grid.experts)]
        elif grid.adapter_rank:
            (base,) = stack.enter_context(random_experts(grid.shapes[0], 1))
            turns = stack.enter_context(random_adapters(base, grid.experts, grid.adapter_rank))
        else:
            turns = stack.enter_context(experts_in_turn(grid.shapes, grid.experts, say, copies))
        yield {
            f"expert-{number:03d}": replace(model, name=f"expert-{number:03d}") for number, model in enumerate(turns)
        }


def _link_rate(grid: Grid, models: Mapping[str, Model]) -> float:
    """Bytes per second of the link that experts are switched over, measured alone; of a modelled device, by its spec.

    On a CPU this is the disk, with the page cache dropped. On a GPU it is the link from pinned memory, which experts
    come from after they have been read once.
    """
    gpu = gpu_number(grid.device)
    if gpu is not None:
        limits = Gpu(gpu).limits()
        return limits.size_bytes / median(limits.copy_seconds() for _ in range(LIMIT_FILES))
    spec = make_spec(Options(device=grid.device))
    if grid.device != "cpu":
        run, below = spec.weight_tiers[:2]
        return spec.link(below, run).achieved_bytes_per_s
    some = list(models.values())[:: max(1, len(models) // LIMIT_FILES)]
    disk = DiskLimit(("threads", CHUNK_BYTES, 1))  # one read at a time, as the engine reads without a queue
    return median(disk.read(Path(model.layout.ranges[0].source.path)) for model in some)


def _runs(
    grid: Grid, models: Mapping[str, Model], rate: float, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], Trace | None]:
    rows: list[dict[str, Any]] = []
    trace = None
    cells = list(product(grid.mixes, grid.in_flight))
    timed = [name for name in grid.policies if name in SETUPS]
    total, start_s = len(cells) * len(timed), perf_counter()
    options = Options(device=grid.device, threads=grid.threads)
    spec = grid.spec or make_spec(options)
    for mix, in_flight in cells:
        load = _load(grid, list(models), mix, in_flight)
        for name in timed:
            outcome = serve(models, SETUPS[name], load, grid.near_bytes, make_device(spec, options), rate)
            rows.append(outcome.row)
            done = sum(row["policy"] in SETUPS for row in rows)
            left = (perf_counter() - start_s) / done * (total - done)
            say(f"run {done} of {total}: {_line(outcome.row)}; about {format_seconds(left)} left")
            if name == OURS.name:
                trace = outcome.trace
                if BELADY in grid.policies:
                    rows.append(_belady(outcome, models, grid.near_bytes))
    return rows, trace


def _belady(ours: Outcome, models: Mapping[str, Model], near_bytes: int) -> dict[str, Any]:
    """The row of Belady's rule, which only has counts: it is not run, so there are no times."""
    sizes = {name: model.layout.size_bytes for name, model in models.items()}
    switches, moved = fewest_switches(sizes, ours.order, near_bytes)
    known = {key: ours.row[key] for key in ("mix", "in_flight", "requests")}
    counted = {"switches": switches, "hit_rate": 1 - switches / ours.row["requests"], "moved_bytes": moved}
    return {**dict.fromkeys(ours.row), **known, "policy": BELADY, **counted}


def _peer_runs(
    grid: Grid,
    models: Mapping[str, Model],
    peers: Sequence[Peer],
    runs: list[dict[str, Any]],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Append the peers' rows for each mix and number in flight; returns each peer's settings."""
    settings: dict[str, str] = {}
    cpus = grid.threads or this_machine().units
    loads = [_load(grid, list(models), mix, in_flight) for mix, in_flight in product(grid.mixes, grid.in_flight)]
    for peer in peers:
        say(f"converting {len(models)} experts for {peer.name}")
        with converted(peer, models, loads[0], cpus, drops_pages=gpu_number(grid.device) is None) as made:
            settings[peer.name] = str(made)
            for load in loads:
                row = serve_peer(made, models, load, grid.near_bytes)
                runs.append({**dict.fromkeys(runs[0] if runs else row), **row})
                say(_line(row))
    return settings


def _load(grid: Grid, names: Sequence[str], mix: str, in_flight: int) -> Workload:
    asked = [names[number] for number in draw(mix, grid.experts, grid.requests, grid.seed)]
    ranked = grid.low_priority_share > 0
    priorities = draw_priorities(grid.low_priority_share, grid.requests, grid.seed).tolist() if ranked else ()
    return Workload(mix, in_flight, asked, grid.prompt_tokens, grid.new_tokens, priorities)


def _ratios(runs: Sequence[Mapping[str, Any]], field: str, under: str = FCFS.name) -> dict[str, float]:
    """The ratio of `field`, ours over policy `under`, for each mix and number in flight."""
    found = {(row["mix"], row["in_flight"], row["policy"]): row[field] for row in runs}
    return {
        f"{mix}/{in_flight}": value / found[mix, in_flight, under]
        for (mix, in_flight, policy), value in found.items()
        if policy == OURS.name and found.get((mix, in_flight, under))
    }


def _workload(grid: Grid, models: Mapping[str, Model]) -> dict[str, Any]:
    sizes = [model.layout.size_bytes for model in models.values()]
    gpu = gpu_number(grid.device)
    return {
        **({} if gpu is None else {"gpu": Gpu(gpu).name}),
        "experts": grid.experts,
        "architectures": len({model.key for model in models.values()}),
        "expert_bytes": [min(sizes), max(sizes)],
        **{name: getattr(grid, name) for name in ("near_bytes", "requests", "seed")},
        **{name: getattr(grid, name) for name in ("prompt_tokens", "new_tokens", "device")},
        "threads": grid.threads or this_machine().units,
        "activations": sorted({model.activations for model in models.values()}),
        **({"adapter_rank": grid.adapter_rank} if grid.adapter_rank else {}),
        **({"behind": grid.low_priority_share} if grid.low_priority_share else {}),
    }


def _line(row: Mapping[str, Any]) -> str:
    took = format_seconds(row["elapsed_s"])
    worked = row.get("processor_s")  # only in our own rows
    busy = f", {format_seconds(worked)} of processors" if worked else ""
    return f"{row['mix']}, {row['in_flight']} in flight, {row['policy']}: {row['switches']} switches, {took}{busy}"


def _table(runs: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("mix, in flight", "policy", "tokens/s", "TTFT p50, p95, p99", "switches", "hits", "moved")
    table.add_column("link busy, of rate")
    table.add_column("longest wait, overtaken")
    for row in runs:
        head = (f"{row['mix']}, {row['in_flight']}", row["policy"])
        counts = (str(row["switches"]), f"{row['hit_rate']:.2f}", format_bytes(row["moved_bytes"]))
        if row["tokens_per_s"] is None:
            table.add_row(*head, "-", "-", *counts, "-", "-")
            continue
        times = ", ".join(format_seconds(row[f"ttft_{p}_s"]) for p in ("p50", "p95", "p99"))
        known = row["link_busy_share"] is not None
        shares = f"{row['link_busy_share']:.2f}, {row['link_rate_share']:.2f}" if known else "-"
        waits = f"{row['longest_wait_admissions']}, {row['longest_overtaken']}" if known else "-"
        table.add_row(*head, f"{row['tokens_per_s']:.0f}", times, *counts, shares, waits)
    return table


def _notes(grid: Grid, models: Mapping[str, Model], results: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = {model.layout.size_bytes for model in models.values()}
    notes = [
        "hits: share of requests that cost no switch; longest wait: admissions while a request waited; overtaken: "
        f"those of them that came later, of which the policy allows {results['age_bound']}",
        f"the link, read alone from end to end: {format_rate(results['link_bytes_per_s'])}",
    ]
    if grid.why:
        notes.append(f"chosen: {grid.why}")
    if gpu_number(grid.device) is not None:
        notes.append("the link is from pinned memory to the GPU; in each run every expert is read from the disk once")
    elif grid.device != "cpu":
        notes.append(f"{grid.device}: modelled time; it measures policies, not this machine")
    if BELADY in grid.policies:
        equal = "sizes are equal, so it is a bound" if len(sizes) == 1 else "sizes differ, so it is no strict bound"
        notes.append(f"belady: fewest switches for the turns that coterie took, which it could not know; {equal}")
    for row in results["runs"]:
        notes += priority_notes(f"{row['mix']}, {row['in_flight']}, {row['policy']}", row)
    faster = results["tokens_per_s_over_fcfs"]
    notes += [
        f"{key} in flight: {ratio:.2f} x the switches of fcfs, {faster[key]:.2f} x its tokens/s"
        for key, ratio in results["switches_over_fcfs"].items()
    ]
    for peer, ratios in results["tokens_per_s_over_peer"].items():
        notes.append(f"{peer}: {results['peer_settings'][peer]}, open in as many bytes; the fastest in a trial")
        turns = {f"{row['mix']}/{row['in_flight']}": row["turns"] for row in results["runs"] if row["policy"] == peer}
        notes += [
            f"{key} in flight: {ratio:.2f} x the tokens/s of {peer}, {turns[key]}" for key, ratio in ratios.items()
        ]
    return (*notes, f"all of it took {format_seconds(results['wall_s'])}")

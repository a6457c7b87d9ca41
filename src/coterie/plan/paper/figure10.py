"""Figure 10: speedups of fused over unfused kernels, launched by the host (SO) or by the hardware (HO).

    unfused  n_u PyTorch kernels, launched by the host:      work_u + n_u (launch + load of a small program)
    SO       n_f whole sections, launched by the host:       work_f + n_f (launch + load of a whole grid's program)
    HO       the same, launched by the hardware

Predicted rows use batch 1 and the node's file. Fitted rows use a batch per benchmark, since those are not published,
and four numbers shared by all. An unfused kernel's program is as large as a section's divided by the section's number
of PyTorch kernels.

Knows nothing about how regions are priced.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import log
from statistics import median

from coterie.plan.paper.benchmarks import Benchmark, benchmarks
from coterie.plan.paper.figure10_notes import notes
from coterie.plan.paper.figure10_times import NODE, Shared, Times, is_possible, times
from coterie.plan.paper.machine import spec
from coterie.plan.paper.published import Published, compare, data
from coterie.plan.paper.row import Exhibit, Fitted, Kind, Method, Row, bars

NAME, TITLE = "figure-10", "Figure 10"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
MODES = ("SO", "HO")

Case = tuple[Benchmark, dict[str, float]]
Priced = tuple[tuple[Times, ...], dict[str, float]]  # a case at each possible batch


def figure_10() -> Exhibit:
    """Every speedup, predicted at batch 1 and fitted; notes state each benchmark's batch."""
    machine = spec(NODE)
    cases = tuple((benchmark, _values(benchmark)) for benchmark in benchmarks())
    shared = fit(cases)
    rows: list[Row] = []
    for benchmark in benchmarks():
        for mode in MODES:
            rows += _rows(benchmark, mode, _published(benchmark, mode), Shared.of_file(machine), shared)
    fitted = _constants(shared, cases)
    title = "Fused, {}: speedup over unfused"
    by_mode = {mode: [row for row in rows if row.row.endswith(mode)] for mode in MODES}
    charts = tuple(bars(title.format(mode), "x", own, log_y=True) for mode, own in by_mode.items())
    about = "Speedup over unfused kernels: fused with software (SO) and with hardware orchestration (HO)"
    return Exhibit(NAME, TITLE, about, tuple(rows), fitted, charts, notes({b.name: values for b, values in cases}))


def _rows(benchmark: Benchmark, mode: str, value: Published, of_file: Shared, shared: Shared) -> list[Row]:
    predicted = times(benchmark, 1).speedups(of_file)[mode]
    batch = best_batch(benchmark, _values(benchmark), shared)
    ours = times(benchmark, batch).speedups(shared)[mode]
    return [
        compare(TITLE, value, predicted, Kind.PREDICTED, Method.MACHINE, _said(benchmark, 1)),
        compare(TITLE, value, ours, Kind.FITTED, Method.MACHINE, _said(benchmark, batch)),
    ]


def _said(benchmark: Benchmark, batch: int) -> str:
    return "; ".join(filter(None, (f"batch {batch}", benchmark.note)))


def _published(benchmark: Benchmark, mode: str) -> Published:
    raw = data(NAME)
    return Published(
        f"{benchmark.name}, {mode}", _values(benchmark)[mode], raw["unit"], raw["source"], float(raw["within"])
    )


def _values(benchmark: Benchmark) -> dict[str, float]:
    found = next(row for row in data(NAME)["benchmark"] if row["name"] == benchmark.name)
    return {mode: float(found[mode.lower()]) for mode in MODES}


def best_batch(benchmark: Benchmark, values: dict[str, float], shared: Shared) -> int:
    """The batch that reproduces these values best; the smallest on ties."""
    return min(_batches(benchmark), key=lambda batch: _miss(times(benchmark, batch), values, shared))


def _batches(benchmark: Benchmark) -> tuple[int, ...]:
    """Batches at which a layer fits as one section, as the launch count assumes."""
    return tuple(batch for batch in BATCHES if is_possible(benchmark, batch))


def _miss(at: Times, values: dict[str, float], shared: Shared) -> float:
    speedups = at.speedups(shared)
    return sum(abs(log(speedups[mode] / value)) for mode, value in values.items())


UNFUSED_SHARE = (0.25, 2.0)  # no source: bounds the fit to a plausible factor


@cache
def ranges() -> dict[str, tuple[float, float]]:
    """The allowed range of each shared number: the node file's ranges for unpublished numbers."""
    machine = spec(NODE)
    used = machine.grid.pcu_share if machine.grid else 1.0
    ends = {item.key: (item.low, item.high) for item in machine.unpublished}
    host, device = ends["program_host"], ends["program_device"]
    execute = ends["launch_device"]
    return {
        "host_launch_s": ends["launch_host"],
        "host_program_s": (used * host[0], used * host[1]),
        "device_s": (execute[0] + used * device[0], execute[1] + used * device[1]),
        "unfused_share": UNFUSED_SHARE,
    }


POINTS, SWEEPS, MAX_ROUNDS = 12, 4, 8


def fit(cases: tuple[Case, ...]) -> Shared:
    """Fit the shared numbers, with each benchmark at its best batch: coordinate descent on a narrowing grid.

    Repeated until nothing is gained, since the numbers interact.
    """
    shared, priced = Shared.of_file(spec(NODE)), _priced(cases)
    least = _total(priced, shared)
    for _ in range(MAX_ROUNDS):
        better, total = _narrowed(priced, shared, least)
        if total >= least:
            break
        shared, least = better, total
    return shared


def _priced(cases: tuple[Case, ...]) -> tuple[Priced, ...]:
    return tuple((tuple(times(b, batch) for batch in _batches(b)), values) for b, values in cases)


def _narrowed(priced: tuple[Priced, ...], shared: Shared, least: float) -> tuple[Shared, float]:
    """One round of descent, starting from these numbers and their total error."""
    for sweep in range(SWEEPS):
        for name, (low, high) in ranges().items():
            now = getattr(shared, name)
            span = (high / low) ** (0.5**sweep)
            for point in range(POINTS + 1):
                value = min(max(now * span ** (point / POINTS - 0.5), low), high)
                trial = replace(shared, **{name: value})
                total = _total(priced, trial)
                if total < least:
                    shared, least = trial, total
    return shared, least


def _total(priced: tuple[Priced, ...], shared: Shared) -> float:
    return sum(min(_miss(at, values, shared) for at in batches) for batches, values in priced)


def left_out(cases: tuple[Case, ...]) -> float:
    """Leave-out error: the median error of a value that was used neither for the shared numbers nor for the batch.

    The shared numbers are fitted without its benchmark, and the batch to the benchmark's other value only.
    """
    errors = []
    for benchmark, values in cases:
        shared = fit(tuple(case for case in cases if case[0] is not benchmark))
        for mode, value in values.items():
            batch = best_batch(benchmark, {m: v for m, v in values.items() if m != mode}, shared)
            errors.append(abs(times(benchmark, batch).speedups(shared)[mode] / value - 1))
    return median(errors)


def _constants(shared: Shared, cases: tuple[Case, ...]) -> tuple[Fitted, ...]:
    to = f"all {2 * len(cases)} modelled values of Fig. 10, with a batch for each of {len(cases)} benchmarks"
    error = left_out(cases)
    names = {
        "host_launch_s": "host: argument load and execute of a kernel",
        "host_program_s": "host: program load of a whole section",
        "device_s": "hardware: launch of a section",
        "unfused_share": "unfused kernels' work, of what is priced",
    }
    numbers = []
    for key, name in names.items():
        value, end = getattr(shared, key), ""
        low, high = ranges()[key]
        if min(value / low, high / value) < 1.01:
            end = "; it ends at the end of the range that it may be in"
        scale, unit = (1e6, "us") if key.endswith("_s") else (1.0, "share")
        numbers.append(Fitted(name, value * scale, unit, to + end, error))
    batches = tuple(
        Fitted(f"batch of {b.name}", best_batch(b, values, shared), "prompts", "its two values of Fig. 10", error)
        for b, values in cases
    )
    return (*numbers, *batches)

"""Summarises rounds of requests: as rows of numbers, as a table and in notes.

Knows nothing about servers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from coterie.bench.coe_run import by_priority, percentiles, priority_notes
from coterie.bench.report import Spread
from coterie.bench.serve_drive import Answered
from coterie.core.units import format_seconds

WAYS = {"http": "over HTTP", "in_process": "in process"}


@dataclass(frozen=True, slots=True)
class Round:
    """The outcomes of one round's requests.

    `cpu_s`: CPU time of the server's process(es), `main_cpu_s` of its main thread, `client_cpu_s` of the client;
    `peak_bytes`: the server's peak memory. None: unknown. `priorities`: of the requests, by number.
    """

    answers: Sequence[Answered]
    elapsed_s: float
    cpu_s: float | None = None
    main_cpu_s: float | None = None
    client_cpu_s: float | None = None
    peak_bytes: int | None = None
    priorities: Sequence[int] = ()

    @property
    def answered(self) -> list[Answered]:
        """The complete answers."""
        return [answer for answer in self.answers if not answer.error]

    @property
    def tokens(self) -> int:
        """Tokens of all complete answers."""
        return sum(answer.tokens for answer in self.answered)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second, of complete answers."""
        return self.tokens / self.elapsed_s

    @property
    def cpu_s_per_token(self) -> float | None:
        """The server's CPU time per token; None if it is unknown, or nothing was answered."""
        return self.cpu_s / self.tokens if self.cpu_s is not None and self.tokens else None


def row_of(rounds: Sequence[Round]) -> dict[str, Any]:
    """One row: rates are medians over rounds, times are nearest-rank percentiles over all requests."""
    answers = [answer for one in rounds for answer in one.answers]
    found = [answer for answer in answers if not answer.error]
    tokens = sum(answer.tokens for answer in found)
    prompts = [answer.prompt_tokens for answer in found if answer.prompt_tokens is not None]
    errors = Counter(answer.error for answer in answers if answer.error)
    said = {answer.error: answer.message for answer in reversed(answers) if answer.message}
    tpots = [(answer.last_s - answer.first_s) / (answer.tokens - 1) for answer in found if answer.tokens > 1]
    return {
        "requests": len(answers),
        "answered": len(found),
        "errors": dict(errors.most_common()),
        "said": said,
        "requests_per_s": median(len(one.answered) / one.elapsed_s for one in rounds),
        "tokens_per_s": median(one.tokens_per_s for one in rounds),
        "elapsed_s": sum(one.elapsed_s for one in rounds),
        "tokens": tokens,
        "tokens_counted_by_server": all(answer.counted for answer in found),
        "prompt_tokens": sum(prompts) / len(prompts) if prompts else None,
        **percentiles("ttft", [answer.first_s for answer in found], (50, 90, 99)),
        **percentiles("tpot", tpots, (50, 99)),
        **({"priorities": ranked} if len(ranked := by_priority(_by_number(rounds))) > 1 else {}),
        "cpu_s_per_1000_tokens": _share([one.cpu_s for one in rounds], tokens),
        "main_thread_cpu_s_per_1000_tokens": _share([one.main_cpu_s for one in rounds], tokens),
        "client_cpu_s_per_1000_tokens": _share([one.client_cpu_s for one in rounds], tokens),
        "peak_bytes": max((one.peak_bytes for one in rounds if one.peak_bytes is not None), default=None),
    }


def _by_number(rounds: Sequence[Round]) -> list[tuple[int, float, float]]:
    return [
        (one.priorities[answer.number], answer.first_s, answer.last_s)
        for one in rounds
        if one.priorities
        for answer in one.answered
    ]


def _share(seconds: Sequence[float | None], tokens: int) -> float | None:
    known = [s for s in seconds if s is not None]
    return sum(known) / tokens * 1000 if known and tokens else None


def table_of(runs: Sequence[Mapping[str, Any]]) -> Table:
    """The table for people, with a row for each way of each load."""
    table = Table("requests", "", "requests/s", "tokens/s", "TTFT p50, p90, p99", "TPOT p50, p99")
    table.add_column("CPU s a 1000 tokens")
    table.add_column("errors")
    for run in runs:
        for name, words in WAYS.items():
            if (row := run.get(name)) is not None:
                table.add_row(run["loop"], words, *cells_of(row), errors_of(row))
    return table


def cells_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Cells: requests and tokens per second, TTFT, TPOT, and CPU time."""
    cpu = row["cpu_s_per_1000_tokens"]
    return (
        f"{row['requests_per_s']:.4g}",
        f"{row['tokens_per_s']:.0f}",
        ", ".join(_time(row[f"ttft_p{share}_s"]) for share in (50, 90, 99)),
        ", ".join(_time(row[f"tpot_p{share}_s"]) for share in (50, 99)),
        "-" if cpu is None else f"{cpu:.3f}",
    )


def errors_of(row: Mapping[str, Any]) -> str:
    """Errors by kind, with counts; empty if all requests were answered."""
    return ", ".join(f"{kind} x {count}" for kind, count in row["errors"].items())


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else format_seconds(seconds)


def notes_of(runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Notes on what the table does not show."""
    rows = [run["http"] for run in runs]
    notes = ["TTFT: from when a request is due to the first text; TPOT: from there to the last text, a token"]
    if not all(row["tokens_counted_by_server"] for row in rows):
        notes.append("the server tells no usage: pieces of text were counted as tokens")
    if rows[0]["prompt_tokens"] is not None:
        notes.append(f"a prompt has {rows[0]['prompt_tokens']:.1f} tokens in the mean, by the server's count")
    for run, row in zip(runs, rows, strict=True):
        if (ratio := run.get("tokens_per_s_ratio")) is not None:
            line = f"{run['loop']}: over HTTP {Spread(**ratio)} of the tokens/s in process"
            notes.append(f"{line}; CPU s a 1000 tokens: {_cpu(run)}")
        else:
            client = row["client_cpu_s_per_1000_tokens"]
            notes.append(f"{run['loop']}: the client itself took {_number(client)} s of CPU a 1000 tokens")
        notes += [f"{run['loop']}: {kind}: {words}" for kind, words in row["said"].items()]
        notes += priority_notes(run["loop"], row)
    return tuple(notes)


def _cpu(run: Mapping[str, Any]) -> str:
    http, alone = run["http"], run["in_process"]
    whole, main = http["cpu_s_per_1000_tokens"], http["main_thread_cpu_s_per_1000_tokens"]
    own = f"server {_number(whole)}, of it its HTTP thread {_number(main)}"
    client = _number(http["client_cpu_s_per_1000_tokens"])
    return f"{own}; engine in process {_number(alone['cpu_s_per_1000_tokens'])}; client {client}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

"""Runs rounds of requests for each load, over HTTP or in other ways.

Knows nothing about where servers come from or what is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coterie.bench.http_stream import Origin
from coterie.bench.serve_drive import LoadResult, drive
from coterie.bench.serve_requests import RoundRequests, Way
from coterie.bench.serve_rows import Round, row_of
from coterie.bench.words import prompt
from coterie.core.errors import UsageError
from coterie.plan.workload import Load

PROBES = (1, 65)  # words in two probe texts, to learn how many tokens a server counts per word


@dataclass(frozen=True, slots=True)
class Cell:
    """One load of the grid, and its rounds for each way."""

    load: Load
    rounds: Mapping[str, list[Round]]

    @property
    def head(self) -> dict[str, Any]:
        """The first entries of a run's row."""
        return {"loop": loop_of(self.load), "in_flight": self.load.in_flight, "rate_per_s": self.load.rate}


def measured(
    load: Load,
    draw: Callable[[int], RoundRequests],
    ways: Mapping[str, Callable[[RoundRequests], Round]],
    rounds: int,
    say: Callable[[str], None],
) -> Cell:
    """All rounds of a load, each way once per round, after a warm-up round. `draw`: round number -> its requests."""
    found: dict[str, list[Round]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            asks = draw(number)
            found[name].append(replace(run(asks), priorities=asks.priorities))
    cell = Cell(load, {name: each[1:] for name, each in found.items()})
    for name, each in cell.rounds.items():
        say(f"{loop_of(load)}, {name.replace('_', ' ')}: {row_of(each)['tokens_per_s']:.0f} tokens/s")
    return cell


def over_http(origin: Origin, way: Way, drawn: RoundRequests) -> LoadResult:
    """One round. Raises UsageError if no request is answered."""
    bodies = drawn.bodies(way)
    driven = drive(origin, way.path, bodies, drawn.in_flight, drawn.at_s)
    if all(answer.error for answer in driven.answers):
        first = driven.answers[0]
        words = f": {first.message}" if first.message else ""
        remedy = "look at the server; --ends for one that takes no ignore_eos"
        raise UsageError(origin.url, f"none of {len(bodies)} requests was answered, {first.error}{words}", remedy)
    return driven


def counting(origin: Origin, way: Way, model: str) -> Callable[[str], int]:
    """Estimates a server's number of tokens in a text, from its counts for one word and for many; else one per word."""
    few, many = (prompt(np.random.default_rng(PROBES), words) for words in PROBES)  # drawn like the texts of requests
    answers = drive(origin, way.path, [way.body(model, text, 1) for text in (few, many)], 1).answers
    found = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
    words = PROBES if len(found) < len(PROBES) else found
    return lambda text: round(
        words[0] + (words[1] - words[0]) / (PROBES[1] - PROBES[0]) * (text.count(" ") - PROBES[0])
    )


def loop_of(load: Load) -> str:
    """How requests arrive, in words."""
    return f"{load.in_flight} in flight" if load.in_flight else f"{load.rate:g} a second, {load.arrivals}"


def workload_of(loads: Sequence[Load], rounds: int, way: Way) -> dict[str, Any]:
    """The part of the workload that all loads share, for a report."""
    first = loads[0]
    return {
        "requests": first.requests,
        "mix": first.mix.text,
        "prompt_tokens": first.prompt.text,
        "new_tokens": first.new.text,
        "seed": first.seed,
        **({"behind": first.low_priority_share} if first.low_priority_share else {}),
        "rounds": rounds,
        "api": "completions" if way.raw else "chat completions",
    }
